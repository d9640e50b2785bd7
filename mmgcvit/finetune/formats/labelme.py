"""LabelMe's format: a JSON file per image, with shapes."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import UNSPLIT, Data, Instance, Item, image_size, split_name
from mmgcvit.finetune.formats.base import Format, instance_tasks
from mmgcvit.finetune.formats.shapes import bounds, ellipse, empty_mask, flat, join, rle
from mmgcvit.finetune.scan import Scan, number, whole
from mmgcvit.utils.text import counted

LEFT_OUT = ("point", "points", "line", "linestrip")  # shapes without an area


class LabelMe(Format):
    """LabelMe JSON: polygons, rectangles, circles and masks. Shapes with one group and label are one object."""

    name, title, tasks = "labelme", "LabelMe JSON", ("detect", "segment")
    layout = "NAME.json beside each image (or in folders train/, val/)"

    def find(self, scan: Scan) -> list[Path]:
        """Return the JSON files with shapes and an image path."""
        return [path for path, kind in scan.json_kinds.items() if kind == "labelme"]

    def read(self, scan: Scan, task: str | None) -> Data:
        """Read all files; the classes are the labels in them, sorted."""
        data = Data(self.name, scan.root, [], {})
        left_out: dict[str, int] = {}
        read: list[tuple[str, Item, list[tuple[str, Instance]]]] = []
        for path in self.find(scan):
            content = scan.json(path)
            name = content["imagePath"]
            if not isinstance(name, str):
                raise AnnotationError(f"{path}: imagePath={name!r}; allowed: a file name")
            image = scan.find_image(name, [path.parent, path.parent.parent / "images"], f"{path}: imagePath")
            sizes = [whole(content.get(key) or 0, f"{path}: {key}") for key in ("imageWidth", "imageHeight")]
            item = Item(image, (sizes[0], sizes[1]) if all(sizes) else image_size(image))
            read.append(
                (split_name(path.parent / "x", scan.root) or UNSPLIT, item, _objects(content, item, path, left_out))
            )
        data.classes = sorted({label for _, _, objects in read for label, _ in objects})
        if not data.classes:
            raise AnnotationError(f"{scan.root}: no object in {len(read)} LabelMe files, so there are no class names")
        for split, item, objects in read:
            for label, instance in objects:
                instance.label = data.classes.index(label)
                item.instances.append(instance)
            data.splits.setdefault(split, []).append(item)
        data.notes += [
            f"{counted(count, 'shape')} of type {kind!r} without an area: left out" for kind, count in left_out.items()
        ]
        data.tasks = instance_tasks(data)
        return data


def _objects(content: Mapping, item: Item, path: Path, left_out: dict[str, int]) -> list[tuple[str, Instance]]:
    shapes = content["shapes"]
    if not isinstance(shapes, list):
        raise AnnotationError(f"{path}: shapes is {type(shapes).__name__}; allowed: a list")
    groups: dict[tuple, list[Instance]] = {}
    for i, shape in enumerate(shapes):
        where = f"{path}: shapes[{i}]"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
            raise AnnotationError(f"{where}: has no label; allowed: an object with label and points")
        kind = shape.get("shape_type") or "polygon"
        if kind in LEFT_OUT:
            left_out[kind] = left_out.get(kind, 0) + 1
            continue
        group = shape.get("group_id")
        if not isinstance(group, (int, str, type(None))):
            raise AnnotationError(f"{where}.group_id={group!r}; allowed: an integer")
        key = (shape["label"], "group", group) if group is not None else (shape["label"], "shape", i)
        groups.setdefault(key, []).append(_shape(shape, kind, item.size, where))
    return [(key[0], parts[0] if len(parts) == 1 else join(parts)) for key, parts in groups.items()]


def _shape(shape: Mapping, kind: str, size: tuple[int, int], where: str) -> Instance:
    given = shape.get("points")
    if not isinstance(given, list) or not all(isinstance(point, list) and len(point) == 2 for point in given):
        raise AnnotationError(f"{where}.points={given!r}; allowed: [[x, y], ...]")
    points = [(number(x, f"{where}.points"), number(y, f"{where}.points")) for x, y in given]
    least = {"polygon": 3, "circle": 2, "rectangle": 2, "mask": 2, "oriented_rectangle": 4}
    if not isinstance(kind, str) or kind not in least:
        raise AnnotationError(f"{where}.shape_type={kind!r}; allowed: {', '.join((*least, *LEFT_OUT))}")
    if len(points) < least[kind]:
        raise AnnotationError(f"{where}.points: {len(points)} for a {kind}; allowed: at least {least[kind]}")
    if kind == "rectangle":
        return Instance(0, bounds(points))
    if kind == "circle":
        points = ellipse(*points[0], radius := math.dist(points[0], points[1]), radius)
    if kind == "mask":
        return Instance(0, bounds(points), rle(_mask(shape.get("mask"), points, size, where)))
    return Instance(0, bounds(points), [flat(points)])


def _mask(encoded: Any, points: Sequence[Sequence[float]], size: tuple[int, int], where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            part = np.asarray(image.convert("L")) > 0
    except Exception as error:  # Pillow raises errors of many types
        raise AnnotationError(f"{where}.mask: not a PNG in base64: {error}") from error
    mask = empty_mask(*size, where)
    x, y = (round(min(values)) for values in zip(*points, strict=True))
    part = part[max(-y, 0) :, max(-x, 0) :]  # what lies left of the image or above it
    y, x = max(y, 0), max(x, 0)
    space = mask[y : y + part.shape[0], x : x + part.shape[1]]
    space[:] = part[: space.shape[0], : space.shape[1]]
    return mask
