"""Test sets of detection without annotations: their predictions can be written, but not evaluated."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mmgcvit.datasets.problems import metrics_of
from mmgcvit.registry import type_name
from mmgcvit.tasks.detection.annotations import coco_like, read_lists

METRICS = ("CocoMetric", "LVISMetric")


def why_not_evaluated(dataset: Mapping, evaluator: Any) -> str | None:
    """Return why the metric of a COCO-like test set would be meaningless or fail; None if it can be computed.

    Raises:
        AnnotationError: the annotation file cannot be read.
    """
    metrics = [metric for metric in metrics_of(evaluator) if type_name(metric) in METRICS]
    for metric in metrics:
        if metric.get("format_only") and not metric.get("outfile_prefix"):
            return f"{type_name(metric)} with format_only=True: outfile_prefix=None; allowed: a path for the results"
    evaluated = [metric for metric in metrics if not metric.get("format_only")]
    if not evaluated or not dataset.get("test_mode") or not coco_like(dataset) or dataset.get("backend_args"):
        return None
    if not isinstance(dataset.get("ann_file"), str):
        return None  # an error of its own
    path = os.path.join(dataset.get("data_root") or "", dataset["ann_file"])
    if read_lists(path, test_mode=True)["annotations"]:
        return None
    return (
        f"{path}: has no annotations, so there is nothing to evaluate. To predict on these images, use "
        f"tools/image_demo.py with --ann-file; or set format_only=True and an outfile_prefix in the evaluator"
    )
