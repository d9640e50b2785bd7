"""A downloader for unreliable and hostile servers: it resumes, and stops at a limit of size, speed or scheme."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlparse

from rich.progress import Progress

from mmgcvit.errors import CheckpointError
from mmgcvit.utils.text import printable

MIRROR = "MMGCVIT_MIRROR"
ALLOW_HTTP = "MMGCVIT_ALLOW_HTTP"
LIMIT = "MMGCVIT_MAX_DOWNLOAD"  # in GB
TRIES, TIMEOUT, CHUNK = 5, 30, 1 << 20  # attempts, seconds without a response, bytes
SLOWEST = 16_384  # bytes in TIMEOUT seconds
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_url(url: str) -> None:
    """Check that a URL is encrypted: http is allowed from this machine only, unless ``MMGCVIT_ALLOW_HTTP`` is 1.

    Raises:
        CheckpointError: it is not, or it is no URL.
    """
    try:
        parts = urlparse(url)
        parts.port  # noqa: B018  # raises for a port that is no number
        host = parts.hostname or ""
    except ValueError as error:
        raise CheckpointError(f"{printable(url)}: not a URL: {error}") from error
    if parts.scheme == "https" and host:
        return
    if parts.scheme != "http" or not host:
        raise CheckpointError(f"{printable(url)}: not a URL to download from; allowed: https://host/...")
    if host not in _LOOPBACK and os.environ.get(ALLOW_HTTP) != "1":
        raise CheckpointError(
            f"{printable(url)}: http is not encrypted, so the file could be replaced on its way; allowed: https, or "
            f"set {ALLOW_HTTP}=1"
        )


def max_bytes() -> int:
    """Largest file that is downloaded, in bytes: 8 GB, or ``MMGCVIT_MAX_DOWNLOAD`` GB.

    Raises:
        CheckpointError: the variable is not a number.
    """
    text = os.environ.get(LIMIT, "8")
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise CheckpointError(f"{LIMIT}={text!r}; allowed: a number of gigabytes") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to URLs that could be given, too; from https to https only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Check the new URL."""
        check_url(newurl)
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise CheckpointError(f"{req.full_url}: redirected to {printable(newurl)}; allowed: https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    """Open a URL with http and https only; urllib's own opener has ftp, file and data, too."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.UnknownHandler, urllib.request.HTTPHandler,
                    urllib.request.HTTPSHandler, urllib.request.HTTPDefaultErrorHandler, _Redirects,
                    urllib.request.HTTPErrorProcessor):  # fmt: skip
        opener.add_handler(handler())
    return opener.open(request, timeout=TIMEOUT)


def download(url: str, part: Path) -> None:
    """Download ``url`` to ``part``; resume a partial file, and retry if the connection breaks or stalls.

    Args:
        url: https, or http as allowed by :func:`check_url`.
        part: the file to write. What is there of the same version of the file is not loaded again.

    Raises:
        CheckpointError: the server does not respond, is too slow, refuses, redirects to another scheme, or sends a web
            page or more bytes than allowed.
    """
    check_url(url)
    for attempt in range(TRIES):
        try:
            return _transfer(url, part)
        except CheckpointError:
            raise
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the partial file is longer than the server's
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise CheckpointError(
                    f"{url}: the server responds with {error.code} {printable(str(error.reason))}; "
                    f"set {MIRROR} (a URL or folder) to fetch it from elsewhere"
                ) from error
            reason: Exception = error
        except http.client.InvalidURL as error:
            raise CheckpointError(f"{url}: not a URL: {error}") from error
        # no connection, a broken or stalled connection, or an invalid response
        except (OSError, EOFError, ValueError, http.client.HTTPException) as error:
            reason = error
        if attempt < TRIES - 1:
            time.sleep(min(2**attempt / 4, 4))
    raise CheckpointError(
        f"{url}: {TRIES} attempts failed, the last with {type(reason).__name__}: {printable(str(reason))}; "
        "the next call resumes the download"
    ) from reason


def _transfer(url: str, part: Path) -> None:
    # Record the URL and ETag of the partial download: it resumes only if both are unchanged.
    origin = part.with_name(part.name + ".from")
    known = origin.read_text(errors="replace") if origin.is_file() else ""
    tag = known.removeprefix(f"{url}\n") if known.startswith(f"{url}\n") else ""
    have = part.stat().st_size if part.is_file() and tag else 0
    headers = {"User-Agent": "mmgcvit"} | ({"Range": f"bytes={have}-", "If-Range": tag} if have else {})
    with _open(urllib.request.Request(url, headers=headers)) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if answer.headers.get_content_type() == "text/html":
            raise CheckpointError(f"{url}: the server sends a web page, not a checkpoint")
        length = answer.headers.get("Content-Length")
        done = have if resumed else 0
        total = None if length is None else int(length) + done
        _check_size(url, total or 0, part)
        if not resumed:
            tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            origin.write_text(f"{url}\n{tag if tag.isprintable() else ''}")
        with part.open("ab" if resumed else "wb") as file, Progress(transient=True) as progress:
            task = progress.add_task(printable(url.rsplit("/", 1)[-1]), total=total, completed=done)
            start, before = time.monotonic(), done
            while block := answer.read1(CHUNK):
                file.write(block)
                done += len(block)
                _check_size(url, done, part)
                progress.update(task, completed=done)
                if (now := time.monotonic()) - start > TIMEOUT:
                    if done - before < SLOWEST:
                        raise TimeoutError(f"only {done - before:,} bytes in {now - start:.0f} s")
                    start, before = now, done
        if total is not None and done != total:
            raise EOFError(f"the connection ended after {done:,} of {total:,} bytes")
    origin.unlink(missing_ok=True)


def _check_size(url: str, size: int, part: Path) -> None:
    if size > max_bytes():
        part.unlink(missing_ok=True)
        part.with_name(part.name + ".from").unlink(missing_ok=True)
        raise CheckpointError(
            f"{url}: the server sends {size:,} bytes or more; allowed: {max_bytes():,}, or set {LIMIT} (GB)"
        )
