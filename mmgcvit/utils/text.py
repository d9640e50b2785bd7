"""Formatting of messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mmgcvit.utils.paths import short_paths

if TYPE_CHECKING:
    from rich.console import Console

MIN_WIDTH = 140  # columns
PIPE_WIDTH = 1000  # columns, of output that is not a terminal


def summarize(names: Iterable[object], limit: int = 8) -> str:
    """Format names as ``a, b, c and 5 more``: the first ``limit`` names and the number of remaining ones.

    Examples:
        >>> summarize("abcde", limit=3)
        'a, b, c and 2 more'
    """
    listed = list(map(str, names))
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def counted(number: int, one: str, many: str = "") -> str:
    """Format a number with a noun, in the singular for 1.

    Args:
        number: how many.
        one: the noun, and what agrees with it, for 1.
        many: the same for all other numbers; by default ``one`` with 's' or 'es' at its end.

    Examples:
        >>> counted(1, "image"), counted(2, "image"), counted(0, "class"), counted(2, "image has", "images have")
        ('1 image', '2 images', '0 classes', '2 images have')
    """
    if number == 1:
        return f"1 {one}"
    return f"{number} {many or one + ('es' if one.endswith(('s', 'x')) else 's')}"


def describe(error: BaseException) -> str:
    """Format an error's message on one line, with its type if the message does not include it."""
    kind = type(error).__name__
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    if isinstance(error, ImportError) and message:
        return message
    return f"{message} ({kind})" if message else kind


def printable(text: str) -> str:
    """Write out escape codes and other control characters, which a file or a server could send to the terminal.

    Examples:
        >>> printable("a\x1b[2J")
        'a\\x1b[2J'
    """
    return "".join(char if char.isprintable() or char == "\n" else repr(char)[1:-1] for char in text)


def is_utf8(text: str) -> bool:
    """Whether a name can be written as UTF-8: those of files may be any bytes, and JSON has escapes for anything."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """Return a message as a command prints it: :func:`printable`, with paths relative to the current folder."""
    return printable(short_paths(text))


def worker_message(error: Exception) -> str:
    """Message of an error, also if it was raised in a worker of a data loader, where torch adds a traceback to it."""
    text = str(error)
    marker = f"{type(error).__name__}: "
    return text.rpartition(marker)[2].strip() if text.startswith("Caught ") and marker in text else text


def wide_console() -> Console:
    """Return a console whose tables are never cut to fit a narrow terminal or a pipe: names must stay whole."""
    from rich.console import Console

    console = Console()
    return Console(width=max(console.width, MIN_WIDTH) if console.is_terminal else PIPE_WIDTH)
