"""Check of a detection data set: reads every annotation and decodes every image."""

from __future__ import annotations

import os
from collections import Counter

from mmgcvit.datasets.files import size_problem
from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.processes import Processes
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.base import DatasetCheck
from mmgcvit.tasks.detection.annotations import coco_like, read_dataset
from mmgcvit.tasks.detection.other import read_other
from mmgcvit.utils.text import counted


def check_boxes(check: DatasetCheck) -> DatasetReport:
    """Check every annotation and image of a detection data set."""
    from mmgcvit.datasets.loading import ImageChecker

    dataset, evaluator = check.dataset, check.evaluator
    source = os.path.join(dataset.get("data_root") or "", str(dataset.get("ann_file") or ""))
    report = DatasetReport(check.split, source)
    try:
        annotations = read_dataset(dataset, evaluator) if coco_like(dataset) else read_other(dataset)
    except AnnotationError as error:
        report.problems.append(Problem("annotations", source, str(error), True))
        return report
    report.problems = list(annotations.problems)
    report.images, report.objects, report.crowds = len(annotations.images), annotations.objects, annotations.crowds
    report.kept = sum(len(image.boxes) for image in annotations.images)
    report.empty = sum(not image.boxes for image in annotations.images)
    if report.empty and (dataset.get("filter_cfg") or {}).get("filter_empty_gt") and not dataset.get("test_mode"):
        text = f"{report.empty} of {counted(report.images, 'image')} without objects, left out (filter_empty_gt=True)"
        report.problems.append(Problem("images without objects", source, text, False))
    report.classes = dict.fromkeys(annotations.classes, 0)
    report.classes.update(Counter(label for image in annotations.images for label in image.labels))
    for label, count in report.classes.items():
        if not count and report.kept:
            report.problems.append(Problem("class", source, f"no object of class {label!r}", False))
    report.files = [image.path for image in annotations.images]
    with Processes(ImageChecker(dataset, check.model), check.workers) as pool:
        for image, (size, problems) in zip(annotations.images, pool.map(report.files), strict=True):
            check.advance(report.images)
            report.problems += problems
            if size:
                report.sizes[size] += 1
                if image.width and size != (image.width, image.height):
                    report.problems.append(size_problem(image.path, size, (image.width, image.height)))
    return report
