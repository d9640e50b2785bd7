"""Check of panoptic data sets: before a run the annotations, headers and some PNGs; else every image and PNG."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmgcvit.datasets.files import size_problem
from mmgcvit.datasets.problems import Problem, metrics_of, refuse
from mmgcvit.datasets.processes import Processes
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import type_name
from mmgcvit.tasks.base import DatasetCheck
from mmgcvit.tasks.detection.annotations import image_problems
from mmgcvit.tasks.panoptic.annotations import PanopticImage, check_png, header_problems, read_panoptic
from mmgcvit.utils.text import counted

DECODED = 50  # PNGs that are decoded before a run; of larger data sets, as many at equal distances
INSTALL = "pip install git+https://github.com/cocodataset/panopticapi.git"


def without_panopticapi(metrics: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[Problem]:
    """Yield mmdet's metrics that need panopticapi, if it is not installed."""
    if importlib.util.find_spec("panopticapi") is not None:
        return
    for where, metric in metrics:
        if type_name(metric) == "CocoPanopticMetric":
            what = f"CocoPanopticMetric needs panopticapi; allowed: type='mmgcvit.PanopticMetric', or `{INSTALL}`"
            yield Problem("metric", where, what, True)


def _labelled(evaluator: Any) -> bool:
    """Whether predictions are evaluated or trained on, and not only written by the metrics."""
    metrics = metrics_of(evaluator)
    return not metrics or not all(metric.get("format_only") for metric in metrics)


def check_before_run(dataset: Mapping[str, Any], evaluator: Any = None) -> None:
    """Check the annotations of a local data set, the headers of its files, and some of its PNGs.

    Args:
        dataset: config of the data set.
        evaluator: the metric or metrics, if any. If they only write predictions, no segments are needed.

    Raises:
        AnnotationError: a run would fail, or learn wrong things.
    """
    if dataset.get("backend_args"):
        return
    found = read_panoptic(dataset, _labelled(evaluator))
    refuse(found.problems)
    images = [image for image in found.images if isinstance(image, PanopticImage)]
    refuse([*image_problems(images, dataset), *header_problems(images)])
    chosen = images[:: max(1, -(-len(images) // DECODED))]
    refuse([problem for image in chosen for problem in check_png(image)])


def check_panoptic(check: DatasetCheck) -> DatasetReport:
    """Check every annotation, image and PNG of a data set."""
    dataset = check.dataset
    source = os.path.join(dataset.get("data_root") or "", str(dataset.get("ann_file") or ""))
    report = DatasetReport(check.split, source, unit="segments")
    try:
        annotations = read_panoptic(dataset, _labelled(check.evaluator))
    except AnnotationError as error:
        report.problems.append(Problem("annotations", source, str(error), True))
        return report
    images = [image for image in annotations.images if isinstance(image, PanopticImage)]
    report.problems = list(annotations.problems)
    report.images, report.objects, report.crowds = len(images), annotations.objects, annotations.crowds
    report.kept = sum(len(image.labels) for image in images)
    report.empty = sum(bool(image.png) and not image.boxes for image in images)
    if report.empty and (dataset.get("filter_cfg") or {}).get("filter_empty_gt") and not dataset.get("test_mode"):
        text = f"{report.empty} of {counted(report.images, 'image')} without things, left out (filter_empty_gt=True)"
        report.problems.append(Problem("images without objects", source, text, False))
    report.classes = dict.fromkeys(annotations.classes, 0)
    for image in images:
        for label in image.labels:
            report.classes[label] += 1
    for label, count in report.classes.items():
        if not count and report.kept:
            report.problems.append(Problem("class", source, f"no segment of class {label!r}", False))
    report.files = [image.path for image in images]
    with Processes(_Look(dataset, check.model), check.workers) as pool:
        for image, (size, problems) in zip(images, pool.map(images, lambda i: images[i].path), strict=True):
            check.advance(report.images)
            report.problems += problems
            if size:
                report.sizes[size] += 1
                if size != (image.width, image.height):
                    report.problems.append(size_problem(image.path, size, (image.width, image.height)))
    return report


class _Look:
    """Decodes an image and its PNG."""

    def __init__(self, dataset: Mapping[str, Any], model: Mapping[str, Any] | None) -> None:
        from mmgcvit.datasets.loading import ImageChecker

        self.check = ImageChecker(dataset, model)

    def __call__(self, image: PanopticImage) -> tuple[tuple[int, int] | None, list[Problem]]:
        size, problems = self.check(image.path)
        return size, [*problems, *check_png(image)]
