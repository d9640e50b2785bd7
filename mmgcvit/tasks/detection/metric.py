"""COCO's metrics with a name of its own for each result of a class."""

from __future__ import annotations

from mmdet.evaluation import CocoMetric as MMDetCocoMetric

from mmgcvit.registry import METRICS

OF_A_CLASS = "_precision"  # end of mmdet's names for the AP of a class


@METRICS.register_module()
class CocoMetric(MMDetCocoMetric):
    """mmdet's CocoMetric, in which the AP of a class is called ``bbox_cat_precision`` and ``segm_cat_precision``.

    With several metrics, mmdet calls both of them ``cat_precision``: the value of the last metric replaces the others.
    """

    metrics: list[str]

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the metrics one after another."""
        if not self.classwise or len(self.metrics) < 2:
            return super().compute_metrics(results)
        found: dict[str, float] = {}
        wanted = self.metrics
        try:
            for metric in wanted:
                self.metrics = [metric]
                for name, value in super().compute_metrics(results).items():
                    found[f"{metric}_{name}" if name.endswith(OF_A_CLASS) else name] = value
        finally:
            self.metrics = wanted
        return found
