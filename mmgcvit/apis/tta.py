"""Test-time augmentation."""

from __future__ import annotations

from mmengine.config import Config

from mmgcvit.datasets.pipelines import image_loaders
from mmgcvit.datasets.problems import metrics_of
from mmgcvit.registry import type_name
from mmgcvit.tasks import TASKS, find_task


def use_tta(cfg: Config) -> None:
    """Replace the config's test pipeline by one with several scales, each with and without mirroring.

    If the config has a ``tta_model`` and a ``tta_pipeline``, like those in ``configs/segmentation``, they are used. If
    this pipeline loads images without any argument, they are loaded as in the test pipeline. A DetTTAModel is replaced
    by its subclass :class:`~mmgcvit.tasks.detection.tta.BoxTTAModel`. Otherwise a detector uses those of
    ``configs/detection/_base_/tta.py``, at 0.8, 1 and 1.2 times the scale of the test pipeline's Resize. Only boxes are
    merged: masks and the metric 'segm' are dropped.

    Raises:
        UsageError: the config lacks one of the two and is not a detector config, or its test pipeline has no Resize.
    """
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        (find_task(cfg.model) or TASKS[-1]).set_default_tta(cfg)
    elif type_name(cfg.tta_model) == "DetTTAModel":  # it fails on masks, as those of mmdet's RTMDet-Ins
        cfg.tta_model.type = "mmgcvit.BoxTTAModel"
    plain = {"type", "backend_args"}
    own = next(image_loaders(cfg.test_dataloader.dataset.pipeline), {})
    for loader in image_loaders(cfg.tta_pipeline):
        if set(loader) <= plain < set(own) | plain:
            loader.update(own)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if type_name(cfg.tta_model) == "BoxTTAModel":
        for metric in metrics_of(cfg.get("test_evaluator")):
            if "segm" in metric.get("metric", ()):
                metric.metric = "bbox"
