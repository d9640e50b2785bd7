"""Workers of data loaders that outlive the signals that stop a run, but not its process."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

from mmengine.runner import Runner

CHECK_EVERY = 1.0  # seconds between two looks at the process
GRACE = 25  # seconds that a worker lives on after SIGTERM, while its process does


class GuardedWorker:
    """``worker_init_fn`` of data loaders whose workers end with their process.

    A worker that waits for room in a full pipe does not notice that its process was killed, and would stay for ever.
    Signals that stop a run are sent to all its processes by a terminal and by Slurm. The workers survive them, because
    the last iteration may need their data.

    Args:
        before: the ``worker_init_fn`` to call first, or None.
    """

    def __init__(self, before: Any = None) -> None:
        self.before, self.parent = before, os.getpid()

    def __call__(self, worker: int) -> None:
        """Prepare the worker."""
        if self.before is not None:
            self.before(worker)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "alarm"):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            # torch ends a worker by SIGTERM, too, if it does not end by itself.
            signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
        if os.getppid() == self.parent:  # not started by a fork server
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(CHECK_EVERY)
        os._exit(1)


def guard_workers(runner: Runner) -> None:
    """Let the workers of all data loaders that the runner will build end with the process."""
    build = runner.build_dataloader

    def build_guarded(*args: Any, **kwargs: Any) -> Any:
        loader = build(*args, **kwargs)
        if not isinstance(loader.worker_init_fn, GuardedWorker):
            loader.worker_init_fn = GuardedWorker(loader.worker_init_fn)
        return loader

    runner.build_dataloader = build_guarded
