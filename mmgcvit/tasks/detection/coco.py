"""Reading and validation of COCO files.

They are read directly, since mmdet silently drops annotations that it cannot use, or fails without naming them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from mmgcvit.datasets.json_lists import Entries, decode_by_parts
from mmgcvit.datasets.problems import Problem, metrics_of
from mmgcvit.datasets.text import read_utf8
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import type_name
from mmgcvit.tasks.detection.boxes import BoxCounts, apart, beyond, outside, too_small
from mmgcvit.tasks.detection.columns import Columns, columns, joined
from mmgcvit.tasks.detection.masks import FARTHEST, extent, mask_error, short_polygons, usable_polygons
from mmgcvit.utils.cores import usable_cores
from mmgcvit.utils.memory import paused_collector
from mmgcvit.utils.text import counted

LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")  # of an image, for LVISMetric
#: Kinds of problems for which mmdet leaves out an object.
LEFT_OUT = ("image unknown", "ignore", "box", "area", "category", "mask")
Fault = tuple[str, str]  # kind of a problem, what it is
IGNORED: Fault = ("ignore", "marked to be ignored")


@dataclass
class AnnotatedImage:
    """An image as described by the annotations; sizes in pixels, boxes x1, y1, x2, y2."""

    path: str
    width: int  # 0 if the annotations do not say
    height: int
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


@dataclass
class Annotations:
    """Content of an annotation file: images with their usable objects, and problems."""

    path: str
    images: list[AnnotatedImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()  # all categories in the order of the file, which is that of mmdet's labels
    objects: int = 0  # number of objects, including unusable ones
    crowds: int = 0  # number of objects that are ignored on purpose: iscrowd=1, or difficult


@dataclass(frozen=True)
class Evaluation:
    """What the metrics of a data set need from its annotations."""

    boxes: bool = False
    masks: bool = False
    from_file: bool = False  # pycocotools or lvis reads the file itself
    lvis: bool = False


def evaluation(evaluator: Any) -> Evaluation:
    """Return what a config's evaluator, a metric or a list of metrics, needs from annotations."""
    found = Evaluation()
    for metric in metrics_of(evaluator):
        if type_name(metric) not in ("CocoMetric", "LVISMetric") or metric.get("format_only"):
            continue
        kinds, lvis = metric.get("metric", "bbox"), type_name(metric) == "LVISMetric"
        found = Evaluation(
            boxes=True,
            masks=found.masks or "segm" in (kinds if isinstance(kinds, (list, tuple)) else [kinds]),
            from_file=found.from_file or bool(metric.get("ann_file")),
            lvis=found.lvis or lvis,
        )
    return found


@paused_collector()
def read_coco(
    path: str | Path,
    classes: Sequence[str] | None = None,
    img_prefix: str = "",
    with_mask: bool = False,
    test_mode: bool = False,
    evaluated: Evaluation | None = None,
    name_key: str = "",
) -> Annotations:
    """Read a COCO instance file the way mmdet's CocoDataset does.

    Args:
        path: JSON file.
        classes: class names of the run; by default all categories of the file.
        img_prefix: folder of the images.
        with_mask: whether the run trains masks.
        test_mode: whether the file may have no annotations, like COCO's test-dev.
        evaluated: what the metrics need; by default nothing.
        name_key: key of an image that the data set class reads its name from; by default any that is there.

    Returns:
        Images with the objects used in training, and all problems.

    Raises:
        AnnotationError: the file does not exist, is not JSON, or lacks COCO's lists of images, annotations and
            categories.
    """
    evaluated = evaluated or Evaluation()
    content, parts = _read_lists(path, test_mode, lambda part: columns(part, with_mask or evaluated.masks))
    found = Annotations(str(path))
    categories = category_names(content["categories"], found)
    found.categories = tuple(categories.values())
    found.classes = tuple(classes) if classes else found.categories
    images = images_by_id(content["images"], img_prefix, found, evaluated, name_key)
    found.images = list(images.values())
    found.objects = len(content["annotations"])
    objects = _Objects(found, images, categories, with_mask, evaluated)
    objects.add_all(content["annotations"], joined(parts))
    objects.summarize()
    return found


def image_file_name(image: Mapping) -> Any:
    """File name of a COCO image; LVIS has URLs instead."""
    return image.get("file_name") or "/".join(str(image.get("coco_url") or "").split("/")[-2:])


def read_lists(path: str | Path, test_mode: bool = False) -> dict:
    """Read the lists of a COCO JSON file; with ``test_mode`` it may have no annotations.

    Raises:
        AnnotationError: the file does not exist, is not JSON, or has other contents.
    """
    content, _ = _read_lists(path, test_mode)
    return content


def _read_lists(
    path: str | Path, test_mode: bool, look: Callable[[list], Columns] | None = None
) -> tuple[dict, list[Columns]]:
    """Read the lists; with ``look``, that of the annotations by parts (:func:`decode_by_parts`)."""
    text = read_utf8("annotation file", path)
    parts: list[Columns] = []
    try:
        if look is None:
            content = json.loads(text)
        else:
            content, parts = decode_by_parts(text, "annotations", look, usable_cores())
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"annotation file {str(path)!r} is not JSON: {error}") from error
    if test_mode and isinstance(content, dict):
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), (list, Entries)):
            raise AnnotationError(
                f"annotation file {str(path)!r}: no list {key!r}; COCO's format has lists 'images', "
                "'annotations' and 'categories'"
            )
    return content, parts


def category_names(entries: list, found: Annotations) -> dict[int, str]:
    """Category names by id, in the order of the file, which is that of mmdet's labels."""
    names: dict[int, str] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_integer(entry.get("id")) or not isinstance(entry.get("name"), str):
            found.problems.append(
                Problem(
                    "category",
                    f"{found.path}: categories[{i}]",
                    f"{shown_value(entry)}; allowed: an object with an integer id and a name",
                    True,
                )
            )
        elif entry["id"] in names:
            found.problems.append(Problem("category", f"{found.path}: category id {entry['id']}", "occurs twice", True))
        else:
            names[entry["id"]] = entry["name"]
    for name, count in Counter(names.values()).items():
        if count > 1:
            found.problems.append(
                Problem(
                    "category",
                    f"{found.path}: category {name!r}",
                    f"{counted(count, 'category', 'categories')} with this name",
                    True,
                )
            )
    return names


def images_by_id(
    entries: list, prefix: str, found: Annotations, evaluated: Evaluation, name_key: str
) -> dict[Any, AnnotatedImage]:
    """Images by id. Adds the problems of single entries, and counts names that occur twice or lead elsewhere."""
    images: dict[Any, AnnotatedImage] = {}
    away = []
    for i, entry in enumerate(entries):
        error, where = None, f"{found.path}: images[{i}]"
        if not isinstance(entry, dict) or not _is_id(entry.get("id")):
            error = f"{shown_value(entry)}; allowed: an object with an id, a number or a string"
        else:
            where = f"{found.path}: image id {entry['id']}"
            name = image_file_name(entry)
            sides: list[Any] = [entry.get("width"), entry.get("height")]
            # pycocotools makes masks of the given size, which must be integers
            numbers = all(is_integer(side) or (is_number(side) and not evaluated.masks) for side in sides)
            if not name or (name_key and not entry.get(name_key)):
                error = f"no {name_key or 'file_name'}"
            elif not isinstance(name, str):
                error = f"file_name={shown_value(name)}; allowed: a string"
            elif entry["id"] in images:
                error = "two images with this id"
            elif not numbers or not all(0 < side <= FARTHEST and side == int(side) for side in sides):
                width, height = map(shown_value, sides)
                error = f"width={width}, height={height}; allowed: more than 0, whole numbers"
            elif evaluated.lvis and not all(isinstance(entry.get(key), list) for key in LVIS_KEYS):
                error = f"no lists {' and '.join(LVIS_KEYS)}, which LVISMetric needs"
            else:
                images[entry["id"]] = AnnotatedImage(os.path.join(prefix, name), int(sides[0]), int(sides[1]))
                away += [name] * (".." in name.split("/"))
        if error:
            found.problems.append(Problem("image", where, error, True))
    if evaluated.from_file and len({isinstance(key, str) for key in images}) > 1:
        found.problems.append(
            Problem("image", found.path, "some ids are numbers, others strings; the evaluation sorts them", True)
        )
    twice = [path for path, count in Counter(image.path for image in images.values()).items() if count > 1]
    for kind, names, what in (
        ("image twice", twice, "in several entries: the objects of one are background in the others"),
        ("folder", away, f"outside of the folder of the images, {prefix or '.'}"),
    ):
        if names:
            found.problems.append(
                Problem(kind, found.path, f"{counted(len(names), 'file name')} {what}: {names[0]}", False)
            )
    return images


class _Objects:
    """Checks the annotations of a file, adds the usable ones to their images, and counts oddities.

    Those that are certain to be as they should be are found with arrays. All others are checked one by one.
    """

    def __init__(
        self,
        found: Annotations,
        images: Mapping[Any, AnnotatedImage],
        categories: Mapping[int, str],
        with_mask: bool,
        evaluated: Evaluation,
    ) -> None:
        self.found, self.images, self.categories = found, images, categories
        self.classes = set(found.classes)
        self.with_mask, self.evaluated = with_mask, evaluated
        self.seen: set = set()
        self.boxes = BoxCounts()
        self.without_iscrowd = self.id_0 = self.short = 0

    def add_all(self, annotations: Sequence[Any], rows: Columns) -> None:
        """Check all annotations, and add them to their images."""
        place = {key: i for i, key in enumerate(self.images)}
        images = list(self.images.values())
        names = {key: name for key, name in self.categories.items() if name in self.classes}
        labels = [names.get(key) for key in rows.category_ids]
        of = np.array([place.get(key, -1) for key in rows.image_ids], np.int64)
        sizes = np.array([(image.width, image.height) for image in images] + [(0, 0)], np.int64)[of]
        x, y, w, h = rows.boxes.T
        corners = x, y, x + w, y + h
        fine = rows.usual & (of >= 0) & ~too_small(*corners) & ~apart(*corners, *sizes.T)
        fine &= ~beyond(x, y, w, h, *sizes.T)
        # Objects of other classes are left out before their masks are looked at.
        others = {key: self._other_class(key) for key in self.categories if key not in names}
        other = fine & np.array([key in others for key in rows.category_ids], bool)
        fine &= np.array([label is not None for label in labels], bool)
        polygons = ~np.isnan(rows.around[:, 0])
        if self.with_mask or self.evaluated.masks:
            fine &= polygons | (rows.run_sizes == sizes[:, ::-1]).all(1)
        boxes = zip(*(side.tolist() for side in corners), strict=True)
        flags = (column.tolist() for column in (fine, other, rows.crowds, of))
        each = zip(rows.ids, *flags, labels, boxes, strict=True)
        for i, (own, is_fine, is_other, crowd, at, label, box) in enumerate(each):
            if own in self.seen or not (is_fine or is_other):
                self.add(annotations[i], i)
                fine[i] = other[i] = False
                continue
            self.seen.add(own)
            if is_other:
                self._report(dict(id=own, image_id=rows.image_ids[i]), i, others[rows.category_ids[i]])
            elif crowd:
                self.found.crowds += 1
            else:
                images[at].boxes.append(box)
                images[at].labels.append(label)
        counted = fine | other
        self.without_iscrowd += int(rows.without_iscrowd[counted].sum())
        self.boxes.add_all(rows.boxes[counted], sizes[counted])
        self.boxes.compare_all(rows.boxes[fine & polygons], rows.around[fine & polygons])

    def add(self, annotation: Any, i: int) -> None:
        """Check the annotation with index i, and add it to its image."""
        if error := self._malformed(annotation):
            return self._report(annotation, i, error, breaks=True)
        image = self.images.get(annotation["image_id"])
        if image is None:
            return self._report(annotation, i, ("image unknown", "no image with this id"))
        if annotation.get("ignore") and not self.evaluated.boxes:
            return self._report(annotation, i, IGNORED)
        if error := self._invalid(annotation):
            return self._report(annotation, i, error, breaks=True)
        left_out = self._left_out(annotation, image)
        self.boxes.add(annotation["bbox"], image.width, image.height)
        known = self.categories.get(annotation["category_id"]) in self.classes
        if (self.with_mask and not left_out) or (self.evaluated.masks and known):
            error, without = self._mask(annotation, image)
            if error:
                return self._report(annotation, i, error, breaks=True)
            left_out = left_out or without
        if left_out:
            return self._report(annotation, i, left_out)
        if annotation.get("iscrowd"):
            self.found.crowds += 1
            return None
        x, y, w, h = map(float, annotation["bbox"])
        image.boxes.append((x, y, x + w, y + h))
        image.labels.append(self.categories[annotation["category_id"]])
        return None

    def _report(self, annotation: Any, i: int, fault: Fault, breaks: bool = False) -> None:
        where = f"{self.found.path}: annotations[{i}]"
        if isinstance(annotation, dict):
            own = annotation.get("id", f"missing (annotations[{i}])")
            where = f"{self.found.path}: image id {annotation.get('image_id', 'missing')}, annotation id {own}"
        self.found.problems.append(Problem(fault[0], where, fault[1], breaks))

    def _malformed(self, annotation: Any) -> Fault | None:
        """Faults of the ids, which make the whole file unreadable."""
        if not isinstance(annotation, dict) or not {"id", "image_id", "category_id"} <= annotation.keys():
            return "annotation", "needs id, image_id and category_id"
        for key in ("id", "image_id", "category_id"):
            value = annotation[key]
            if (type(value) is not int or abs(value) > 2**63) and not _is_id(value):
                return "annotation", f"{key}={shown_value(value)}; allowed: a number or a string"
        own = annotation["id"]
        if self.evaluated.from_file and isinstance(own, str):
            return "annotation", f"id={own!r}; allowed: a number, as the evaluation calculates with it"
        if own in self.seen:
            return "annotation", "two annotations with this id"
        self.seen.add(own)
        return None

    def _invalid(self, annotation: Mapping) -> Fault | None:
        """Faults of the values that mmdet, pycocotools or lvis uses."""
        box, area, crowd = annotation.get("bbox"), annotation.get("area"), annotation.get("iscrowd", 0)
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return "box", f"bbox={shown_value(box)}; allowed: [x, y, width, height] in pixels"
        if max(box) > FARTHEST or min(box) < -FARTHEST:
            return "box", f"bbox={shown_value(box)}; allowed: at most {FARTHEST} pixels"
        if not is_number(area):
            return "area", f"area={shown_value(area)}; allowed: a number, in square pixels"
        if crowd not in (0, 1):
            return "iscrowd", f"iscrowd={shown_value(crowd)}; allowed: 0 or 1"
        self.without_iscrowd += "iscrowd" not in annotation
        self.id_0 += annotation["id"] == 0
        return None

    def _left_out(self, annotation: Mapping, image: AnnotatedImage) -> Fault | None:
        """Why mmdet leaves out the object in training, besides its mask."""
        if annotation.get("ignore"):
            return IGNORED
        x, y, w, h = annotation["bbox"]
        if reason := outside((x, y, x + w, y + h), image.width, image.height):
            return "box", reason
        if annotation["area"] <= 0:
            return "area", f"area={annotation['area']}; allowed: more than 0"
        category = annotation["category_id"]
        if category not in self.categories:
            return "category", f"category_id={category!r} is not among the file's categories"
        return None if self.categories[category] in self.classes else self._other_class(category)

    def _other_class(self, category: int) -> Fault:
        """Why an object is left out whose category is no class of the run."""
        return "category", f"{self.categories[category]!r} is not among the config's classes"

    def _mask(self, annotation: Mapping, image: AnnotatedImage) -> tuple[Fault | None, Fault | None]:
        """A fault of the mask, and why mmdet leaves out the object for its mask."""
        mask = annotation.get("segmentation")
        if error := mask_error(mask, image.width, image.height, self.evaluated.masks):
            return ("mask", error), None
        if isinstance(mask, list):
            usable = usable_polygons(mask)
            if not usable:
                return None, ("mask", short_polygons(mask))
            self.short += len(usable) < len(mask)
            self.boxes.compare(annotation["bbox"], extent(usable))
        return None, None

    def summarize(self) -> None:
        """Add the problems of all annotations together."""
        path, problems = self.found.path, self.found.problems
        problems += self.boxes.problems(path)
        if self.short:
            what = (
                f"{counted(self.short, 'object has', 'objects have')} polygons of fewer than 3 points among others; "
                "training leaves them out"
            )
            problems.append(Problem("polygon part", path, what, False))
        if self.without_iscrowd and self.evaluated.from_file and not self.evaluated.lvis:
            what = (
                f"{self.without_iscrowd} of {counted(self.found.objects, 'annotation')} without iscrowd, which COCO's "
            )
            problems.append(Problem("iscrowd", path, f'{what}evaluation needs; add "iscrowd": 0 to each', True))
        if self.id_0 and self.evaluated.from_file:
            what = "the annotation with id 0 always counts as missed by the model; number from 1"
            problems.append(Problem("annotation", path, what, False))


def shown_value(value: Any) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_id(value: Any) -> bool:
    """Whether a value can be an id."""
    return isinstance(value, str) or is_number(value)


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether a value is an integer of at most 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return type(value) in (int, float) and -1e300 < value < 1e300
