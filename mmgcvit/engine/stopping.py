"""Stopping of a run by a signal: the iteration is finished, and a checkpoint is written."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_comm_device, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmgcvit.engine.loops import ResumableTrainLoop
from mmgcvit.engine.saving import STOPPED
from mmgcvit.errors import RunStopped
from mmgcvit.registry import HOOKS
from mmgcvit.utils.files import atomic_path

#: Signals that stop a run: Ctrl-C, the end of a job, and Slurm's notice before it (``--signal=USR1@120``).
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
PATIENCE = 15.0  # seconds; an iteration that takes longer is not waited for
END = b"\0"  # tells the thread that waits for signals to end; no signal has this number
MARGIN = 5.0  # seconds; PyTorch may compute for long without Python, so that no signal handler runs

_received: list[int] = []  # the first signal, once it has come
_watching = False  # whether signals are received
_training = False  # whether iterations are run, so that one can be waited for
_answered = threading.Event()  # set when the process has reacted to a signal, or need not
_forks_are_watched = False


@contextmanager
def stop_at_signals() -> Iterator[None]:
    """Let :data:`SIGNALS` stop a run inside the block at the end of its iteration, with :class:`StopHook`.

    A second Ctrl-C, a second or more later, raises a KeyboardInterrupt at once. Outside the main thread, where Python
    allows no signal handlers, nothing changes. A signal that is ignored, as SIGINT in a background job, stays ignored.

    If PyTorch computes for so long that the process has not reacted after :data:`PATIENCE` and :data:`MARGIN`, as in
    the backward pass of a large model on a CPU, the process is ended without a checkpoint.

    Raises:
        RunStopped: a signal comes outside the training iterations, or the iteration does not end within
            :data:`PATIENCE`. There is no checkpoint then.
    """
    global _watching, _training
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []
    process = os.getpid()

    def receive(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:
            return  # a worker of a data loader in its first moments (see GuardedWorker)
        if not first:
            first.append(time.monotonic())
            _received.append(number)
            if not _training:
                raise RunStopped(
                    f"stopped by {signal.Signals(number).name} outside the training iterations. --resume continues "
                    "from the last checkpoint, if there is one",
                    number,
                )
            if hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        elif number == signal.SIGINT and time.monotonic() > first[0] + 1:
            raise KeyboardInterrupt

    def give_up(*_: object) -> None:
        raise RunStopped(
            f"stopped by {signal.Signals(_received[0]).name}: the iteration was not finished after {PATIENCE:g} s, so "
            "that no checkpoint of it was written. --resume continues from the last one",
            _received[0],
        )

    before: dict[int, Any] = {}
    _received.clear()
    stop_watching = _watch()
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, receive)
        if hasattr(signal, "SIGALRM"):
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, give_up)
        _watching = True
        yield
    finally:
        _watching = _training = False
        _disarm()
        stop_watching()
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()


def _disarm() -> None:
    _answered.set()
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _watch() -> Callable[[], None]:
    """Start a thread that ends the process if it does not react to a signal; returns what ends the thread."""
    global _answered, _forks_are_watched
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    other = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    _answered = threading.Event()  # a thread of an earlier run has its own

    def stop() -> None:
        if other == -1:
            signal.set_wakeup_fd(-1)
            with contextlib.suppress(BlockingIOError):
                os.write(writer, END)  # workers that live on hold the pipe open
        os.close(writer)

    if other != -1:  # someone else needs to be woken, such as the event loop of a notebook
        signal.set_wakeup_fd(other)
        os.close(reader)
        return stop
    if not _forks_are_watched and hasattr(os, "register_at_fork"):
        _forks_are_watched = True
        os.register_at_fork(after_in_child=_forget_wakeup)
    threading.Thread(target=_wait_for_signal, args=(reader, _answered), daemon=True).start()
    return stop


def _wait_for_signal(reader: int, answered: threading.Event) -> None:
    with os.fdopen(reader, "rb", 0) as pipe:
        # The interpreter writes the number of each signal at once.
        while (received := pipe.read(1)) and received != END:
            if received[0] in SIGNALS and not answered.wait(PATIENCE + MARGIN):
                name = signal.Signals(received[0]).name
                print(
                    f"train: stopped by {name}: the process has not reacted for {PATIENCE + MARGIN:g} s, and was ended "
                    "without a checkpoint of this iteration. --resume continues from the last one",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(128 + received[0])


def _forget_wakeup() -> None:
    """Signals of a child are not those of its parent."""
    if _watching:
        with contextlib.suppress(ValueError):  # forked by another thread
            signal.set_wakeup_fd(-1)


@HOOKS.register_module()
class StopHook(Hook):
    """Write a checkpoint and stop when a signal has come (:func:`stop_at_signals`), in all processes of the run.

    The checkpoint is named ``iter_N.pth``, also in a run by epochs. :class:`~mmgcvit.engine.saving.SafeCheckpointHook`
    removes it when the resumed run has written its next one.

    Raises:
        RunStopped: after the checkpoint is written; says how to go on.
    """

    priority = "LOWEST"  # after the schedulers and the checkpoint hook

    def before_train(self, runner: Runner) -> None:
        """Wait for the end of an iteration from now on."""
        global _training
        _training = _watching

    def after_train(self, runner: Runner) -> None:
        """There is no iteration to wait for any more."""
        global _training
        _training = False

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Stop after a training iteration."""
        if number := _requested():
            self._stop(runner, number, runner.iter + 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Stop during a validation, which is not repeated by the resumed run."""
        if not _watching or (get_world_size() == 1 and not _received):
            return
        if number := _requested():
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # the model has the averaged weights during a validation
            self._stop(runner, number, runner.iter)

    @staticmethod
    def _stop(runner: Runner, number: int, iteration: int) -> None:
        _disarm()  # writing may take its time
        name = signal.Signals(number).name
        loop = runner.train_loop
        inside = isinstance(loop, EpochBasedTrainLoop) and iteration > runner.iter
        if inside and not isinstance(loop, ResumableTrainLoop):
            raise RunStopped(
                f"stopped by {name} at iteration {iteration}, inside an epoch. train_cfg.type="
                f"{type(loop).__name__!r} cannot resume there (mmgcvit.ResumableTrainLoop can): --resume continues "
                "from the last checkpoint",
                number,
            )
        path = _save(runner, iteration)
        raise RunStopped(f"stopped by {name} after iteration {iteration}; checkpoint: {path}", number)


def _requested() -> int:
    """The signal that has come to any process of the run; 0 if there is none."""
    number = _received[0] if _received else 0
    if get_world_size() > 1:
        shared = torch.tensor(number, device=get_comm_device(None))
        all_reduce(shared, "max")
        number = int(shared)
    return number


def _save(runner: Runner, iteration: int) -> Path:
    """Write a checkpoint as the run's CheckpointHook does, unless it has just done so."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    folder = Path(getattr(hook, "out_dir", None) or runner.work_dir)
    path = folder / f"iter_{iteration}.pth"
    if Path(runner.message_hub.runtime_info.get("last_ckpt") or "").name != path.name:
        runner.message_hub.update_info(STOPPED, str(path))
        runner.save_checkpoint(
            str(folder),
            path.name,
            meta=dict(epoch=runner.epoch, iter=iteration),
            by_epoch=False,
            backend_args=getattr(hook, "backend_args", None),
        )
        if is_main_process():
            with atomic_path(Path(runner.work_dir) / "last_checkpoint") as temporary:
                temporary.write_text(str(path))
    barrier()  # the launcher ends the others as soon as one process has ended
    return path
