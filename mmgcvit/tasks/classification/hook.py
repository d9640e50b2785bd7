"""Hook for runs of a classifier: class consistency, image names, throughput."""

from __future__ import annotations

import time
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmgcvit.checkpoint.layouts import split_state_dict, unwrap_checkpoint
from mmgcvit.compat import has_train_loop
from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.errors import ClassificationDataError
from mmgcvit.registry import HOOKS
from mmgcvit.tasks.classification.classifier import GCViTClassifier
from mmgcvit.tasks.classification.dataset import ClassificationDataset, check_names


@HOOKS.register_module()
class ClassificationHook(Hook):
    """Check that data sets, head and checkpoint have the same classes, and log the throughput of evaluation.

    A class folder that is missing in one split shifts the labels of all following classes, and accuracy silently drops.
    The class names of training and validation data are compared, and in a test those of checkpoint and test data. For a
    data set whose ``classes`` are given in the config, only the number of classes is checked.

    Raises:
        ClassificationDataError: before the run, if classes differ or outnumber the outputs of the head; before a test,
            if the checkpoint has no weights for the head, which would stay randomly initialised.
    """

    def __init__(self) -> None:
        self.trained: tuple[str, ...] | None = None
        self.headless = ""  # why the checkpoint cannot provide the head, '' if it can
        self.begin, self.images = 0.0, 0

    def before_run(self, runner: Runner) -> None:
        """Compare training and validation data."""
        if not has_train_loop(runner):
            return
        trained = list(inner_datasets(runner.train_dataloader.dataset))
        for dataset in trained:
            _check_count("train", dataset, runner)
        train = trained[0]
        if runner.val_loop is not None:
            val = runner.val_dataloader.dataset
            _check_count("val", val, runner)
            if isinstance(val, ClassificationDataset) and not val.given_classes:
                check_names(
                    "the validation data", val.metainfo["classes"], "the training data's", train.metainfo["classes"]
                )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the class names of the checkpoint, and whether it has a head."""
        self.trained = ((checkpoint.get("meta") or {}).get("dataset_meta") or {}).get("classes")
        if isinstance(_model(runner), GCViTClassifier):
            own = set(_model(runner).backbone.state_dict())
            head = split_state_dict(unwrap_checkpoint(checkpoint), also=own).backbone.get("head.weight")
            if head is None:
                self.headless = "no head"
            elif len(head) != _model(runner).num_classes:
                self.headless = f"a head of {len(head)} classes"

    def before_train(self, runner: Runner) -> None:
        """Discard the information about the checkpoint's head, which is trained now."""
        self.headless = ""

    def before_val(self, runner: Runner) -> None:
        """Pass the image names to the metrics before any evaluation (the raw weights are evaluated first)."""
        _name_images(runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        """Compare the classes of checkpoint and data."""
        dataset = runner.test_dataloader.dataset
        _check_count("test", dataset, runner)
        if self.headless:
            raise ClassificationDataError(
                f"the checkpoint has {self.headless}; allowed in a test: one with a head of "
                f"model.num_classes={_classes(runner)}; the head would stay "
                "randomly initialised, so its predictions would be meaningless"
            )
        if isinstance(dataset, ClassificationDataset) and not dataset.given_classes:
            names = dataset.metainfo["classes"]
            if self.trained:
                check_names("the test data", names, "the checkpoint's", self.trained)
            elif len(names) != _classes(runner):
                raise ClassificationDataError(
                    f"the test data ({dataset.root}) has {len(names)} class folders; the head has {_classes(runner)} "
                    "classes. If the data has only some of them, set the order: classes=<file with one name per line>"
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
            f"the {split} data ({dataset.root}) has {count} classes; allowed: at most model.num_classes={allowed}"
        )


def _name_images(loop: Any) -> None:
    for metric in loop.evaluator.metrics:
        if hasattr(metric, "dataset"):
            metric.dataset = loop.dataloader.dataset
