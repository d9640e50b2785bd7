"""A walk through a config's data sets before training: every image is decoded, every annotation looked at."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID

from mmgcvit.datasets import labels
from mmgcvit.tasks.detection.annotations import (
    AnnotationError,
    Annotations,
    Image,
    Problem,
    coco_like,
    data_sets,
    outside,
    read_dataset,
)
from mmgcvit.datasets.classification import ClassificationDataset, check_names
from mmgcvit.errors import ClassificationDataError
from mmgcvit.datasets.images import image_size, unreadable
from mmgcvit.datasets.report import DatasetReport

CHUNK = 64  # images opened at a time
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check_data(cfg: Config, workers: int = 8, progress: bool = True) -> list[DatasetReport]:
    """Look at all data sets of a config.

    Args:
        cfg: config with data loaders.
        workers: threads that decode images.
        progress: whether to draw a progress bar.

    Returns:
        One report per data set; data sets that are the same are looked at once.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    reports: list[DatasetReport] = []
    done: list[Mapping] = []
    trained: tuple[str, ...] | None = None  # a classifier's classes
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        for loader in LOADERS:
            for dataset in data_sets((cfg.get(loader) or {}).get("dataset")):
                if dataset in done:
                    continue
                done.append(dataset)
                name = loader.removesuffix("_dataloader")
                task = bar.add_task(name, total=None)

                def advance(total: int, task: TaskID = task) -> None:
                    bar.update(task, advance=1, total=total)

                if str(getattr(dataset.get("type"), "__name__", dataset.get("type"))) == ClassificationDataset.__name__:
                    reports.append(_check_classes(name, dataset, cfg.get("model"), workers, advance, trained))
                    if name == "train":
                        trained = tuple(reports[-1].classes) or None
                elif labels.has_label_maps(dataset):
                    reports.append(
                        labels.check_labels(
                            name, dataset, cfg.get("model"), workers, advance, cfg.get(f"{name}_evaluator")
                        )
                    )
                else:
                    reports.append(_check(name, dataset, workers, advance))
                bar.remove_task(task)
    labels.compare_splits(reports)
    return reports


def _check(name: str, dataset: Mapping, workers: int, advance: Callable[[int], None]) -> DatasetReport:
    source = os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
    report = DatasetReport(name, source)
    try:
        annotations = _read(dataset, source)
    except AnnotationError as error:
        report.problems.append(Problem("annotations", source, str(error), True))
        return report
    report.problems = list(annotations.problems)
    report.images, report.objects = len(annotations.images), annotations.objects
    report.kept = sum(len(image.boxes) for image in annotations.images)
    report.empty = sum(not image.boxes for image in annotations.images)
    report.classes = dict.fromkeys(annotations.classes, 0)
    report.classes.update(Counter(label for image in annotations.images for label in image.labels))
    for label, count in report.classes.items():
        if not count and report.kept:
            report.problems.append(Problem("class", source, f"no object of class {label!r}", False))
    paths = [image.path for image in annotations.images]
    with ThreadPoolExecutor(workers) as pool:
        for image, (size, reason) in zip(annotations.images, pool.map(image_size, paths), strict=True):
            advance(report.images)
            if reason:
                report.problems.append(Problem("image", image.path, reason, True))
            elif size:
                report.sizes[size] += 1
                if image.width and size != (image.width, image.height):
                    report.problems.append(
                        Problem(
                            "size",
                            image.path,
                            f"is {size[0]} x {size[1]} (width x height), its annotations say "
                            f"{image.width} x {image.height}",
                            True,
                        )
                    )
    return report


def _check_classes(
    name: str,
    dataset: Mapping,
    model: Mapping | None,
    workers: int,
    advance: Callable[[int], None],
    trained: tuple[str, ...] | None,
) -> DatasetReport:
    """Look at every image of a classifier's data set, whatever it is stored in.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: the config's.
        model: the config's, whose ``num_classes`` must do.
        workers: threads that decode images.
        advance: called after each image, with how many there are.
        trained: the training data's classes, if they are known.
    """
    source = os.path.join(str(dataset.get("data_root")), dataset.get("split") or "")
    report = DatasetReport(name, source, unit="labels")
    try:
        built: ClassificationDataset = DATASETS.build({**dataset, "pipeline": []})
        report.classes = dict.fromkeys(built.metainfo["classes"], 0)
        if trained is not None and not built.given_classes:
            check_names(f"the {name} data", tuple(report.classes), "the training data's", trained)
    except ClassificationDataError as error:
        report.problems.append(Problem("classes", source, str(error), True))
        if not report.classes:
            return report
    heads = (model or {}).get("num_classes")
    if heads is not None and len(report.classes) > heads:
        report.problems.append(
            Problem(
                "classes", source, f"{len(report.classes)} classes; allowed: at most model.num_classes={heads}", True
            )
        )
    report.images = report.objects = len(built)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(built), CHUNK):
            classes, contents = [], []
            for index in range(start, min(start + CHUNK, len(built))):
                file, label = built.reader[index][:2]
                classes.append(built.metainfo["classes"][label])
                with file:  # one after another: those of a tar file are one file
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
    with Image.open(io.BytesIO(content)) as image:
        return image.size, None


def _read(dataset: Mapping, source: str) -> Annotations:
    if coco_like(dataset):
        return read_dataset(dataset)
    return _read_any(dataset, source)


def _read_any(dataset: Mapping, source: str) -> Annotations:
    """Any other data set of boxes, such as VOC's: as it presents itself, built without its pipeline."""
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False, "filter_cfg": None})
    except Exception as error:  # whatever a data set fails at, it is what the report is for
        named = _broken_xml(dataset) if "VOC" in str(dataset.get("type")) else None
        reason = f"{dataset.get('type')} cannot be built: {type(error).__name__}: {error}"
        raise AnnotationError(named or reason) from error
    found = Annotations(source, classes=tuple(built.metainfo.get("classes") or ()))
    for i in range(len(built)):
        info = built.get_data_info(i)
        image = Image(info["img_path"], info.get("width"), info.get("height"))
        for instance in info.get("instances", ()):
            found.objects += 1
            left_out = image.width and outside(instance["bbox"], image.width, image.height)
            if left_out:
                found.problems.append(Problem("box", f"{source}: image id {info.get('img_id')}", left_out, False))
                continue
            image.boxes.append(tuple(instance["bbox"]))
            image.labels.append(found.classes[instance["bbox_label"]])
        found.images.append(image)
    if not any(image.boxes for image in found.images):
        found.problems.append(Problem("empty", source, f"none of {found.objects} objects can be used", True))
    return found


def _broken_xml(dataset: Mapping) -> str | None:
    """The first annotation of a VOC tree that cannot be read, and why."""
    folder = Path(dataset.get("data_root") or "", (dataset.get("data_prefix") or {}).get("sub_data_root", ""))
    for name in Path(dataset.get("data_root") or "", dataset["ann_file"]).read_text().split():
        path = folder / "Annotations" / f"{name}.xml"
        try:
            root = ElementTree.parse(path).getroot()
            for i, item in enumerate(root.findall("object")):
                box = item.find("bndbox")
                if item.find("name") is None or box is None:
                    return f"{path}: object {i} has no name or no bndbox"
                for key in ("xmin", "ymin", "xmax", "ymax"):
                    float(box.findtext(key, "missing"))
        except (OSError, ElementTree.ParseError, ValueError) as error:
            return f"{path}: {type(error).__name__}: {error}"
    return None
