"""Programs that a user interrupts, or whose output is not read to its end: ``mmgcvit weights list | head -1``."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

#: Exit status of a program whose output is not read to its end, as in Python's documentation of SIGPIPE.
CUT = 1
INTERRUPTED = 130  # exit status after Ctrl-C, as shells report it


def run_program(main: Callable[[], int | None]) -> int:
    """Run a program; it ends without a traceback if the reader of its output has gone, and at Ctrl-C.

    Args:
        main: the program; returns its exit status, None for 0.

    Returns:
        Its exit status, :data:`CUT`, or :data:`INTERRUPTED`.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for the rest of the process
    try:
        try:
            status = main() or 0
        except SystemExit:  # such as of --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not discard_unread():
            raise  # another pipe, such as that of a process
        return CUT
    except KeyboardInterrupt:  # also while the modules of a command are imported
        return INTERRUPTED


def discard_unread() -> bool:
    """Send standard output and standard error to nowhere if their reader has gone, so that writing to them works.

    Returns:
        Whether one of them has lost its reader.
    """
    found = False
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            descriptor = stream.fileno()  # type: ignore[union-attr]  # None raises an AttributeError
            poll = select.poll()
            poll.register(descriptor, 0)
            lost = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
        except (AttributeError, OSError, ValueError):  # it is no file, or closed
            continue
        if lost:
            discard(descriptor)
            found = True
    return found


def discard(descriptor: int) -> None:
    """Send what is written to a file descriptor to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
