"""Workers of data loaders: signals in their first moments, kills, their end with a failed run, and what they send."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing import active_children

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mmgcvit.engine import stopping, workers
from mmgcvit.engine.workers import TELLS_SENDER, GuardedWorker, end_workers_on_error, lost_worker


class Numbers(Dataset):
    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((50_000,), float(index))


class Send:
    """Sends a signal to the worker before the guard is there."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, worker: int) -> None:
        os.kill(os.getpid(), self.number)


def start_thread(_: int) -> None:
    """Starts a thread before the guard blocks SIGTERM, so that the signal is not left to the guard alone."""
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


def load(before: Callable[[int], None] | None = None, workers: int = 1) -> DataLoader:
    return DataLoader(Numbers(), batch_size=2, num_workers=workers, worker_init_fn=GuardedWorker(before))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["SIGINT", "SIGUSR1"])
def test_signals_in_the_first_moments(name: str, training: bool):
    """The signals that stop a run may reach a worker that has just been forked, with the handlers of its process."""
    with stopping.stop_at_signals():
        stopping._training = training
        batches = iter(load(Send(getattr(signal, name))))
        assert [int(next(batches)[0, 0]) for _ in range(4)] == [0, 2, 4, 6]
    assert not stopping._received


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_first_moments(number: int):
    """Until the guard is there, torch lets SIGTERM end a worker, too."""
    start, batches = time.monotonic(), iter(load(Send(number)))
    with pytest.raises(RuntimeError) as error:
        next(batches)
    assert time.monotonic() - start < 10
    said = lost_worker(error.value)
    assert said.startswith("a process that loads data has ended: DataLoader worker (pid")
    assert lost_worker(RuntimeError("shape mismatch")) is None


@pytest.mark.skipif(not TELLS_SENDER, reason="the system does not say who has sent a signal")
def test_workers_end_with_a_failed_run():
    before = set(active_children())
    others = iter(load())
    next(others)
    (other,) = set(active_children()) - before

    def fail() -> None:
        batches = iter(load(workers=2))
        next(batches)
        next(batches)
        mine.update(set(active_children()) - before - {other})
        raise ValueError("fails")

    mine: set = set()
    with pytest.raises(ValueError, match="fails"), end_workers_on_error():
        fail()
    assert len(mine) == 2
    for worker in mine:
        worker.join(5)
        assert worker.exitcode == 0
    assert other.is_alive()
    assert int(next(others)[0, 0]) == 2


def test_worker_with_threads_of_its_own_ends_without_an_error(monkeypatch: pytest.MonkeyPatch):
    """torch would raise an error wherever the process is at that time, if the status was another one than 0."""
    monkeypatch.setattr(workers, "GRACE", 1)
    before = set(active_children())
    batches = iter(load(start_thread))
    next(batches)
    (worker,) = set(active_children()) - before
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


KINDS = {
    "image": torch.randint(256, (3, 160, 160), dtype=torch.uint8),
    "boxes": torch.rand(7, 4)[::2, 1:],
    "mean": torch.rand(1, 3, 1, 1).expand(2, 3, 4, 5),
    "no labels": torch.zeros(0, dtype=torch.int64),
    "number": torch.tensor(0.5, dtype=torch.float64),
    "flags": torch.tensor([True, False]),
    "half": torch.rand(5).bfloat16(),
    "weight": torch.rand(3).requires_grad_(),
    "large": torch.rand(3, 105, 105),
}
IN_SHARED_MEMORY = {"half", "weight", "large"}


class Kinds(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return KINDS


def test_small_tensors_are_sent_by_value():
    """Shared memory needs a connection to the worker for each tensor; the values are the same in both cases."""
    loader = DataLoader(Kinds(), collate_fn=list, num_workers=1, worker_init_fn=GuardedWorker())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that an array cannot be written to
        (got,) = next(iter(loader))
    assert {name for name, x in got.items() if x.is_shared()} == IN_SHARED_MEMORY
    for name, wanted in KINDS.items():
        assert got[name].requires_grad == wanted.requires_grad
        torch.testing.assert_close(got[name], wanted, rtol=0, atol=0)
    got["image"][0] = 7
    assert (got["image"][0] == 7).all()
