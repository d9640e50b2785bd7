"""Evaluation of predictions on a data set of a config, without a runner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmgcvit.datasets.pipelines import use_checked_loading

#: Predictions for a batch of a data loader.
Step = Callable[[dict], Sequence[Any]]


def build_loader(cfg: Config, split: str = "val") -> DataLoader:
    """Build the data loader of a split, with images loaded as in training."""
    init_default_scope(cfg.get("default_scope", "mmengine"))
    loader = copy.deepcopy(cfg[f"{split}_dataloader"])
    use_checked_loading(loader)
    return Runner.build_dataloader(loader, seed=0)


def evaluate(cfg: Config, loader: DataLoader, step: Step, split: str = "val") -> dict[str, float]:
    """Compute the metrics of a config.

    Args:
        cfg: the config. It is not changed.
        loader: from :func:`build_loader`.
        step: predicts on a batch.
        split: 'val' or 'test': selects the evaluator.

    Returns:
        The metrics by name.
    """
    evaluator = Evaluator(copy.deepcopy(cfg[f"{split}_evaluator"]))
    dataset: Any = loader.dataset
    evaluator.dataset_meta = getattr(dataset, "metainfo", None)
    for metric in evaluator.metrics:
        if hasattr(metric, "dataset"):
            metric.dataset = dataset
    for data in loader:
        evaluator.process(data_samples=list(step(data)), data_batch=data)
    return {name: float(value) for name, value in evaluator.evaluate(len(dataset)).items()}
