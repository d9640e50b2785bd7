"""What the server of the web page answers: only the addresses that the page needs, and nothing for other sites."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

#: Paths of Gradio that the page needs; '*' stands for any end. Others, such as its editor and recorder, are refused.
PATHS = (
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/assets/*", "/static/*",
    "/svelte/*", "/gradio_api/startup-events", "/gradio_api/info", "/gradio_api/run/predict", "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/heartbeat/*", "/gradio_api/file=*",
    "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/app_id", "/gradio_api/theme.css",
)  # fmt: skip
#: The browser loads nothing from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "frame-ancestors 'self'"
)


class Guard:
    """ASGI middleware that refuses other paths than :data:`PATHS`, and adds security headers."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        if is_needed(scope["path"]):
            await self.app(scope, receive, with_headers)
            return
        start = {"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]}
        await with_headers(start)
        await send({"type": "http.response.body", "body": b"not found"})


def is_needed(path: str) -> bool:
    """Whether the page needs this path."""
    return any(path == known or (known.endswith("*") and path.startswith(known[:-1])) for known in PATHS)
