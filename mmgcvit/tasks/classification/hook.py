"""What a run of a classifier needs beside its model: classes that fit, images' names, throughput."""

from __future__ import annotations

import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmgcvit.checkpoint.layouts import take_apart, weights_of
from mmgcvit.classification import GCViTClassifier
from mmgcvit.datasets.classification import ClassificationDataset, check_names
from mmgcvit.errors import ClassificationDataError


@HOOKS.register_module()
class ClassificationHook(Hook):
    """Sees that data sets, head and checkpoint mean the same classes, and tells how fast evaluation was.

    A class folder that is missing in one split shifts the labels of all that follow: accuracy falls without a word.
    Here the classes' names are compared, of the training and the validation data, and in a test of the checkpoint's
    and the test data's. A data set whose ``classes`` are given in the config is the user's word; its number is looked
    at alone.

    Raises:
        ClassificationDataError: before the run: classes that differ, or more of them than the head has; before a test:
            a checkpoint that has nothing for the head, whose answers would be drawn by lot.
    """

    def __init__(self) -> None:
        self.trained: tuple[str, ...] | None = None
        self.headless = ""  # why the head that is to be tested has not been trained
        self.begin = self.images = 0

    def before_run(self, runner: Runner) -> None:
        """Compare training and validation data."""
        if runner._train_loop is None or isinstance(runner._train_loop, dict):
            return  # no training
        train = runner.train_dataloader.dataset
        _check_count("train", train, runner)
        if runner.val_loop is not None:
            val = runner.val_dataloader.dataset
            _check_count("val", val, runner)
            if isinstance(val, ClassificationDataset) and not val.given_classes:
                check_names(
                    "the validation data", val.metainfo["classes"], "the training data's", train.metainfo["classes"]
                )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the names that the checkpoint was trained for, and whether it has a head."""
        self.trained = ((checkpoint.get("meta") or {}).get("dataset_meta") or {}).get("classes")
        if isinstance(_model(runner), GCViTClassifier):
            own = set(_model(runner).backbone.state_dict())
            head = take_apart(weights_of(checkpoint), also=own).backbone.get("head.weight")
            if head is None:
                self.headless = "no head"
            elif len(head) != _model(runner).num_classes:
                self.headless = f"a head of {len(head)} classes"

    def before_train(self, runner: Runner) -> None:
        """A head that is trained now is no longer the checkpoint's."""
        self.headless = ""

    def before_val(self, runner: Runner) -> None:
        """Tell the metrics the images' names, before any evaluation: that of the raw weights comes first."""
        _name_images(runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        """Compare checkpoint and data, and start the clock."""
        dataset = runner.test_dataloader.dataset
        _check_count("test", dataset, runner)
        if self.headless:
            raise ClassificationDataError(
                f"the checkpoint has {self.headless}; allowed in a test: one with a head of "
                f"model.num_classes={_classes(runner)}, as the answers of another would be "
                "drawn by lot"
            )
        if isinstance(dataset, ClassificationDataset) and not dataset.given_classes:
            names = dataset.metainfo["classes"]
            if self.trained:
                check_names("the test data", names, "the checkpoint's", self.trained)
            elif len(names) != _classes(runner):
                raise ClassificationDataError(
                    f"the test data ({dataset.root}) has {len(names)} class folders; the head has {_classes(runner)} "
                    "classes. Where the data has a part of them, give their order: classes=<file with a name a line>"
                )
        _name_images(runner.test_loop)
        self.images = 0

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count, from the first batch's end on: it waits for the workers to start."""
        if batch_idx == 0:
            self.begin = time.perf_counter()
        else:
            self.images += len(outputs)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Tell the throughput of this process."""
        if self.images:
            seconds = time.perf_counter() - self.begin
            runner.logger.info(
                f"throughput, loading included: {self.images / seconds:.1f} images/s "
                f"({self.images} in {seconds:.1f} s, without the first batch)"
            )


def _model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _classes(runner: Runner) -> int:
    return _model(runner).num_classes


def _check_count(split: str, dataset: Any, runner: Runner) -> None:
    if not isinstance(dataset, ClassificationDataset):
        return
    count, allowed = len(dataset.metainfo["classes"]), _classes(runner)
    if count > allowed:
        raise ClassificationDataError(
            f"the {split} data ({dataset.root}) has {count} classes; allowed: at most model.num_classes={allowed}"
        )


def _name_images(loop: Any) -> None:
    for metric in loop.evaluator.metrics:
        if hasattr(metric, "dataset"):
            metric.dataset = loop.dataloader.dataset
