"""Check of a classification data set: decodes every image, and compares the classes with other data sets."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor

from mmengine.registry import DATASETS
from PIL import Image

from mmgcvit.datasets.images import unreadable
from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import ClassificationDataError
from mmgcvit.tasks.base import DatasetCheck
from mmgcvit.tasks.classification.dataset import ClassificationDataset, check_names
from mmgcvit.utils.images import any_image_size

CHUNK = 64  # images opened at a time


def check_classes(check: DatasetCheck) -> DatasetReport:
    """Check every image of a classification data set, for all kinds of storage."""
    name, dataset, advance = check.split, check.dataset, check.advance
    train = [report for report in check.earlier if report.name == "train" and report.unit == "labels"]
    trained = tuple(train[-1].classes) if train else ()
    source = os.path.join(str(dataset.get("data_root")), dataset.get("split") or "")
    report = DatasetReport(name, source, unit="labels")
    try:
        built: ClassificationDataset = DATASETS.build({**dataset, "pipeline": []})
        report.classes = dict.fromkeys(built.metainfo["classes"], 0)
        if trained and not built.given_classes:
            check_names(f"the {name} data", tuple(report.classes), "the training data's", trained)
    except ClassificationDataError as error:
        report.problems.append(Problem("classes", source, str(error), True))
        if not report.classes:
            return report
    heads = (check.model or {}).get("num_classes")
    if heads is not None and len(report.classes) > heads:
        report.problems.append(
            Problem(
                "classes", source, f"{len(report.classes)} classes; allowed: at most model.num_classes={heads}", True
            )
        )
    report.images = report.objects = len(built)
    with ThreadPoolExecutor(check.workers) as pool:
        for start in range(0, len(built), CHUNK):
            classes, contents = [], []
            for index in range(start, min(start + CHUNK, len(built))):
                file, label = built.reader[index][:2]
                classes.append(built.metainfo["classes"][label])
                with file:  # sequentially, as all images of a tar file share a file object
                    contents.append(file.read())
            for index, (size, reason) in enumerate(pool.map(_decoded, contents), start):
                advance(report.images)
                report.classes[classes[index - start]] += 1
                if reason:
                    report.problems.append(Problem("image", built.name(index), reason, True))
                else:
                    report.kept += 1
                    report.sizes[size] += 1
    report.problems += [
        Problem("class", source, f"no image of class {label!r}", False)
        for label, count in report.classes.items()
        if not count
    ]
    return report


def _decoded(content: bytes) -> tuple[tuple[int, int] | None, str | None]:
    """Width and height of an image, or why it cannot be decoded."""
    reason = unreadable(content)
    if reason:
        return None, reason
    with any_image_size(), Image.open(io.BytesIO(content)) as image:
        return image.size, None
