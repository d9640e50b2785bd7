"""Validation of detection data sets that are not COCO files, such as Pascal VOC: built by mmdet without a pipeline."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mmengine.registry import DATASETS

from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.text import read_names, read_utf8
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import type_name
from mmgcvit.tasks.detection.boxes import BoxCounts, outside
from mmgcvit.tasks.detection.coco import AnnotatedImage, Annotations
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_other(dataset: Mapping) -> Annotations:
    """Read the annotations of any data set of mmdet.

    Raises:
        AnnotationError: mmdet cannot build the data set, or a list of names is not UTF-8; names the first XML file that
            cannot be read.
    """
    classes = (dataset.get("metainfo") or {}).get("classes")
    if isinstance(classes, str) and os.path.isfile(classes):
        read_names("metainfo.classes", classes)
    source = os.path.join(dataset.get("data_root") or "", str(dataset.get("ann_file") or ""))
    if is_voc(dataset) and os.path.isfile(source) and not dataset.get("backend_args"):
        read_utf8("ann_file", source)
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False, "filter_cfg": None})
    except Exception as error:  # report any failure of a data set
        named = _broken_xml(dataset) if is_voc(dataset) else None
        reason = f"{type_name(dataset)} cannot be built: {type(error).__name__}: {error}"
        raise AnnotationError(named or reason) from error
    found = Annotations(source, classes=tuple(built.metainfo.get("classes") or ()))
    unknown: Counter[str] = Counter()
    boxes = BoxCounts()
    for info in map(built.get_data_info, range(len(built))):
        image = AnnotatedImage(info["img_path"], info.get("width") or 0, info.get("height") or 0)
        where = info.get("xml_path") or f"{source}: image id {info.get('img_id')}"
        found.images.append(image)
        if "xml_path" in info:
            unknown.update(name for name in _xml_names(info["xml_path"]) if name not in found.classes)
            if min(image.width, image.height) <= 0:
                sizes = f"width={image.width}, height={image.height}"
                found.problems.append(Problem("image", where, f"{sizes}; allowed: more than 0", True))
        for instance in info.get("instances", ()):
            found.objects += 1
            x1, y1, x2, y2 = box = tuple(instance["bbox"])
            if image.width and image.height:
                boxes.add((x1, y1, x2 - x1, y2 - y1), image.width, image.height)
                if left_out := outside(box, image.width, image.height):
                    found.problems.append(Problem("box", where, left_out, False))
                    continue
            if instance.get("ignore_flag"):
                found.crowds += 1
                continue
            image.boxes.append(box)
            image.labels.append(found.classes[instance["bbox_label"]])
    found.objects += sum(unknown.values())
    found.problems += boxes.problems(source)
    if unknown:
        names = summarize(f"{name!r} ({count})" for name, count in unknown.most_common())
        what = f"{counted(sum(unknown.values()), 'object is', 'objects are')} of no class of the data set: {names}"
        found.problems.append(Problem("category", source, what, False))
    if not any(image.boxes for image in found.images):
        difficult = f", {found.crowds} are difficult, which are ignored" if found.crowds else ""
        what = f"none of {counted(found.objects, 'object')} can be used{difficult}"
        found.problems.append(Problem("empty", source, what, True))
    return found


def is_voc(dataset: Mapping) -> bool:
    """Whether a data set of a config reads Pascal VOC's XML files."""
    return type_name(dataset) in ("VOCDataset", "XMLDataset")


def _xml_names(path: str) -> Iterator[str]:
    """Names of all objects in an XML file; mmdet leaves out those that are no classes of the data set."""
    for item in ElementTree.parse(path).getroot().findall("object"):
        yield item.findtext("name", "")


def _broken_xml(dataset: Mapping) -> str | None:
    """Return the first annotation of a VOC data set that cannot be read, and the reason."""
    root, prefix = dataset.get("data_root") or "", (dataset.get("data_prefix") or {}).get("sub_data_root", "")
    names = Path(root, dataset["ann_file"]) if isinstance(dataset.get("ann_file"), str) else None
    if names is None or not names.is_file():
        return f"ann_file={str(names or dataset.get('ann_file'))!r}; allowed: one text file with the names of images"
    for name in names.read_text(errors="replace").splitlines():
        path = Path(root, prefix, dataset.get("ann_subdir", "Annotations"), f"{name}.xml")
        if reason := _xml_error(path):
            return f"{path}: {reason}"
    return None


def _xml_error(path: Path) -> str | None:
    try:
        root: Any = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    sides = ("width", "height") if root.find("size") is not None else ()
    fields = [(f"size/{side}", root.findtext(f"size/{side}", "")) for side in sides]
    for i, item in enumerate(root.findall("object")):
        if item.find("name") is None or item.find("bndbox") is None:
            return f"object {i} has no name or no bndbox"
        fields += [(f"object {i}, {side}", item.findtext(f"bndbox/{side}", "")) for side in SIDES]
        fields.append((f"object {i}, difficult", item.findtext("difficult", "0")))
    for what, text in fields:
        try:
            int(float(text or ""))
        except (ValueError, OverflowError):
            return f"{what} is {text!r}; allowed: a number"
    return None
