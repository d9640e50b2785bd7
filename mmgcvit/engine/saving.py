"""Writing of checkpoints: whole files only, and old ones are removed when the new one is whole."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmgcvit.errors import UsageError
from mmgcvit.registry import HOOKS
from mmgcvit.utils.files import atomic_path
from mmgcvit.utils.text import summarize

BACKEND = "mmgcvit.atomic"
STOPPED = "stopped_ckpt"  # key in the message hub: checkpoint of a run that a signal has stopped


class AtomicBackend(LocalBackend):
    """mmengine's storage in local files, which writes a temporary file, flushes it to the disk, and renames it."""

    def __init__(self) -> None:
        self.outdated: list[Path] | None = None  # files to remove later; None: they are removed at once

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Raises:
            UsageError: it cannot be written. A file of this name keeps its content.
        """
        folder = Path(filepath).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(filepath) as temporary:
                super().put(obj, temporary)
                _flush(temporary)
            _flush(folder)  # the new name
        except OSError as error:
            free = shutil.disk_usage(folder).free if folder.is_dir() else 0
            raise UsageError(
                f"checkpoint {str(filepath)!r}: cannot be written: {error.strerror or error}. It has {len(obj):,} "
                f"bytes; {free:,} bytes are free on the disk"
            ) from error

    def remove(self, filepath: str | Path) -> None:
        """Remove a file, or note it for later."""
        if self.outdated is None:
            super().remove(filepath)
        else:
            self.outdated.append(Path(filepath))


register_backend(BACKEND, AtomicBackend, force=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows flushes no folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, which keeps the last good checkpoint whatever happens.

    A checkpoint appears under its name when it is whole. Older ones are removed after that, also with
    ``max_keep_ckpts=1``: there must be room for one more. The checkpoint of a run that a signal has stopped is removed
    after the next one. Only checkpoints in the folder of the run are removed.

    Args:
        Same as CheckpointHook. With ``backend_args`` or a remote ``out_dir``, that storage writes and removes.

    Raises:
        UsageError: a checkpoint cannot be written; names the file, the free space and the last good checkpoint. Or
            ``save_best`` is a result that the validation does not give.
    """

    def __init__(self, *args: Any, backend_args: dict | None = None, **kwargs: Any) -> None:
        remote = "://" in str(kwargs.get("out_dir") or "")
        if backend_args is None and kwargs.get("file_client_args") is None and not remote:
            backend_args = {"backend": BACKEND}
        super().__init__(*args, backend_args=backend_args, **kwargs)

    def before_train(self, runner: Runner) -> None:
        """Remove the parts of checkpoints that a killed run has left, which may be what fills the disk."""
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, AtomicBackend):
            for path in Path(self.out_dir).glob(".*.part.pth"):
                if re.fullmatch(r"\.(epoch|iter|best)_.*\.\d+\.part\.pth", path.name):
                    path.unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        with self._removing_afterwards(runner):
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        for name in self.key_indicators if self.save_best else ():
            if name in ("auto", *metrics):
                continue
            if {f"{name}_raw", name.removesuffix("_raw")} & set(metrics):
                # With one of the two, the raw and the averaged weights, a detector has found nothing.
                print_log(f"save_best={name!r}: no such result this time", "current", logging.WARNING)
                return
            raise UsageError(f"save_best={name!r}; allowed, as val_evaluator gives them: {summarize(metrics, 20)}")
        with self._removing_afterwards(runner):
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_afterwards(self, runner: Runner) -> Iterator[None]:
        backend = self.file_backend
        if not isinstance(backend, AtomicBackend) or backend.outdated is not None:  # the latter: called by itself
            yield
            return
        hub = runner.message_hub.runtime_info
        before = hub.get("last_ckpt")
        stopped = hub.pop(STOPPED, None)
        backend.outdated = [Path(stopped)] if stopped and re.fullmatch(r"iter_\d+\.pth", Path(stopped).name) else []
        try:
            yield
            outdated = backend.outdated
        except (OSError, UsageError) as error:
            raise UsageError(
                f"{error}. Last good checkpoint: {before or 'none yet'}. Make room, and go on with --resume"
            ) from error
        finally:
            backend.outdated = None
        kept = {str(hub.get(key)) for key in hub if key == "last_ckpt" or key.startswith("best_ckpt")}
        folder = Path(self.out_dir).resolve()
        for path in outdated if is_main_process() else ():
            inside = path.suffix == ".pth" and path.parent.resolve() == folder
            if inside and str(path) not in kept and path.is_file():
                path.unlink()
