"""Training loop that resumes in the middle of an epoch, and validation loop for raw and averaged weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner, ValLoop
from torch import nn
from torch.utils.data import DataLoader

from mmgcvit.errors import ClassificationDataError
from mmgcvit.registry import LOOPS
from mmgcvit.utils.text import counted

EPOCH_LENGTH = "epoch_length"  # key in the message hub; in iterations


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """mmengine's EpochBasedTrainLoop with support for resuming in the middle of an epoch.

    From a checkpoint written after a number of iterations (``CheckpointHook`` with ``by_epoch=False``), mmengine starts
    the epoch again. This loop skips the batches that were seen, without loading them, and each remaining batch is seen
    once. This, and a schedule by iterations, require epochs of equal length: the length is stored in checkpoints (in
    the message hub), and a run with another length (number of processes, batch size or images) is not resumed.

    Args:
        runner: as in EpochBasedTrainLoop, like the next two.
        dataloader: training data.
        max_epochs: length of the run.
        same_length: False: a run that was stopped between two epochs may be resumed with another length, as with
            mmengine's loop. Its iterations are then counted as if all epochs had the new length.
        **others: further arguments of EpochBasedTrainLoop.

    Raises:
        ClassificationDataError: there are fewer images than a batch, and ``drop_last`` leaves no iteration; or the
            epochs of the resumed run had another number of iterations.
    """

    def __init__(
        self, runner: Runner, dataloader: DataLoader | dict, max_epochs: int, same_length: bool = True, **others: Any
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, **others)
        self.same_length = same_length
        if not len(self.dataloader):
            raise ClassificationDataError(
                f"{counted(len(self.dataloader.dataset), 'training image does', 'training images do')} not fill a "
                "batch of batch_size="
                f"{self.dataloader.batch_size} per process, and drop_last drops incomplete batches; allowed: "
                "a smaller batch size"
            )

    def run(self) -> nn.Module:
        """Train, after checking that the epochs have the same length as in the resumed run."""
        hub, length = self.runner.message_hub, len(self.dataloader)
        done = self.iter - self.epoch * length
        before = hub.get_info(EPOCH_LENGTH, None) if self.iter else None
        if not self.same_length and self.epoch and done:
            old = before or self.iter / self.epoch
            if old != length and self.iter == self.epoch * old:
                print_log(
                    f"an epoch has {counted(length, 'iteration')}; it had {old:g} in the run to resume, which was "
                    "stopped between two epochs",
                    logger="current",
                    level=logging.WARNING,
                )
                self._iter, before, done = self.epoch * length, length, 0
        if (before or length) != length or not 0 <= done <= length:
            raise ClassificationDataError(
                f"the run to resume is at epoch {self.epoch}, iteration {self.iter}, with "
                f"{before or 'another number of'} iterations per epoch; here an epoch has {length}. Resume with the "
                "same number of processes, batch size and images; or start a new run from its weights: "
                "load_from=<the checkpoint>, in another work directory"
            )
        hub.update_info(EPOCH_LENGTH, length)
        return super().run()

    def run_epoch(self) -> None:
        """Run one epoch, or the rest of it after resuming."""
        done = self.iter - self.epoch * len(self.dataloader)
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for index, batch in enumerate(self._rest(done), start=done):
            self.run_iter(index, batch)
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1

    def _rest(self, done: int) -> Iterable:
        if done <= 0:
            return self.dataloader
        loader = self.dataloader
        batches = list(islice(loader.batch_sampler, done, None))
        return DataLoader(
            loader.dataset,
            batch_sampler=batches,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            timeout=loader.timeout,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
        )


@LOOPS.register_module()
class EMAValLoop(ValLoop):
    """mmengine's ValLoop, extended to evaluate both the raw and the averaged weights.

    With an ``EMAHook``, mmengine evaluates only the averaged weights. This loop adds the metrics of the raw weights,
    with the suffix ``_raw`` (``accuracy/top1_raw``).
    """

    def run(self) -> dict:
        """Validate; with averaged weights, validate the raw weights too."""
        self.runner.call_hook("before_val")
        raw = {}
        if any(isinstance(hook, EMAHook) for hook in self.runner.hooks):  # the hook swaps the weights before the epoch
            tables = any(getattr(metric, "classwise", False) for metric in self.evaluator.metrics)
            if tables:  # a metric logs one for each of the two
                print_log("weights without averaging (_raw):", logger="current")
            raw = {f"{name}_raw": value for name, value in self._evaluate_raw().items()}
            if tables:
                print_log("averaged weights:", logger="current")
        self.runner.call_hook("before_val_epoch")
        self.runner.model.eval()
        for index, batch in enumerate(self.dataloader):
            self.run_iter(index, batch)
        metrics = {**self.evaluator.evaluate(len(self.dataloader.dataset)), **raw}
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics

    @torch.no_grad()
    def _evaluate_raw(self) -> dict:
        self.runner.model.eval()
        for batch in self.dataloader:
            self.evaluator.process(data_samples=self.runner.model.val_step(batch), data_batch=batch)
        return self.evaluator.evaluate(len(self.dataloader.dataset))
