"""Check of a detection data set: reads every annotation and decodes every image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from mmgcvit.datasets.files import size_problem
from mmgcvit.datasets.images import image_size
from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.detection.annotations import coco_like, read_dataset
from mmgcvit.tasks.detection.other import read_other


def check_boxes(
    name: str, dataset: Mapping, workers: int, advance: Callable[[int], None], evaluator: object = None
) -> DatasetReport:
    """Check a detection data set.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: data set config.
        workers: threads that decode images.
        advance: called after each image with the total number of images.
        evaluator: the metric or metrics for this data set, if any.
    """
    source = os.path.join(dataset.get("data_root") or "", str(dataset.get("ann_file") or ""))
    report = DatasetReport(name, source)
    try:
        annotations = read_dataset(dataset, evaluator) if coco_like(dataset) else read_other(dataset)
    except AnnotationError as error:
        report.problems.append(Problem("annotations", source, str(error), True))
        return report
    report.problems = list(annotations.problems)
    report.images, report.objects, report.crowds = len(annotations.images), annotations.objects, annotations.crowds
    report.kept = sum(len(image.boxes) for image in annotations.images)
    report.empty = sum(not image.boxes for image in annotations.images)
    report.classes = dict.fromkeys(annotations.classes, 0)
    report.classes.update(Counter(label for image in annotations.images for label in image.labels))
    for label, count in report.classes.items():
        if not count and report.kept:
            report.problems.append(Problem("class", source, f"no object of class {label!r}", False))
    report.files = [image.path for image in annotations.images]
    with ThreadPoolExecutor(workers) as pool:
        for image, (size, reason) in zip(annotations.images, pool.map(image_size, report.files), strict=True):
            advance(report.images)
            if reason:
                report.problems.append(Problem("image", image.path, reason, True))
            elif size:
                report.sizes[size] += 1
                if image.width and size != (image.width, image.height):
                    report.problems.append(size_problem(image.path, size, (image.width, image.height)))
    return report
