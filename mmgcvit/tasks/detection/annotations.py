"""Reading and validation of the annotations of detection data sets.

COCO JSON files are read directly, since mmdet silently drops annotations that it cannot use, or fails without naming
them.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmgcvit.datasets.problems import Problem, data_sets, refuse
from mmgcvit.errors import AnnotationError

COCO_LIKE = ("CocoDataset", "LVISDataset", "LVISV05Dataset", "LVISV1Dataset")


@dataclass
class AnnotatedImage:
    """An image as described by the annotations; sizes in pixels, boxes x1, y1, x2, y2."""

    path: str
    width: int | None
    height: int | None
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


def read_coco(
    path: str | Path,
    classes: Sequence[str] | None = None,
    img_prefix: str = "",
    with_mask: bool = False,
    test_mode: bool = False,
) -> Annotations:
    """Read a COCO instance file the way mmdet's CocoDataset does.

    Args:
        path: JSON file.
        classes: class names of the run; by default all categories of the file.
        img_prefix: folder of the images.
        with_mask: whether the run trains masks.
        test_mode: whether the file may have no annotations, like COCO's test-dev.

    Returns:
        Images with the objects used in training, and all problems.

    Raises:
        AnnotationError: the file does not exist, is not JSON, or lacks COCO's lists of images, annotations and
            categories.
    """
    content = read_lists(path, test_mode)
    found = Annotations(str(path))
    categories = _categories(content["categories"], found)
    found.categories = tuple(categories.values())
    found.classes = tuple(classes) if classes else found.categories
    images = _images(content["images"], img_prefix, found)
    found.images = list(images.values())
    found.objects = len(content["annotations"])
    seen: set = set()
    for i, annotation in enumerate(content["annotations"]):
        where = _where(path, annotation, i)
        for problem in _object(annotation, where, images, categories, found.classes, with_mask, seen):
            found.problems.append(problem)
            break  # report only the first one, as mmdet stops there too
        else:
            x, y, w, h = map(float, annotation["bbox"])
            image = images[annotation["image_id"]]
            image.boxes.append((x, y, x + w, y + h))
            image.labels.append(categories[annotation["category_id"]])
    return found


def check_before_run(dataloader: Mapping | None) -> None:
    """Check that a run can use the annotations and classes of each CocoDataset in a data loader.

    mmdet numbers the classes in the order of the file, regardless of the order in the config, and ignores names that
    are not in the file; without any usable object the data set is empty, and training hangs.

    Args:
        dataloader: data loader of a config; other types of data sets are not checked.

    Raises:
        AnnotationError: classes are missing in the file or have another order, there are no objects for training, or
            annotations cannot be read; names the file, the image id and the annotation id.
    """
    for dataset in data_sets((dataloader or {}).get("dataset")):
        if not coco_like(dataset) or not dataset.get("ann_file") or dataset.get("backend_args"):
            continue  # only mmdet reads remote files
        refuse(read_dataset(dataset).problems)


def read_dataset(dataset: Mapping) -> Annotations:
    """Call :func:`read_coco` for a config's COCO-like data set, and add the problems with its classes.

    Raises:
        AnnotationError: see :func:`read_coco`.
    """
    root = dataset.get("data_root") or ""
    path = os.path.join(root, dataset["ann_file"])
    classes = _classes(dataset) or ()
    prefix = os.path.join(root, (dataset.get("data_prefix") or {}).get("img", ""))
    test_mode = bool(dataset.get("test_mode"))
    found = read_coco(path, classes, prefix, wants_masks(dataset.get("pipeline")), test_mode)
    least = (dataset.get("filter_cfg") or {}).get("min_size", 0)
    if not (dataset.get("metainfo") or {}).get("classes") and classes and not set(classes) & set(found.categories):
        found.problems.append(
            Problem(
                "classes",
                path,
                f"has {', '.join(map(repr, found.categories))}, none of which is a class of "
                f"{dataset['type']}; set metainfo=dict(classes=(...)) in the config's data sets",
                breaks=True,
            )
        )
    elif (dataset.get("metainfo") or {}).get("classes") and [
        name for name in found.categories if name in classes
    ] != list(classes):
        found.problems.append(
            Problem(
                "classes",
                path,
                f"classes={tuple(classes)!r}; allowed, as {path} has them: "
                f"{', '.join(map(repr, found.categories))}, all or some, in this order",
                breaks=True,
            )
        )
    elif not test_mode and not any(
        image.boxes and min(image.width or 0, image.height or 0) >= least for image in found.images
    ):
        found.problems.append(
            Problem(
                "empty",
                path,
                f"none of {found.objects} annotations can be used"
                + (f" (filter_cfg.min_size={least})" if least else "")
                + ": training would hang",
                breaks=True,
            )
        )
    return found


def coco_like(dataset: Mapping) -> bool:
    """Whether a data set of a config reads COCO JSON files."""
    return str(dataset.get("type")).removeprefix("mmdet.") in COCO_LIKE


def _classes(dataset: Mapping) -> Sequence[str] | None:
    """Class names of the run: those of the config (possibly in a file), or else those of the data set class."""
    classes = (dataset.get("metainfo") or {}).get("classes")
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise AnnotationError(
                f"metainfo.classes={classes!r}; allowed: a tuple of names, such as ({classes!r}, ), "
                "or a file with one name per line"
            )
        return [line.strip() for line in Path(classes).read_text().splitlines() if line.strip()]
    if classes:
        return classes
    try:
        from mmdet import datasets
    except ImportError:
        return None
    own = getattr(datasets, str(dataset["type"]).removeprefix("mmdet."), None)
    return own and own.METAINFO.get("classes")


def wants_masks(pipeline: Sequence[Mapping] | None) -> bool:
    """Whether a pipeline loads masks."""
    return any(t.get("with_mask", False) for t in pipeline or () if str(t.get("type")).endswith("LoadAnnotations"))


def outside(box: Sequence[float], width: float, height: float) -> str | None:
    """Return why mmdet would drop a box (x1, y1, x2, y2) for its position or size; None if it would not."""
    x1, y1, x2, y2 = box
    if x2 - x1 < 1 or y2 - y1 < 1:
        return f"box of {x2 - x1:g} x {y2 - y1:g} pixels; allowed: at least 1 x 1"
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        return f"box {tuple(box)} outside its image of {width:g} x {height:g}"
    return None


def image_file_name(image: Mapping) -> str:
    """File name of a COCO image; LVIS has URLs instead."""
    return image.get("file_name") or "/".join(str(image.get("coco_url", "")).split("/")[-2:])


def read_lists(path: str | Path, test_mode: bool = False) -> dict:
    """Read the lists of a COCO JSON file; with ``test_mode`` it may have no annotations.

    Raises:
        AnnotationError: the file does not exist, is not JSON, or has other contents.
    """
    if not os.path.isfile(path):
        raise AnnotationError(f"annotation file {str(path)!r}: no such file")
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise AnnotationError(f"annotation file {str(path)!r} is not JSON: {error}") from error
    if test_mode and isinstance(content, dict):
        content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise AnnotationError(
                f"annotation file {str(path)!r}: no list {key!r}; COCO's format has lists 'images', "
                "'annotations' and 'categories'"
            )
    return content


def _categories(entries: list, found: Annotations) -> dict[Any, str]:
    """Category names by id, in the order of the file, which is that of mmdet's labels."""
    names: dict[Any, str] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int) or "name" not in entry:
            found.problems.append(
                Problem(
                    "category",
                    f"{found.path}: categories[{i}]",
                    f"{entry!r}; allowed: an object with an integer id and a name",
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
                Problem("category", f"{found.path}: category {name!r}", f"{count} categories with this name", True)
            )
    return names


def _images(entries: list, prefix: str, found: Annotations) -> dict[Any, AnnotatedImage]:
    images: dict[Any, AnnotatedImage] = {}
    for i, entry in enumerate(entries):
        where = f"{found.path}: images[{i}]"
        if not isinstance(entry, dict) or "id" not in entry:
            found.problems.append(Problem("image", where, f"{entry!r}; allowed: an object with an id", True))
            continue
        where = f"{found.path}: image id {entry['id']}"
        name = image_file_name(entry)
        if not name:
            found.problems.append(Problem("image", where, "no file_name", True))
        elif entry["id"] in images:
            found.problems.append(Problem("image", where, "two images with this id", True))
        elif not all(_number(entry.get(key)) and entry[key] > 0 for key in ("width", "height")):
            sizes = f"width={entry.get('width')!r}, height={entry.get('height')!r}"
            found.problems.append(Problem("image", where, f"{sizes}; allowed: more than 0", True))
        else:
            images[entry["id"]] = AnnotatedImage(os.path.join(prefix, name), entry["width"], entry["height"])
    return images


def _object(
    annotation: Any,
    where: str,
    images: Mapping,
    categories: Mapping,
    classes: Sequence[str],
    with_mask: bool,
    seen: set,
) -> Iterator[Problem]:
    """Yield the problems of one annotation, worst first."""
    if not isinstance(annotation, dict) or not {"id", "image_id", "category_id"} <= annotation.keys():
        yield Problem("annotation", where, "needs id, image_id and category_id", True)
        return
    if annotation["id"] in seen:
        yield Problem("annotation", where, "two annotations with this id", True)
    seen.add(annotation["id"])
    if annotation["image_id"] not in images:
        yield Problem("image unknown", where, "no image with this id", False)
        return
    if annotation.get("ignore"):
        yield Problem("ignore", where, "marked to be ignored", False)
        return
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
        yield Problem("box", where, f"bbox={box!r}; allowed: [x, y, width, height] in pixels", True)
        return
    if not _number(annotation.get("area")):
        yield Problem("area", where, f"area={annotation.get('area')!r}; allowed: a number, in square pixels", True)
        return
    image = images[annotation["image_id"]]
    x, y, w, h = box
    left_out = outside((x, y, x + w, y + h), image.width, image.height)
    if left_out:
        yield Problem("box", where, left_out, False)
    if annotation["area"] <= 0:
        yield Problem("area", where, f"area={annotation['area']}; allowed: more than 0", False)
    if annotation["category_id"] not in categories:
        yield Problem(
            "category", where, f"category_id={annotation['category_id']!r} is not among the file's categories", False
        )
    elif categories[annotation["category_id"]] not in classes:
        yield Problem(
            "category", where, f"{categories[annotation['category_id']]!r} is not among the config's classes", False
        )
    if with_mask:
        yield from _mask(annotation, where)


def _mask(annotation: Mapping, where: str) -> Iterator[Problem]:
    mask = annotation.get("segmentation")
    if not mask:
        yield Problem("mask", where, "no segmentation; use a detector without masks if there are only boxes", True)
    elif isinstance(mask, dict):
        if not {"size", "counts"} <= mask.keys():
            yield Problem("mask", where, "run lengths without size or counts", False)
    elif not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        yield Problem("mask", where, "segmentation; allowed: a list of polygons, or run lengths", True)
    elif not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask):
        lengths = ", ".join(str(len(polygon)) for polygon in mask)
        yield Problem("mask", where, f"polygons of {lengths} numbers; allowed: x, y of at least 3 points", False)
    elif not all(_number(value) for polygon in mask for value in polygon):
        yield Problem("mask", where, "a polygon contains something other than numbers", True)


def _where(path: str | Path, annotation: Any, i: int) -> str:
    if not isinstance(annotation, dict):
        return f"{path}: annotations[{i}]"
    image, own = annotation.get("image_id", "missing"), annotation.get("id", f"missing (annotations[{i}])")
    return f"{path}: image id {image}, annotation id {own}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
