"""Test-time augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config

from mmgcvit.registry import type_name
from mmgcvit.tasks import TASKS, find_task


def use_tta(cfg: Config) -> None:
    """Replace the config's test pipeline by one with several scales, each mirrored too.

    A config's own ``tta_model`` and ``tta_pipeline``, which those in ``configs/segmentation`` have, are used as they
    are. Otherwise a detector gets those of ``configs/detection/_base_/tta.py``, at 0.8, 1 and 1.2 times the scale of
    the test pipeline's Resize. Of detections only boxes are merged: masks are dropped, and the metric 'segm' with them.

    Raises:
        UsageError: a config without one of the two that is no detector's, or whose test pipeline has no Resize.
    """
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        (find_task(cfg.model) or TASKS[-1]).set_default_tta(cfg)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if type_name(cfg.tta_model) == "BoxTTAModel":
        for evaluator in listed(cfg.get("test_evaluator")):
            if "segm" in evaluator.get("metric", ()):
                evaluator.metric = "bbox"


def listed(value: Any) -> Sequence:
    """A list or tuple as it is, anything else as the only item of a list."""
    return value if isinstance(value, (list, tuple)) else [value] if value else []
