"""Check of a classification data set: decodes every image, and compares the classes with other data sets."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from functools import partial

import numpy as np
from mmengine.registry import DATASETS

from mmgcvit.datasets.images import REDUCED, deep_values, describe_losses
from mmgcvit.datasets.pipelines import image_loaders, loading_arguments
from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.processes import Processes
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import ClassificationDataError
from mmgcvit.tasks.base import DatasetCheck
from mmgcvit.tasks.classification.dataset import ClassificationDataset, check_names
from mmgcvit.tasks.classification.transforms import CHANNELS, REMEDY, LoadPillowImage
from mmgcvit.utils.text import counted

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
    wrong = wrong_channels(dataset, check.model)
    if wrong:
        report.problems.append(Problem("channels", "model.backbone", wrong, True))
    heads = (check.model or {}).get("num_classes")
    if heads is not None and len(report.classes) > heads:
        report.problems.append(
            Problem(
                "classes",
                source,
                f"{counted(len(report.classes), 'class')}; allowed: at most model.num_classes={heads}",
                True,
            )
        )
    report.images = report.objects = len(built)
    if dataset.get("reader", "folder") == "folder":
        report.files = [built.reader.filename(index, absolute=True) for index in range(len(built))]
    load = LoadPillowImage(**loading_arguments(dataset.get("pipeline")))
    with Processes(partial(_decoded, load=load), check.workers) as pool:
        for start in range(0, len(built), CHUNK):
            labels: list[int] = []
            contents: list[bytes | None] = []
            for index in range(start, min(start + CHUNK, len(built))):
                file, label = built.open(index)
                labels.append(label)
                try:
                    with file:  # sequentially, as all images of a tar file share a file object
                        contents.append(file.read())
                except OSError as error:
                    report.problems.append(Problem("image", built.name(index), f"cannot be read: {error}", True))
                    contents.append(None)
            decoded = pool.map(contents, lambda index, first=start: built.name(first + index))  # type: ignore[misc]
            for index, (size, reason, losses) in enumerate(decoded, start):
                advance(report.images)
                if labels[index - start] >= 0:
                    report.classes[built.metainfo["classes"][labels[index - start]]] += 1
                if reason:
                    report.problems.append(Problem("image", built.name(index), reason, True))
                elif size:
                    report.kept += 1
                    report.sizes[size] += 1
                report.problems += [Problem(kind, built.name(index), what, False) for kind, what in losses]
    report.problems += [
        Problem("class", source, f"no image of class {label!r}", False)
        for label, count in report.classes.items()
        if not count
    ]
    return report


def wrong_channels(dataset: Mapping, model: Mapping | None) -> str | None:
    """Return why the images of a data set do not suit the model's backbone or preprocessor; None if they do."""
    loader = next(image_loaders(list(dataset.get("pipeline") or ())), None)
    if loader is None or not model:
        return None
    mode = loader.get("mode", "RGB")
    expected = (model.get("backbone") or {}).get("in_channels", 3)
    allowed = " or ".join(f"in_channels={count} with mode={name!r}" for name, count in CHANNELS.items())
    if CHANNELS.get(mode) != expected:
        return f"in_channels={expected} with LoadPillowImage of mode={mode!r}; allowed: {allowed}"
    for name, value in (model.get("data_preprocessor") or {}).items():
        if name in ("mean", "std") and len(value) not in (1, expected):
            return (
                f"data_preprocessor.{name} has {counted(len(value), 'value')}; allowed with mode={mode!r}: {expected}"
            )
    return None


def _decoded(
    content: bytes | None, load: LoadPillowImage
) -> tuple[tuple[int, int] | None, str | None, list[tuple[str, str]]]:
    """Width and height of an image, or why it cannot be decoded; and what is lost."""
    if content is None:
        return None, None, []
    try:
        image = load.decode(io.BytesIO(content))
    except Exception as error:  # Pillow's decoders raise many types of errors
        return None, f"cannot be decoded: {error}", []
    losses = describe_losses(content, np.asarray(image), deep_values(content), REMEDY)
    if load.value_range is not None:
        losses = [(kind, what) for kind, what in losses if kind != REDUCED]
    return image.size, None, losses
