"""Hooks for runs: compare the checkpoint with the model, stop at an invalid loss, count skipped images, and make
resumed runs reproducible.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_comm_device, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from mmgcvit import compat
from mmgcvit.checkpoint.complete import (
    Comparison,
    class_names,
    compare_classes,
    compare_weights,
    require_complete,
)
from mmgcvit.checkpoint.loading import sharded_part
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.sources import READER
from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.engine.loops import ResumableTrainLoop
from mmgcvit.errors import CheckpointError, InvalidLossError
from mmgcvit.registry import HOOKS


@HOOKS.register_module()
class LoadedWeightsHook(Hook):
    """Compare the checkpoint of a run with the model, before it is loaded.

    mmengine loads the tensors that fit and leaves the others at their random initial values. That is what fine-tuning
    wants; a line in the log then says what was loaded and what was left out. A test, and a resumed run, need all of
    them. The class names of the checkpoint are compared with those of the data, too: another order is an error in a
    test and in a resumed run, and a warning if ``load_from`` has loaded the head.

    Args:
        complete: whether the checkpoint must have all weights of the model.

    Raises:
        CheckpointError: ``complete`` is set, and the checkpoint lacks a part of the model, has tensors of other shapes,
            or has NaN or infinite values; or a class has another label in the data.
    """

    def __init__(self, complete: bool = True) -> None:
        self.complete = complete

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare tensors and class names."""
        report = None
        source = compat.load_from(runner).removeprefix(READER)
        if not isinstance(runner.model, nn.Module) or sharded_part(runner.model):
            runner.logger.warning("the model is sharded: the checkpoint is not compared with it")
        elif self.complete:
            report = require_complete(runner.model, checkpoint, source)
            if not report.is_exact:
                runner.logger.warning(f"checkpoint {source!r}: {report}")
        else:
            report = compare_weights(runner.model, checkpoint)
            level = logging.INFO if report.is_exact else logging.WARNING
            runner.logger.log(level, f"load_from {source!r}: {report}")
        if compat.has_train_loop(runner):
            loader = runner.train_dataloader
        elif runner.test_loop is not None:
            loader = runner.test_dataloader
        else:
            return
        classes = (getattr(loader.dataset, "metainfo", None) or {}).get("classes") or ()
        try:
            if renamed := compare_classes(class_names(checkpoint), classes, source):
                runner.logger.warning(renamed)
        except CheckpointError as error:
            if self.complete:
                raise
            if report is None or _has_head(report):
                runner.logger.warning(f"load_from: the head is loaded, but its labels mean other classes: {error}")


def _has_head(report: Comparison) -> bool:
    """Whether heads are loaded completely: with another number of classes, a part of the head has another shape."""
    return any("head" in name for name in report.loaded) and not any("head" in name for name in report.reshaped)


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stop a run at the first NaN or infinite loss, before a checkpoint of that iteration is written.

    Raises:
        InvalidLossError: raised in the training iteration; names the iteration, the losses, and the last checkpoint
            with finite weights.
    """

    priority = "VERY_HIGH"  # before the checkpoint hook

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Check the losses of the iteration."""
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
            "`mmgcvit check-data` looks for broken annotations"
        )


def _last_good_checkpoint(folder: Path) -> str | None:
    """The newest file of a run with finite weights; files that cannot be read or are no checkpoints do not count."""
    for path in sorted(folder.glob("*.pth"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            checkpoint = read_checkpoint(path, trust=False)
        except (CheckpointError, OSError):
            continue
        if "optimizer" not in checkpoint or not isinstance(weights := checkpoint.get("state_dict"), Mapping):
            continue  # exported weights
        tensors = [value for value in weights.values() if isinstance(value, torch.Tensor)]
        if tensors and all(value.isfinite().all() for value in tensors if value.is_floating_point()):
            return str(path)
    return None


@HOOKS.register_module()
class CorruptImageHook(Hook):
    """Log how many images have been skipped so far (``LoadCheckedImage`` with ``corrupt='skip'``)."""

    priority = "LOW"

    def after_train_epoch(self, runner: Runner) -> None:
        """Log at the end of each epoch."""
        self._log_skipped(runner)

    def after_train(self, runner: Runner) -> None:
        """Log at the end of an iteration-based run."""
        self._log_skipped(runner)

    @staticmethod
    def _log_skipped(runner: Runner) -> None:
        count = sum(
            int(transform.skipped)
            for dataset in inner_datasets(runner.train_dataloader.dataset)
            for transform in _transforms(dataset)
            if hasattr(transform, "skipped")
        )
        if get_world_size() > 1:
            total = torch.tensor(count, device=get_comm_device(None))
            all_reduce(total)
            count = int(total)
        if count:
            runner.logger.warning(f"images skipped so far because they cannot be decoded: {count}")


@HOOKS.register_module()
class ReproducibleHook(Hook):
    """Make a resumed run end with the same weights as an uninterrupted one.

    mmengine resumes weights, optimizer and schedules, but not the random generators. This hook seeds the generators

    - in each iteration, from the seed of the run, the process and the iteration;
    - before each image is loaded, in an epoch-based run, from the seed, the epoch, the worker, the image and how often
      the worker has loaded it in this epoch;
    - before each image is loaded, in an iteration-based run in which mmengine skips indices (from 0.10.12, with torch's
      batch sampler), from the seed, the process, the iteration and the position in the batch.

    In other iteration-based runs, mmengine loads the skipped data again, which restores the state of the workers.
    Images skipped as corrupt, and wrappers that mix several images, shift the positions.
    """

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        """Insert the seeding transforms at the start of the data sets' pipelines."""
        self.seed = runner.seed
        self.epoch = torch.full(
            (2,), -1, dtype=torch.int64
        ).share_memory_()  # epoch, and the number of its batches that were seen before
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        first = None if by_epoch else self._from_place(runner)
        for dataset in inner_datasets(runner.train_dataloader.dataset):
            pipeline = getattr(dataset, "pipeline", None)
            if pipeline is not None and (by_epoch or first):
                pipeline.transforms.insert(0, first or _SeedFromSample(self.seed, self.epoch))

    def _from_place(self, runner: Runner) -> _SeedFromPlace | None:
        """Return the seeding by position if mmengine will skip indices and has not started its workers yet."""
        batch_size = compat.skipped_batch_size(runner.train_loop.dataloader_iterator)
        return None if batch_size is None else _SeedFromPlace(self.seed, runner.iter, batch_size)

    def before_train_epoch(self, runner: Runner) -> None:
        """Pass the epoch and its number of completed batches to the workers, which persist over epochs."""
        done = 0
        if isinstance(runner.train_loop, ResumableTrainLoop):
            done = runner.iter - runner.epoch * len(runner.train_dataloader)
        self.epoch.copy_(torch.tensor([runner.epoch, done]))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the random operations of the model."""
        _seed(self.seed, get_rank(), runner.iter)


class _SeedFromSample:
    """First transform of a pipeline: seeds the following ones from the sample."""

    def __init__(self, seed: int, epoch: torch.Tensor) -> None:
        self.seed, self.epoch, self.rank = seed, epoch, get_rank()  # a spawned worker has no process group
        self.counted = -1
        self.times: Counter = Counter()

    def __call__(self, results: dict) -> dict:
        (epoch, done), sample = self.epoch.tolist(), results.get("sample_idx", 0)
        if self.counted != epoch:
            self.counted, self.times = epoch, Counter()
        worker = torch.utils.data.get_worker_info()
        # A repeated sample must look different each time. In a resumed epoch, batches are distributed from the first
        # worker again; use the worker that would have loaded this batch in an uninterrupted run.
        index = (worker.id + done) % worker.num_workers if worker else 0
        _seed(self.seed, epoch, self.rank, index, sample, self.times[sample])
        self.times[sample] += 1
        return results


class _SeedFromPlace:
    """First transform of a pipeline in an iteration-based run: seeds the following ones by iteration and position."""

    def __init__(self, seed: int, start: int, batch_size: int) -> None:
        self.seed, self.start, self.batch_size, self.rank = seed, start, batch_size, get_rank()
        self.count = 0  # images loaded by this worker; batches are assigned to workers in turn

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


def _transforms(dataset: Any) -> Iterator[Any]:
    """Yield all transforms of a data set's pipeline, including nested ones."""
    waiting = list(getattr(getattr(dataset, "pipeline", None), "transforms", ()))
    while waiting:
        transform = waiting.pop()
        if isinstance(transform, (list, tuple)):
            waiting += transform
            continue
        yield transform
        waiting += [transform.transforms] if isinstance(getattr(transform, "transforms", None), (list, tuple)) else []
