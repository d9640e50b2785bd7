"""Hooks that keep long runs safe: a loss that is not finite, images left out, randomness that can be resumed."""

from __future__ import annotations

import math
import random
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_comm_device, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmgcvit.engine.loops import ResumableTrainLoop


class InvalidLossError(RuntimeError):
    """A loss became NaN or infinite."""


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stops a run at the first loss that is not finite, before a checkpoint of that iteration is written.

    Raises:
        InvalidLossError: from a training iteration; names the iteration, the losses, and the last checkpoint whose
            weights are all finite.
    """

    priority = "VERY_HIGH"  # before the checkpoint hook

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at the losses that the iteration returned."""
        losses = {
            name: float(torch.as_tensor(value).detach()) for name, value in (outputs or {}).items() if "loss" in name
        }
        if all(map(math.isfinite, losses.values())):
            return
        values = ", ".join(f"{name}={value:g}" for name, value in losses.items())
        good = _last_good_checkpoint(Path(runner.work_dir))
        raise InvalidLossError(
            f"iteration {runner.iter + 1}: the loss is not finite: {values}. Last good checkpoint: {good or 'none yet'}"
            ". A lower learning rate, a longer warm-up, optim_wrapper.clip_grad or bf16 in place of fp16 may help; "
            "tools/check_data.py looks for broken annotations"
        )


def _last_good_checkpoint(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.pth"), key=lambda path: path.stat().st_mtime, reverse=True):
        if not zipfile.is_zipfile(path):
            continue
        # a checkpoint of this very run
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        if "optimizer" not in checkpoint:  # weights for other uses
            continue
        if all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point()):
            return str(path)
    return None


@HOOKS.register_module()
class CorruptImageHook(Hook):
    """Says how many images the data set has left out so far (``LoadCheckedImage`` with ``corrupt='skip'``)."""

    priority = "LOW"

    def after_train_epoch(self, runner: Runner) -> None:
        """Say it at each epoch's end."""
        self._tell(runner)

    def after_train(self, runner: Runner) -> None:
        """Say it at the end of a run by iterations."""
        self._tell(runner)

    @staticmethod
    def _tell(runner: Runner) -> None:
        count = sum(
            int(transform.skipped)
            for dataset in _inner(runner.train_dataloader.dataset)
            for transform in _transforms(dataset)
            if hasattr(transform, "skipped")
        )
        if get_world_size() > 1:
            total = torch.tensor(count, device=get_comm_device(None))
            all_reduce(total)
            count = int(total)
        if count:
            runner.logger.warning(f"images skipped so far, as they cannot be decoded: {count}")


@HOOKS.register_module()
class ReproducibleHook(Hook):
    """Makes a resumed run end at the weights of one that was never interrupted.

    mmengine resumes weights, optimizer and schedule, but not the state of the random generators. Here what is random
    in an iteration depends on the run's seed, the process and the iteration alone, and what is random in the loading of
    an image, in a run by epochs, on the seed, the epoch, the worker, the image and how often the worker has loaded
    it in this epoch; in a run by iterations in which mmengine skips indices (from 0.10.12, with torch's batch sampler)
    on the seed, the process, the iteration and the place in its batch. (Elsewhere mmengine loads the skipped data
    again, which brings the workers, if there are any, to where they were. Images skipped as corrupt, and wrappers
    that mix several images, move the places.)
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Put the drawing of seeds before the data sets' transforms."""
        self.seed = runner.seed
        self.epoch = torch.full((2,), -1, dtype=torch.int64).share_memory_()  # and the batches of it already seen
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        first = None if by_epoch else self._from_place(runner)
        for dataset in _inner(runner.train_dataloader.dataset):
            pipeline = getattr(dataset, "pipeline", None)
            if pipeline is not None and (by_epoch or first):
                pipeline.transforms.insert(0, first or _SeedFromSample(self.seed, self.epoch))

    def _from_place(self, runner: Runner) -> _SeedFromPlace | None:
        """What draws seeds where mmengine will skip indices, its workers not being there yet."""
        iterator = runner.train_loop.dataloader_iterator
        skips = hasattr(iterator, "_resolve_sampler") and iterator._resolve_sampler() is not None
        if not skips or iterator._iterator is not None:
            return None
        return _SeedFromPlace(self.seed, runner.iter, iterator._resolve_batch_size())

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the workers, who live through all epochs, which one begins, and where it does."""
        done = 0
        if isinstance(runner.train_loop, ResumableTrainLoop):
            done = runner.iter - runner.epoch * len(runner.train_dataloader)
        self.epoch.copy_(torch.tensor([runner.epoch, done]))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed what is random in the model."""
        _seed(self.seed, get_rank(), runner.iter)


class _SeedFromSample:
    """The first transform of a pipeline: seeds those behind it."""

    def __init__(self, seed: int, epoch: torch.Tensor) -> None:
        self.seed, self.epoch, self.rank = seed, epoch, get_rank()  # a spawned worker has no process group
        self.counted, self.times = -1, Counter()

    def __call__(self, results: dict) -> dict:
        (epoch, done), sample = self.epoch.tolist(), results.get("sample_idx", 0)
        if self.counted != epoch:
            self.counted, self.times = epoch, Counter()
        worker = torch.utils.data.get_worker_info()
        # A repeated sample is to look different each time. (In an epoch that goes on, the batches come to the workers
        # in turn from the first on again: the worker counts that would have had this one.)
        index = (worker.id + done) % worker.num_workers if worker else 0
        _seed(self.seed, epoch, self.rank, index, sample, self.times[sample])
        self.times[sample] += 1
        return results


class _SeedFromPlace:
    """The first transform of all pipelines of a run by iterations: seeds those behind it by iteration and place."""

    def __init__(self, seed: int, start: int, batch_size: int) -> None:
        self.seed, self.start, self.batch_size, self.rank = seed, start, batch_size, get_rank()
        self.count = 0  # of this worker's images; batches go to the workers in turn

    def __call__(self, results: dict) -> dict:
        worker = torch.utils.data.get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        batch, place = divmod(self.count, self.batch_size)
        _seed(self.seed, self.rank, self.start + index + workers * batch, place)
        self.count += 1
        return results


def _seed(*numbers: int) -> None:
    words = np.random.SeedSequence(numbers).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def _inner(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers."""
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from _inner(inner)
    elif hasattr(dataset, "dataset"):
        yield from _inner(dataset.dataset)
    else:
        yield dataset


def _transforms(dataset: Any) -> Iterator[Any]:
    """All transforms of a data set's pipeline, those inside others too."""
    waiting = list(getattr(getattr(dataset, "pipeline", None), "transforms", ()))
    while waiting:
        transform = waiting.pop()
        if isinstance(transform, (list, tuple)):
            waiting += transform
            continue
        yield transform
        waiting += [transform.transforms] if isinstance(getattr(transform, "transforms", None), (list, tuple)) else []
