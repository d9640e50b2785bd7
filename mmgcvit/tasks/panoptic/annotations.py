"""Reading and validation of COCO panoptic files, and of the PNGs in which colours are the ids of segments.

They are read directly: mmdet fails on some faults without naming the file, and silently ignores the pixels of others.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

from mmgcvit.datasets.files import HEADERS, THREADS, header, missing_problems
from mmgcvit.datasets.problems import Problem, class_names, dataset_class
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import base_names
from mmgcvit.tasks.detection.boxes import BoxCounts, agree
from mmgcvit.tasks.detection.coco import (
    AnnotatedImage,
    Annotations,
    Evaluation,
    category_names,
    images_by_id,
    is_integer,
    is_number,
    read_lists,
    shown_value,
)
from mmgcvit.utils import summarize
from mmgcvit.utils.images import any_image_size, require_pixels
from mmgcvit.utils.text import counted

VOID = 0  # id of pixels without a class
LARGEST = 256**3 - 1  # id
CLASSES = 255  # most classes: mmdet marks pixels without a class with the label 255
MODES = ("RGB", "RGBA", "P")  # Pillow's modes of files whose colours are loaded as they are


@dataclass(frozen=True)
class Segment:
    """A thing, or the area of a stuff class."""

    label: str
    is_thing: bool
    crowd: bool
    box: tuple[float, float, float, float]  # x, y, width, height
    area: float
    used: bool = True  # False: mmdet ignores its pixels in training


@dataclass
class PanopticImage(AnnotatedImage):
    """An image with its segments by id, and the PNG that mmdet reads for it; '' if it needs none."""

    png: str = ""
    segments: dict[int, Segment] = field(default_factory=dict)


@dataclass(frozen=True)
class Classes:
    """Classes of a config's data set, and which of them are things; None: the config does not say."""

    names: tuple[str, ...] | None
    things: tuple[str, ...] | None
    stuff: tuple[str, ...] | None


def is_panoptic(dataset: Mapping[str, Any]) -> bool:
    """Whether a config's data set is a CocoPanopticDataset, or of a subclass."""
    return "CocoPanopticDataset" in base_names(DATASETS, dataset)


def classes_of(dataset: Mapping[str, Any]) -> Classes:
    """Return the classes of a config's data set: those of its metainfo, else those of its class."""
    own = getattr(dataset_class(dataset), "METAINFO", None) or {}
    given = dataset.get("metainfo") or {}
    parts = [given.get(name, own.get(name)) for name in ("thing_classes", "stuff_classes")]
    return Classes(class_names(dataset), *(None if part is None else tuple(part) for part in parts))


def read_panoptic(dataset: Mapping[str, Any], labelled: bool = True) -> Annotations:
    """Read the annotations of a config's panoptic data set as mmdet's CocoPanopticDataset does.

    Args:
        dataset: the config.
        labelled: whether segments are needed; otherwise only images and categories are read.

    Returns:
        Images (:class:`PanopticImage`) with their segments, and all problems that the JSON file shows.

    Raises:
        AnnotationError: the file does not exist, is not JSON, or lacks COCO's lists of images, annotations and
            categories.
    """
    root, name, prefix = dataset.get("data_root") or "", dataset.get("ann_file"), dataset.get("data_prefix") or {}
    if not isinstance(name, str):
        raise AnnotationError(f"ann_file={name!r}; allowed: one COCO panoptic file")
    path = os.path.join(root, name)
    content = read_lists(path, bool(dataset.get("test_mode")))
    found = Annotations(path)
    categories = category_names(content["categories"], found)
    things = _things(content["categories"], found)
    found.categories = tuple(categories.values())
    classes = classes_of(dataset)
    found.classes = classes.names or found.categories
    found.problems += _class_problems(path, found, classes, {categories[key] for key in things if key in categories})
    images = images_by_id(
        content["images"], os.path.join(root, prefix.get("img") or ""), found, Evaluation(), "file_name"
    )
    if not labelled:
        found.images = [PanopticImage(image.path, image.width, image.height) for image in images.values()]
        return found
    folder = os.path.join(root, prefix.get("seg") or "")
    known: dict[Any, PanopticImage] = {}
    for entry in content["images"]:
        key = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(key, (str, int, float)) or key not in images or key in known:
            continue
        image = images[key]
        png = os.path.join(folder, entry["file_name"].replace(".jpg", ".png"))  # as mmdet does
        known[key] = PanopticImage(image.path, image.width, image.height, png=png)
        if os.path.normpath(png) == os.path.normpath(image.path):
            what = f"mmdet reads its segments from {png}, the image; allowed: another folder for data_prefix.seg"
            found.problems.append(Problem("segments", f"{path}: image id {key}", what, True))
    found.images = list(known.values())
    _Reader(found, known, categories, things, folder).add_all(content["annotations"])
    _report_images_without_segments(dataset, found, known)
    return found


def _things(entries: list, found: Annotations) -> set[Any]:
    """Ids of the categories with isthing=1; adds those without a valid isthing to the problems."""
    things = set()
    for i, entry in enumerate(entries):
        value = entry.get("isthing") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and value not in (0, 1):
            where = f"{found.path}: categories[{i}], {entry.get('name')!r}"
            what = "no isthing" if value is None else f"isthing={shown_value(value)}"
            found.problems.append(Problem("category", where, f"{what}; allowed: 1 for things, 0 for stuff", True))
        elif value and is_integer(entry.get("id")):
            things.add(entry["id"])
    return things


def _class_problems(path: str, found: Annotations, classes: Classes, things: set[str]) -> Iterator[Problem]:
    """Yield contradictions between the classes of the config and the categories of the file."""
    names = found.classes
    if len(names) > CLASSES:
        what = (
            f"{counted(len(names), 'class')}; allowed: at most {CLASSES}, as mmdet's label {CLASSES} marks pixels "
            "without one"
        )
        yield Problem("classes", path, what, True)
    in_file = [name for name in found.categories if name in names]
    if not in_file or in_file != list(names):
        listed = summarize(map(repr, found.categories), 10)
        what = f"classes={_few(names)}; the file has {listed}; allowed: all or some of them, in this order"
        yield Problem("classes", path, what, True)
        return
    wrong = next((i for i, name in enumerate(names) if i and name in things and names[i - 1] not in things), None)
    if wrong is not None:
        what = (
            f"thing {names[wrong]!r} after stuff {names[wrong - 1]!r}: mmdet's heads number things first; allowed: a "
            "file whose categories begin with all things"
        )
        yield Problem("classes", path, what, True)
    for kind, given, real in (
        ("thing_classes", classes.things, [name for name in names if name in things]),
        ("stuff_classes", classes.stuff, [name for name in names if name not in things]),
    ):
        if given is not None and set(given) != set(real):
            what = f"metainfo.{kind}={_few(given)}; by isthing in the file they are {_few(real)}"
            yield Problem("classes", path, f"{what}; allowed: those of the file", True)


class _Reader:
    """Checks the annotations of a file, and adds their segments to the images."""

    def __init__(
        self,
        found: Annotations,
        images: Mapping[Any, PanopticImage],
        categories: Mapping[int, str],
        things: set[Any],
        folder: str,
    ) -> None:
        self.found, self.images, self.categories, self.things = found, images, categories, things
        self.folder, self.boxes, self.seen = folder, BoxCounts(), set[Any]()

    def add_all(self, annotations: Sequence[Any]) -> None:
        """Check all annotations."""
        for i, annotation in enumerate(annotations):
            if not isinstance(annotation, dict) or not isinstance(annotation.get("segments_info"), list):
                what = "no list segments_info; allowed: the format of COCO's panoptic files, not of its instance files"
                self._report("annotation", f"annotations[{i}]", what)
                continue
            key = annotation.get("image_id")
            where, image = f"image id {key}", self.images.get(key) if isinstance(key, (str, int, float)) else None
            if image is None:
                self._report("image unknown", f"annotations[{i}]", f"image_id={shown_value(key)}: unknown image")
            elif key in self.seen:
                self._report("annotation", where, "two annotations for this image; allowed: one with all its segments")
            else:
                self.seen.add(key)
                self._check_png_name(annotation, image, where)
                for segment in annotation["segments_info"]:
                    self._add(segment, image, where)
        self.found.problems += self.boxes.problems(self.found.path)

    def _report(self, kind: str, where: str, what: str, breaks: bool = True) -> None:
        self.found.problems.append(Problem(kind, f"{self.found.path}: {where}", what, breaks))

    def _check_png_name(self, annotation: Mapping, image: PanopticImage, where: str) -> None:
        name = annotation.get("file_name")
        if isinstance(name, str) and os.path.normpath(os.path.join(self.folder, name)) != os.path.normpath(image.png):
            what = (
                f"file_name={name!r} of its segments; mmdet reads {os.path.relpath(image.png, self.folder or '.')!r}, "
                "the file_name of the image with .png for .jpg; allowed: the same name"
            )
            self._report("segments", where, what)

    def _add(self, segment: Any, image: PanopticImage, where: str) -> None:
        self.found.objects += 1
        key = segment.get("id") if isinstance(segment, dict) else None
        if not isinstance(segment, dict) or not is_integer(key) or not 0 < key <= LARGEST:
            what = f"segment {shown_value(segment)}; allowed: an object with an integer id from 1 to {LARGEST}"
            return self._report("segment", where, what)
        where = f"{where}, segment id {key}"
        category, box, area = segment.get("category_id"), segment.get("bbox"), segment.get("area")
        crowd, label = segment.get("iscrowd", 0), None
        if isinstance(category, (str, int, float)):
            label = self.categories.get(category)  # type: ignore[arg-type]  # mmdet looks up any id
        if key in image.segments:
            return self._report("segment", where, "two segments of the image with this id")
        if label is None:
            return self._report("category", where, f"category_id={shown_value(category)} is not among the categories")
        if label not in self.found.classes:
            what = f"{label!r} is not among the config's classes; mmdet cannot leave out segments"
            return self._report("category", where, what)
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
            return self._report("box", where, f"bbox={shown_value(box)}; allowed: [x, y, width, height] in pixels")
        if not is_number(area):
            return self._report("area", where, f"area={shown_value(area)}; allowed: a number of pixels")
        if crowd not in (0, 1):
            return self._report("iscrowd", where, f"iscrowd={shown_value(crowd)}; allowed: 0 or 1")
        x, y, w, h = box
        used = area > 0 and w >= 1 and h >= 1
        if not used:
            what = f"area={area}, bbox={box}: its pixels are ignored in training; allowed: at least 1 x 1"
            self._report("box", where, what, breaks=False)
        self.boxes.add(box, image.width, image.height)
        thing = category in self.things
        image.segments[key] = Segment(label, thing, bool(crowd), (x, y, w, h), area, used)
        if crowd:
            self.found.crowds += 1
        elif used:
            image.labels.append(label)
            if thing:
                image.boxes.append((x, y, x + w, y + h))
        return None


def _report_images_without_segments(
    dataset: Mapping[str, Any], found: Annotations, known: Mapping[Any, PanopticImage]
) -> None:
    """Add images without segments to the problems, and the lack of any segment."""
    without = [key for key, image in known.items() if not image.segments]
    left_out = not dataset.get("test_mode") and (dataset.get("filter_cfg") or {}).get("filter_empty_gt")
    if len(without) == len(known) and not any(problem.breaks for problem in found.problems):
        end = "training would hang"
        if dataset.get("test_mode"):
            end = "there is nothing to evaluate. To predict on these images, use `mmgcvit predict` with --ann-file"
        found.problems.append(Problem("empty", found.path, f"no image has a segment: {end}", True))
    elif without and not left_out:
        what = f"{len(without)} of {counted(len(known), 'image')} without segments, such as image id {without[0]}"
        found.problems.append(Problem("empty", found.path, f"{what}; all their pixels are ignored", False))


def _few(names: Sequence[str]) -> str:
    return f"({summarize(map(repr, names), 10)})"


def ids_of(png: bytes) -> np.ndarray:
    """Decode the ids of a panoptic PNG, R + 256 G + 65536 B; (H, W) int32.

    Raises:
        AnnotationError: the file cannot be decoded, or has no three channels of 8 bits.
    """
    try:
        with any_image_size(), Image.open(io.BytesIO(png)) as image:
            require_pixels(*image.size)
            mode = image.mode
            pixels = np.asarray(image.convert("RGB")).astype(np.int32) if mode in MODES else None
    except Exception as error:  # Pillow's decoders raise many types of errors
        raise AnnotationError(f"cannot be decoded: {error}") from error
    if pixels is None:
        raise AnnotationError(mode_fault(mode))
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


def mode_fault(mode: str) -> str:
    """Say why a PNG of one of Pillow's modes cannot hold ids as colours."""
    return f"has pixels of mode {mode!r}; allowed: 'RGB', in which an id is R + 256 G + 65536 B"


def header_problems(images: Sequence[PanopticImage]) -> Iterator[Problem]:
    """Yield missing PNGs, and those of another size or mode; only headers are read, of at most :data:`HEADERS`."""
    images = [image for image in images if image.png]
    yield from missing_problems([image.png for image in images])
    chosen = images[:: max(1, -(-len(images) // HEADERS))]
    with ThreadPoolExecutor(THREADS) as pool:
        for image, found in zip(chosen, pool.map(lambda image: header(image.png), chosen), strict=True):
            if found and found[0] != (image.width, image.height):
                yield png_size_problem(image.png, found[0], (image.width, image.height))
            elif found and found[1] not in MODES:
                yield Problem("segments", image.png, mode_fault(found[1]), True)


def png_size_problem(path: str, size: tuple[int, int], said: tuple[int, int]) -> Problem:
    """Problem of a PNG whose (width, height) is not that of its image."""
    what = f"is {size[0]} x {size[1]} (width x height), and its image {said[0]} x {said[1]}"
    return Problem("size", path, f"{what}; allowed: the size of the image", True)


def check_png(image: PanopticImage) -> list[Problem]:
    """Decode the PNG of an image, and compare it with the segments in the JSON file."""
    path = image.png
    if not path:
        return []
    try:
        ids = ids_of(Path(path).read_bytes())
    except FileNotFoundError:
        return [Problem("segments", path, "no such file", True)]
    except (OSError, AnnotationError) as error:
        return [Problem("segments", path, str(error), True)]
    if ids.shape != (image.height, image.width):
        return [png_size_problem(path, ids.shape[::-1], (image.width, image.height))]
    values, places, areas = np.unique(ids, return_inverse=True, return_counts=True)
    pixels = dict(zip(values.tolist(), areas.tolist(), strict=True))
    problems = []
    strange = [key for key in pixels if key != VOID and key not in image.segments]
    if strange:
        count = sum(pixels[key] for key in strange)
        what = f"{counted(count, 'pixel has', 'pixels have')} an id that is not in segments_info: {summarize(strange)}"
        if not any(key in image.segments for key in pixels):
            what += "; no id of segments_info is in the file. Are its channels in the order RGB?"
        problems.append(Problem("segments", path, what, True))
    missing = [key for key in image.segments if key not in pixels]
    if missing:
        what = f"has no pixels of the segments {summarize(missing)} of segments_info"
        problems.append(Problem("segments", path, what, True))
    places = places.reshape(ids.shape)
    wrong = []
    for i, key in enumerate(values.tolist()):
        segment = image.segments.get(key)
        if segment is not None and segment.is_thing and segment.used:
            own = places == i
            rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
            x, y, w, h = segment.box
            around = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            wrong += [key] * (not agree((x, y, x + w, y + h), around))
    if wrong:
        what = f"the boxes of the segments {summarize(wrong)} in the JSON file do not fit their pixels"
        problems.append(Problem("box", path, what, False))
    return problems
