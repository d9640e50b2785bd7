"""Workers of data loaders: they outlive the signals that stop a run, but not its process, and send tensors cheaply."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from mmengine.runner import Runner
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

CHECK_EVERY = 1.0  # seconds between two looks at the process
MAX_COPIED = 2**17  # bytes of a tensor that is copied through the pipe; shared memory is faster for larger ones
GRACE = 25  # seconds that a worker lives on after SIGTERM, while its process does
TELLS_SENDER = hasattr(signal, "sigtimedwait")  # whether the system says who has sent a signal
#: What torch says about a worker that has ended.
LOST = re.compile(r"DataLoader worker \(pid.*(is killed by signal|exited unexpectedly)")


class GuardedWorker:
    """``worker_init_fn`` of data loaders whose workers end with their process, and send small tensors by value.

    A worker that waits for room in a full pipe does not notice that its process was killed, and would stay for ever.
    Signals that stop a run are sent to all its processes by a terminal and by Slurm. The workers survive them, because
    the last iteration may need their data. They end at once when their own process tells them to.

    torch puts each tensor into shared memory of its own, for which the process connects to the worker. That takes
    longer than copying boxes, labels and small images.

    Args:
        before: the ``worker_init_fn`` to call first, or None.
    """

    def __init__(self, before: Any = None) -> None:
        self.before, self.parent = before, os.getpid()

    def __call__(self, worker: int) -> None:
        """Prepare the worker."""
        if self.before is not None:
            self.before(worker)
        ForkingPickler.register(Tensor, _reduce)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "alarm"):
            signal.alarm(0)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
            # torch ends a worker by SIGTERM, too, if it does not end by itself. This handler is called where _watch()
            # cannot take the signal, such as when a thread is there that does not block it.
            signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
        if os.getppid() == self.parent:  # not started by a fork server
            if TELLS_SENDER:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        end = float("inf")
        while os.getppid() == self.parent and time.monotonic() < end:
            if not TELLS_SENDER:
                time.sleep(CHECK_EVERY)
            elif received := signal.sigtimedwait({signal.SIGTERM}, CHECK_EVERY):
                end = 0 if received.si_pid == self.parent else min(end, time.monotonic() + GRACE)
        os._exit(0)  # any other end would raise an error in the process, which may be writing a checkpoint


def _reduce(tensor: Tensor) -> tuple:
    """How a tensor is sent to another process: as an array if it is small, otherwise in shared memory."""
    try:
        array = tensor.numpy()
    except (RuntimeError, TypeError, ValueError):  # such as bfloat16, or with a gradient
        return reduce_tensor(tensor)
    return (torch.from_numpy, (array,)) if array.nbytes <= MAX_COPIED else reduce_tensor(tensor)


def guard_workers(runner: Runner) -> None:
    """Make :class:`GuardedWorker` the ``worker_init_fn`` of all data loaders that the runner will build."""
    build = runner.build_dataloader

    def build_guarded(*args: Any, **kwargs: Any) -> Any:
        loader = build(*args, **kwargs)
        if not isinstance(loader.worker_init_fn, GuardedWorker):
            loader.worker_init_fn = GuardedWorker(loader.worker_init_fn)
        return loader

    runner.build_dataloader = build_guarded


@contextmanager
def end_workers_on_error() -> Iterator[None]:
    """End the workers that have been started inside the block if it ends with an exception.

    Left to the garbage collector, they would often not get torch's notice, for which it waits 5 s each.
    """
    before = active_children()
    try:
        yield
    except BaseException:
        for process in active_children() if TELLS_SENDER else ():
            if process not in before and process.daemon:
                process.terminate()
        raise


def lost_worker(error: RuntimeError) -> str | None:
    """Message if an error says that a worker of a data loader has ended; None for any other error."""
    said = " ".join(str(error).split())
    if not LOST.match(said):
        return None
    return (
        f"a process that loads data has ended: {said.rstrip('. ')}. The system does this when memory is short (`dmesg` "
        "says so): a smaller num_workers or prefetch_factor of the data loaders needs less"
    )
