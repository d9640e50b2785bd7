"""The output of a run, whose reader may go away: a pipe to ``head``, a terminal that is closed, a full disk."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TextIO

from mmengine.logging import print_log

from mmgcvit.utils.pipes import CUT, discard, discard_unread


class StreamWrapper(io.TextIOBase):
    """A text stream that writes to another one.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO | StreamWrapper) -> None:
        self.stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        """Encoding of the stream."""
        return self.stream.encoding

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """File descriptor of the stream."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Return True."""
        return True


class GuardedStream(StreamWrapper):
    """A text stream that ends the program quietly, or lets a training go on, if it cannot be written any more.

    If the reader has gone, the program exits with :class:`SystemExit`: loggers would print a traceback of any other
    exception, and go on. After :func:`keep_running`, the run goes on without this output, and a warning is logged.

    Args:
        stream: the stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.keeps_running = False

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self.stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if not self.keeps_running:
            if not isinstance(error, BrokenPipeError):
                raise error
            discard_unread()
            sys.exit(CUT)
        try:
            discard(self.stream.fileno())
        except (OSError, ValueError):  # it is no file
            self.stream = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process
        discard_unread()  # standard error often has the same reader
        print_log(
            f"the output cannot be written any more ({error.strerror or error}): the training goes on without it, and "
            "this log file has everything",
            logger="current",
            level=logging.WARNING,
        )


def keep_running() -> None:
    """Let a run go on from now if its output cannot be written, inside ``short_output``."""
    stream: object = sys.stdout
    while stream is not None:
        if isinstance(stream, GuardedStream):
            stream.keeps_running = True
        stream = getattr(stream, "stream", None)
