"""Addresses that the server of the page answers."""

from __future__ import annotations

import asyncio
from typing import Any

from mmgcvit.app.guard import Guard, is_needed


def test_paths():
    for path in ("/", "/assets/index.js", "/gradio_api/queue/join", "/gradio_api/file=/tmp/a/b.png"):
        assert is_needed(path)
    for path in (
        "/gradio_api/vibe-edit/",
        "/gradio_api/queue/join/more",
        "/assetsx",
        "/monitoring",
        "/gradio_api/run/a",
    ):
        assert not is_needed(path)


def test_headers():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def answer(path: str) -> dict:
        messages: list[dict] = []

        async def send(message: dict) -> None:
            messages.append(message)

        await Guard(app)({"type": "http", "path": path}, None, send)
        return messages[0]

    for path, status in (("/", 200), ("/monitoring", 404)):
        start = asyncio.run(answer(path))
        assert start["status"] == status
        headers = dict(start["headers"])
        assert b"default-src 'self'" in headers[b"content-security-policy"]
        assert headers[b"x-content-type-options"] == b"nosniff"
