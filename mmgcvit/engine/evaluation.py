"""Evaluation of predictions on a data set of a config, without a runner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmgcvit.datasets.pipelines import use_checked_loading
from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.errors import MMGCViTError, UsageError
from mmgcvit.utils.text import describe

#: Predictions for a batch of a data loader.
Step = Callable[[dict], Sequence[Any]]


def build_loader(cfg: Config, split: str = "val") -> DataLoader:
    """Build the data loader of a split, with images loaded as in training.

    Raises:
        UsageError: the data cannot be read.
        MMGCViTError: they are not as the data set expects them.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    loader = copy.deepcopy(cfg[f"{split}_dataloader"])
    use_checked_loading(loader)
    try:
        return Runner.build_dataloader(loader, seed=0)
    except MMGCViTError:
        raise
    except (OSError, ValueError, KeyError) as error:  # missing files, damaged annotations
        raise UsageError(f"{split}_dataloader.dataset: cannot be loaded: {describe(error)}") from error


def image_path(dataset: Any, index: int) -> Path | None:
    """Return the image file of a sample of a built data set; None if its images are not single files."""
    if hasattr(dataset, "path"):  # ClassificationDataset
        return dataset.path(index)
    path = dataset.get_data_info(index).get("img_path")
    return None if path is None else Path(path)


def image_paths(dataset: Any) -> Iterator[Path]:
    """Yield the image files of a built data set, which may have wrappers around it."""
    for inner in inner_datasets(dataset):
        for index in range(len(inner)):
            if (path := image_path(inner, index)) is not None:
                yield path


def is_of_class(name: str, classes: Iterable[str]) -> bool:
    """Whether a metric is that of one class, such as 'coco/cat_precision', 'IoU.cat' or 'coco_panoptic/cat_PQ_raw'."""
    ends = ("{}_precision", "bbox_{}_precision", "segm_{}_precision", "IoU.{}", "Acc.{}", "{}_PQ")
    names = {text.format(label) for label in classes for text in ends}
    found = {name, name.removesuffix("_raw")}  # of an EMAValLoop
    return not names.isdisjoint(found | {one.partition("/")[2] for one in found})


def tell_classes_apart(evaluator: Any) -> None:
    """Let the results of each class of a CocoMetric for boxes and masks have different names, in a config in place."""
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        several = isinstance(metric, MutableMapping) and isinstance(metric.get("metric"), (list, tuple))
        if several and metric.get("classwise") and metric.get("type") in ("CocoMetric", "mmdet.CocoMetric"):
            metric["type"] = "mmgcvit.CocoMetric"


def evaluate(cfg: Config, loader: DataLoader, step: Step, split: str = "val") -> dict[str, float]:
    """Compute the metrics of a config.

    Args:
        cfg: the config. It is not changed.
        loader: from :func:`build_loader`.
        step: predicts on a batch.
        split: 'val' or 'test': selects the evaluator.

    Returns:
        The metrics by name.

    Raises:
        UsageError: the metrics cannot be computed from the predictions.
    """
    metrics = copy.deepcopy(cfg[f"{split}_evaluator"])
    tell_classes_apart(metrics)
    evaluator = Evaluator(metrics)
    dataset: Any = loader.dataset
    evaluator.dataset_meta = getattr(dataset, "metainfo", None)
    for metric in evaluator.metrics:
        if hasattr(metric, "dataset"):
            metric.dataset = dataset
    for data in loader:
        evaluator.process(data_samples=list(step(data)), data_batch=data)
    try:
        return {name: float(value) for name, value in evaluator.evaluate(len(dataset)).items()}
    except Exception as error:  # metrics raise many types of errors
        raise UsageError(f"the metrics of {split}_evaluator cannot be computed: {describe(error)}") from error
