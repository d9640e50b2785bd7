"""Atomic file writing, and file hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmgcvit.errors import UsageError

CHUNK = 1 << 20  # bytes


def temporary_path(path: str | os.PathLike) -> Path:
    """Return a hidden name in the same folder for a file that is being written; it ends with the same suffix."""
    path = Path(path)
    # Image writers choose the format by the suffix.
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces ``path`` if the block ends without an exception.

    On an exception, the temporary file is removed and ``path`` is unchanged.

    Examples:
        >>> with atomic_path("report.txt") as temporary:
        ...     temporary.write_text("done")
    """
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> None:
    """Write ``content`` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent), encoding="utf-8")


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return _digest(path, hashlib.sha256())


def file_md5(path: str | os.PathLike) -> str:
    """MD5 of a file, in hexadecimal, for comparison with published checksums."""
    return _digest(path, hashlib.md5(usedforsecurity=False))


def _digest(path: str | os.PathLike, digest: Any) -> str:
    with Path(path).open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def require_file(what: str, path: str) -> str:
    """Return the path if the file exists; URLs and names of weights (``scheme://...``) are always accepted.

    Raises:
        UsageError: the file does not exist.
    """
    if "://" not in path and not os.path.isfile(path):
        raise UsageError(f"{what} {path!r}: no such file")
    return path
