"""Test sets of detection whose predictions are only written, not evaluated."""

from __future__ import annotations

from typing import Any

from mmgcvit.datasets.problems import metrics_of
from mmgcvit.registry import type_name

METRICS = ("CocoMetric", "LVISMetric")


def why_not_written(evaluator: Any) -> str | None:
    """Return why a metric that only writes predictions cannot; None if it can."""
    for metric in metrics_of(evaluator):
        if type_name(metric) in METRICS and metric.get("format_only") and not metric.get("outfile_prefix"):
            return f"{type_name(metric)} with format_only=True: outfile_prefix=None; allowed: a path for the results"
    return None
