"""Processes that look at the files of a data set."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from mmgcvit.errors import UsageError
from mmgcvit.utils.text import describe

EACH = 8  # fewest items for which the start of a process pays
AHEAD = 16  # most results of each process that are kept until those before them are there

Item = TypeVar("Item")
Result = TypeVar("Result")


class Processes(Generic[Item, Result]):
    """A function that is called in several processes, for many items; use it in a ``with`` block.

    The processes are forked, so that the function and what it refers to need not be pickled; items and results are.
    They only read, so that they are killed when the block ends, however it does. If this process is killed, they end
    themselves. Where processes cannot be forked (Windows, macOS), and for a few items, the function is called in this
    process.

    Args:
        look: the function.
        count: number of processes.
    """

    def __init__(self, look: Callable[[Item], Result], count: int) -> None:
        self.look, self.count = look, count
        self.processes: dict[Connection, Any] = {}
        self.opencv_threads: int | None = None

    def __enter__(self) -> Processes[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
        for connection, process in self.processes.items():
            process.join()
            connection.close()
        self.processes = {}
        if self.opencv_threads is not None:
            sys.modules["cv2"].setNumThreads(self.opencv_threads)
            self.opencv_threads = None

    def map(self, items: Sequence[Item], name: Callable[[int], str] | None = None) -> Iterator[Result]:
        """Yield the results of the items, in their order.

        Args:
            items: the arguments of the function.
            name: returns what an item is, from its index, for messages; by default the item.

        Raises:
            UsageError: the function has raised an error, or its process has ended; names the item. Errors of this kind
                are raised as they are.
        """
        name = name or (lambda index: str(items[index]))
        if not self.processes:
            self._start(min(self.count, len(items) // EACH))
        if not self.processes:
            for index, item in enumerate(items):
                yield _value(_call(self.look, item), name(index))
            return
        idle = list(self.processes)
        busy: dict[Connection, int] = {}  # indices of the items that are being looked at
        done: dict[int, Any] = {}
        sent = yielded = 0
        while yielded < len(items):
            while idle and sent < min(len(items), yielded + AHEAD * len(self.processes)):
                connection = idle.pop()
                busy[connection] = sent
                self._send(connection, items[sent], name(sent))
                sent += 1
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                index = busy.pop(ready)
                done[index] = self._receive(ready, name(index))
                idle.append(ready)
            while yielded in done:
                yield _value(done.pop(yielded), name(yielded))
                yielded += 1

    def _start(self, count: int) -> None:
        """Start the processes, if more than one can be."""
        # A daemon, such as the worker of a data loader, may not have processes of its own.
        if count < 2 or sys.platform != "linux" or multiprocessing.current_process().daemon:
            return
        if "cv2" in sys.modules:  # its threads would be missing in the processes, and be waited for
            self.opencv_threads = sys.modules["cv2"].getNumThreads()
            sys.modules["cv2"].setNumThreads(0)
        context = multiprocessing.get_context("fork")
        gc.freeze()  # collectors of the processes would write to, and so copy, the memory of all objects
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(self.look, theirs, [*self.processes, ours]), daemon=True)
                with warnings.catch_warnings():
                    # Python 3.12 warns of threads, whose locks could be held. What the processes do takes none of them.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
                theirs.close()
                self.processes[ours] = process
        finally:
            gc.unfreeze()

    def _send(self, connection: Connection, item: Item, name: str) -> None:
        try:
            connection.send(item)
        except OSError as error:
            raise self._ended(connection, name) from error

    def _receive(self, connection: Connection, name: str) -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended(connection, name) from error

    def _ended(self, connection: Connection, name: str) -> UsageError:
        process = self.processes[connection]
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return UsageError(
            f"{name}: the process that was reading it has ended ({how}). SIGKILL: memory is short, and fewer --workers "
            "need less. SIGSEGV: the decoder has crashed on this file"
        )


def _serve(look: Callable[[Any], Any], connection: Connection, others: Sequence[Connection]) -> None:
    """Call a function for each item that comes, until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all processes; the first one kills the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:  # otherwise they would stay open when their own process is killed
        other.close()
    try:
        while True:
            connection.send(_call(look, connection.recv()))
    except (EOFError, OSError):
        return


def _call(look: Callable[[Any], Any], item: Any) -> tuple[Any, str | None, bool]:
    """Result, or an error's text and whether it is meant for the user."""
    try:
        return look(item), None, False
    except UsageError as error:
        return None, str(error), True
    except Exception as error:  # named with the item by the caller
        return None, describe(error), False


def _value(found: tuple[Any, str | None, bool], name: str) -> Any:
    value, error, for_user = found
    if error is not None:
        raise UsageError(error if for_user else f"{name}: cannot be checked: {error}")
    return value
