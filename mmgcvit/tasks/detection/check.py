"""Check of a detection data set: reads every annotation and decodes every image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from mmengine.registry import DATASETS

from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.detection.annotations import AnnotatedImage, Annotations, coco_like, outside, read_dataset


def check_boxes(
    name: str, dataset: Mapping, workers: int, advance: Callable[[int], None], model: Mapping | None = None
) -> DatasetReport:
    """Check a detection data set.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: data set config.
        workers: threads that decode images.
        advance: called after each image with the total number of images.
        model: model config, whose backbone takes a number of channels.
    """
    from mmgcvit.datasets.loading import ImageChecker

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
    look = ImageChecker(dataset, model)
    with ThreadPoolExecutor(workers) as pool:
        for image, (size, problems) in zip(annotations.images, pool.map(look, paths), strict=True):
            advance(report.images)
            report.problems += problems
            if size:
                report.sizes[size] += 1
                if image.width and size != (image.width, image.height):
                    report.problems.append(
                        Problem(
                            "size",
                            image.path,
                            f"is {size[0]} x {size[1]} (width x height), but {image.width} x {image.height} "
                            "in the annotations",
                            True,
                        )
                    )
    return report


def _read(dataset: Mapping, source: str) -> Annotations:
    if coco_like(dataset):
        return read_dataset(dataset)
    return _read_any(dataset, source)


def _read_any(dataset: Mapping, source: str) -> Annotations:
    """Read any other detection data set, such as VOC, by building it without its pipeline."""
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False, "filter_cfg": None})
    except Exception as error:  # report any failure of a data set
        named = _broken_xml(dataset) if "VOC" in str(dataset.get("type")) else None
        reason = f"{dataset.get('type')} cannot be built: {type(error).__name__}: {error}"
        raise AnnotationError(named or reason) from error
    found = Annotations(source, classes=tuple(built.metainfo.get("classes") or ()))
    for i in range(len(built)):
        info = built.get_data_info(i)
        image = AnnotatedImage(info["img_path"], info.get("width"), info.get("height"))
        for instance in info.get("instances", ()):
            found.objects += 1
            width, height = image.width, image.height
            left_out = outside(instance["bbox"], width, height) if width and height else None
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
    """Return the first annotation of a VOC data set that cannot be read, and the reason."""
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
