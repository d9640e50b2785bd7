"""Test sets of segmentation without label maps: their predictions can be written, but not evaluated."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from mmgcvit.datasets.problems import Problem, metrics_of
from mmgcvit.datasets.processes import Processes
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import type_name
from mmgcvit.tasks.base import DatasetCheck
from mmgcvit.utils import summarize

HINT = (
    "to predict on images without label maps, use `mmgcvit predict`; or set format_only=True and an output_dir in "
    "the evaluator, and remove LoadAnnotations from the pipeline"
)


def is_unlabelled(dataset: Mapping) -> bool:
    """Whether a local data set of mmseg has no folder of label maps, or an empty one."""
    prefix = dataset.get("data_prefix") or {}
    if dataset.get("backend_args") or not prefix.get("img_path"):
        return False
    if prefix.get("seg_map_path") is None:
        return True
    folder = Path(dataset.get("data_root") or "", prefix["seg_map_path"])
    return not folder.is_dir() or next(folder.iterdir(), None) is None


def formats_only(evaluator: Any) -> bool:
    """Whether the metrics of a data set only write predictions."""
    metrics = metrics_of(evaluator)
    return bool(metrics) and all(metric.get("format_only") for metric in metrics)


def image_paths(dataset: Mapping, evaluator: Any) -> list[str]:
    """Return the images of a data set whose predictions are written, and check that they can be.

    Raises:
        AnnotationError: the metric has no ``output_dir``; the pipeline loads label maps, of which there are none; there
            are no images; or two predictions would be written to the same file.
    """
    for metric in metrics_of(evaluator):
        if type_name(metric) == "IoUMetric" and not metric.get("output_dir"):
            raise AnnotationError("IoUMetric with format_only=True: output_dir=None; allowed: a folder")
    if is_unlabelled(dataset) and any(type_name(step) == "LoadAnnotations" for step in dataset.get("pipeline") or ()):
        raise AnnotationError(f"the pipeline has LoadAnnotations, but there are no label maps: {HINT}")
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False, "serialize_data": False})
        paths = [built.get_data_info(i)["img_path"] for i in range(len(built))]
    except Exception as error:  # report any failure of a data set
        raise AnnotationError(f"{dataset.get('type')} cannot be built: {type(error).__name__}: {error}") from error
    if not paths:
        folder = os.path.join(dataset.get("data_root") or "", (dataset.get("data_prefix") or {}).get("img_path") or "")
        raise AnnotationError(f"no images *{built.img_suffix} in {folder} (img_suffix of the data set)")
    twice = [name for name, count in Counter(Path(path).stem for path in paths).items() if count > 1]
    if twice:
        raise AnnotationError(
            f"IoUMetric would write the predictions of several images to the same file: {summarize(twice)}; "
            "`mmgcvit predict` keeps the folders"
        )
    return paths


def check_unlabelled(check: DatasetCheck) -> DatasetReport:
    """Decode every image of a data set without label maps."""
    from mmgcvit.datasets.loading import ImageChecker

    source = os.path.join(
        check.dataset.get("data_root") or "", (check.dataset.get("data_prefix") or {}).get("img_path") or ""
    )
    report = DatasetReport(check.split, source, unit="pixels")
    if not formats_only(check.evaluator):
        report.problems.append(Problem("label maps", source, f"no label maps: {HINT}", True))
        return report
    try:
        paths = image_paths(check.dataset, check.evaluator)
    except AnnotationError as error:
        report.problems.append(Problem("images", source, str(error), True))
        return report
    report.images = report.empty = len(paths)
    with Processes(ImageChecker(check.dataset, check.model), check.workers) as pool:
        for size, problems in pool.map(paths):
            check.advance(report.images)
            report.problems += problems
            if size:
                report.sizes[size] += 1
    return report
