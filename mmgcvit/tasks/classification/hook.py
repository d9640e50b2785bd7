"""Hook for runs of a classifier: class consistency, image names, throughput."""

from __future__ import annotations

import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmgcvit.checkpoint.complete import class_names, compare_classes
from mmgcvit.compat import has_train_loop
from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.errors import ClassificationDataError
from mmgcvit.registry import HOOKS
from mmgcvit.tasks.classification.dataset import ClassificationDataset, check_names
from mmgcvit.utils.text import counted


@HOOKS.register_module()
class ClassificationHook(Hook):
    """Check that data sets, head, checkpoint and teacher have the same classes, and log the throughput of evaluation.

    A class folder that is missing in one split shifts the labels of all following classes, and accuracy silently drops.
    The class names of training and validation data are compared, and in a test those of checkpoint and test data. For a
    data set whose ``classes`` are given in the config, only the number of classes is checked here; its names may be
    other names of the same classes (see :class:`~mmgcvit.engine.LoadedWeightsHook`).

    Raises:
        ClassificationDataError: before the run, if classes differ or outnumber the outputs of the head.
        CheckpointError: before the run, if a teacher has learned the classes in another order.
    """

    def __init__(self) -> None:
        self.trained: tuple[str, ...] = ()
        self.begin, self.images = 0.0, 0

    def before_run(self, runner: Runner) -> None:
        """Compare training and validation data."""
        if not has_train_loop(runner):
            return
        trained = list(inner_datasets(runner.train_dataloader.dataset))
        for dataset in trained:
            _check_count("train", dataset, runner)
        train = trained[0]
        if taught := getattr(_model(runner), "taught_classes", ()):
            renamed = compare_classes(taught, train.metainfo["classes"], _model(runner).teacher.checkpoint)
            if renamed:
                runner.logger.warning(f"teacher: {renamed}")
        if runner.val_loop is not None:
            val = runner.val_dataloader.dataset
            _check_count("val", val, runner)
            if isinstance(val, ClassificationDataset) and not val.given_classes:
                check_names(
                    "the validation data", val.metainfo["classes"], "the training data's", train.metainfo["classes"]
                )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the classes of checkpoint and test data."""
        self.trained = class_names(checkpoint)
        if has_train_loop(runner) or not self.trained:
            return
        dataset = runner.test_dataloader.dataset
        if isinstance(dataset, ClassificationDataset) and not dataset.given_classes:
            check_names("the test data", dataset.metainfo["classes"], "the checkpoint's", self.trained)

    def before_val(self, runner: Runner) -> None:
        """Pass the image names to the metrics before any evaluation (the raw weights are evaluated first)."""
        _name_images(runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        """Check the number of classes, and pass the image names to the metrics."""
        dataset = runner.test_dataloader.dataset
        _check_count("test", dataset, runner)
        if isinstance(dataset, ClassificationDataset) and not dataset.given_classes:
            names = dataset.metainfo["classes"]
            if not self.trained and len(names) != _classes(runner):
                raise ClassificationDataError(
                    f"the test data ({dataset.root}) has {counted(len(names), 'class folder')}; "
                    f"the head has {counted(_classes(runner), 'class')}. If the data has only some of them, set the "
                    "order: classes=<file with one name per line>"
                )
        _name_images(runner.test_loop)
        self.images = 0

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count images, except those of the first batch, which includes the start of the workers."""
        if batch_idx == 0:
            self.begin = time.perf_counter()
        else:
            self.images += len(outputs)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Log the throughput of this process."""
        if self.images:
            seconds = time.perf_counter() - self.begin
            runner.logger.info(
                f"throughput, loading included: {self.images / seconds:.1f} images/s "
                f"({self.images} in {seconds:.1f} s, without the first batch)"
            )


def _model(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _classes(runner: Runner) -> int:
    return _model(runner).num_classes


def _check_count(split: str, dataset: Any, runner: Runner) -> None:
    if not isinstance(dataset, ClassificationDataset):
        return
    count, allowed = len(dataset.metainfo["classes"]), _classes(runner)
    if count > allowed:
        raise ClassificationDataError(
            f"the {split} data ({dataset.root}) has {counted(count, 'class')}; allowed: at most "
            f"model.num_classes={allowed}"
        )


def _name_images(loop: Any) -> None:
    for metric in loop.evaluator.metrics:
        if hasattr(metric, "dataset"):
            metric.dataset = loop.dataloader.dataset
