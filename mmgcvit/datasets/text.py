"""Reading of text files: encodings, and lists of names."""

from __future__ import annotations

import codecs
import io
import json
import os
from pathlib import Path
from typing import Any

from mmgcvit.errors import AnnotationError

MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "UTF-8 with a byte order mark", "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF32_BE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16"),
)


def read_bytes(what: str, path: str | Path) -> bytes:
    """Read a file.

    Args:
        what: what the file is, for messages.
        path: the file.

    Raises:
        AnnotationError: the file does not exist or cannot be read.
    """
    if not os.path.isfile(path):
        raise AnnotationError(f"{what} {str(path)!r}: no such file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise AnnotationError(f"{what} {str(path)!r}: cannot be read: {error.strerror}") from error


def read_utf8(what: str, path: str | Path) -> str:
    """Read a text file that mmengine and pycocotools read as UTF-8 without a byte order mark.

    Args:
        what: what the file is, for messages.
        path: the file.

    Raises:
        AnnotationError: the file does not exist or has another encoding; says how to convert it.
    """
    content = read_bytes(what, path)
    found = next(((name, codec) for mark, name, codec in MARKS if content.startswith(mark)), None)
    if found is None and b"\0" in content[:4]:
        found = "UTF-16 without a byte order mark", "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    if found is None:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise AnnotationError(
                f"{what} {str(path)!r} is not UTF-8 (byte {error.start}: {content[error.start]:#x}); allowed: UTF-8. "
                "If it was written on Windows: iconv -f cp1252 -t utf-8 OLD > NEW"
            ) from error
    name, codec = found
    raise AnnotationError(
        f"{what} {str(path)!r} is {name}; allowed: UTF-8 without a byte order mark. To convert it: python -c "
        f"\"from pathlib import Path as P; p = P({str(path)!r}); p.write_text(p.read_text('{codec}'), 'utf-8')\""
    )


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        AnnotationError: it is not JSON, with line and column, or not UTF-8.
    """
    try:
        return json.loads(read_utf8("annotations", path))
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise AnnotationError(f"{path}: not annotations: nested too deeply") from error


def read_names(what: str, path: str | Path) -> list[str]:
    """Read a file with one class name per line, as mmengine does.

    Raises:
        AnnotationError: the file is not UTF-8, or mmengine would read empty names or names with spaces around them.
    """
    names = [line.rstrip("\r\n") for line in io.StringIO(read_utf8(what, path))]
    for i, name in enumerate(names):
        if not name.strip() or name != name.strip():
            raise AnnotationError(
                f"{what} {str(path)!r}: line {i + 1} is {name!r}; allowed: one name per line, without spaces around it"
            )
    return names


def read_lines(what: str, path: str | Path) -> list[str]:
    """Read the lines of a file without spaces around them; empty lines are left out.

    Raises:
        AnnotationError: the file does not exist or is not UTF-8.
    """
    return [line.strip() for line in read_utf8(what, path).splitlines() if line.strip()]
