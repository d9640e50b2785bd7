"""Lock on the folder of a run: a second run in the same folder would overwrite its checkpoints."""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mmgcvit.errors import UsageError
from mmgcvit.utils.program import is_first_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_held: set[Path] = set()  # folders locked by this process: the system's locks do not exclude a process from its own


@contextmanager
def lock_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Hold a lock on the folder of a run, in the first process of the run only.

    The lock belongs to the process, and ends with it however it ends. Where the system or the file system has no locks,
    a warning says so.

    Raises:
        UsageError: another run has the folder; names its process.
    """
    if not is_first_process() or fcntl is None:
        yield
        return
    folder = Path(work_dir).resolve()
    if folder in _held:
        raise UsageError(f"work_dir={str(work_dir)!r}: this process ({os.getpid()}) has another run in it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(folder / NAME, str(work_dir))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise UsageError(f"work_dir={str(work_dir)!r}: cannot be written: {error}") from error
        print_log(
            f"work_dir={str(work_dir)!r}: its file system has no locks; do not start a second run in it",
            level=logging.WARNING,
        )
        yield
        return
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        (folder / NAME).unlink(missing_ok=True)  # before the lock ends
        file.close()


def _open_locked(path: Path, work_dir: str) -> Any:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        file = os.fdopen(descriptor, "r+")
        try:
            # A POSIX lock: unlike that of flock, workers of data loaders do not inherit it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            said = file.read(10_000)
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise UsageError(
                f"work_dir={work_dir!r}: in use by {_describe(said)}. Allowed: another --work-dir, or this one when "
                "that run has ended"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        file.close()  # its holder has just removed it
    holder = {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv])[:1000],
    }
    file.truncate()
    file.write(json.dumps(holder))
    file.flush()
    return file


def _describe(said: str) -> str:
    try:
        holder = json.loads(said)
        return "process {process} on {host} since {since} ({command})".format(**holder)
    except (ValueError, KeyError, TypeError, IndexError):  # it has just been created
        return "another process"
