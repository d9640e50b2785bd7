"""The format 'CVAT for images': one XML file with all images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import UNSPLIT, Data, Instance, Item, split_name, unique_names
from mmgcvit.finetune.formats.base import Format, instance_tasks
from mmgcvit.finetune.formats.shapes import bounds, ellipse, empty_mask, flat, join, rle, rotate, rotated_note
from mmgcvit.finetune.scan import Node, Scan, number, whole
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted

LEFT_OUT = ("polyline", "points", "cuboid", "skeleton", "tag")


class Cvat(Format):
    """CVAT for images 1.1: boxes, polygons, ellipses and masks. Shapes with one group and label are one object."""

    name, title, tasks = "cvat", "CVAT for images (XML)", ("detect", "segment")
    layout = "annotations.xml ('CVAT for images 1.1', exported with images) and images/"

    def find(self, scan: Scan) -> list[Path]:
        """Return the XML files of CVAT."""
        return [path for path, root in scan.xml_roots.items() if root.tag == "annotations"]

    def read(self, scan: Scan, task: str | None) -> Data:
        """Read all images; classes are the labels of the task, in its order."""
        files = self.find(scan)
        if len(files) > 1:
            raise AnnotationError(f"{scan.root}: several CVAT files: {summarize(files, 4)}; give one of them as DATA")
        path = files[0]
        root = scan.xml_roots[path]
        if track := root.find("track"):
            raise AnnotationError(f"{path}:{track.line}: a track: 'CVAT for video'; allowed: 'CVAT for images 1.1'")
        data = Data(self.name, scan.root, [], {})
        names = _labels(root, path)
        if not names:
            raise AnnotationError(f"{path}: no labels in meta; allowed: meta/task/labels/label/name")
        left_out: dict[str, int] = {}
        rotated: list[str] = []
        for image in root.all("image"):
            where = f"{path}:{image.line}"
            name = _attribute(image, "name", path)
            size = [whole(_attribute(image, key, path), f"{where}: {key}") for key in ("width", "height")]
            subset = image.attributes.get("subset", "")
            near = [path.parent / "images" / subset, path.parent / "images", path.parent, path.parent / subset]
            file = scan.find_image(name, near, where)
            # The subset is a name, not a path: '/train' is no folder of the system.
            named = (Path(subset.lower().strip("/")), Path()) if subset else (file.parent / "x", scan.root)
            split = split_name(*named)
            item = Item(file, (size[0], size[1]))
            item.instances = _objects(image, names, path, item.size, left_out, rotated)
            data.splits.setdefault(split or UNSPLIT, []).append(item)
        data.classes = unique_names(names, data.notes)
        data.notes += [f"left out: {counted(count, 'shape')} of type {kind!r}" for kind, count in left_out.items()]
        data.notes += rotated_note(rotated)
        data.tasks = instance_tasks(data)
        return data


def _labels(root: Node, path: Path) -> list[str]:
    """Names of the labels, without those of the parts of skeletons."""
    for owner in ("task", "project", "job"):
        found = list(root.all(f"meta/{owner}/labels/label"))
        if found:
            own = [node for label in found if label.find("parent") is None for node in label.all("name")]
            if unnamed := [node for node in own if not node.text.strip()]:
                raise AnnotationError(f"{path}:{unnamed[0].line}: a label without a name")
            return [node.text.strip() for node in own]
    return []


def _objects(
    image: Node, names: Sequence[str], path: Path, size: tuple[int, int], left_out: dict[str, int], rotated: list[str]
) -> list[Instance]:
    """Objects of an image; counts the shapes that are left out, and lists the places of rotated boxes."""
    groups: dict[tuple, list[Instance]] = {}
    for shape in image.children:
        if shape.tag in LEFT_OUT:
            left_out[shape.tag] = left_out.get(shape.tag, 0) + 1
            continue
        where = f"{path}:{shape.line}"
        if shape.tag not in ("box", "polygon", "ellipse", "mask"):
            raise AnnotationError(
                f"{where}: <{shape.tag}>; allowed: box, polygon, ellipse, mask, {', '.join(LEFT_OUT)}"
            )
        label = _attribute(shape, "label", path)
        if label not in names:
            raise AnnotationError(f"{where}: label {label!r}; allowed: {summarize(names)}")
        found, mask = _shape(shape, path, size)
        if shape.tag == "box" and len(found) > 2:
            rotated.append(where)
        instance = Instance(names.index(label), bounds(found), mask)
        group = shape.attributes.get("group_id", "0")
        key = (label, group) if group not in ("", "0") else (label, len(groups), "single")
        groups.setdefault(key, []).append(instance)
    return [parts[0] if len(parts) == 1 else join(parts) for parts in groups.values()]


def _shape(shape: Node, path: Path, size: tuple[int, int]) -> tuple[list[tuple[float, float]], list | dict | None]:
    """Points around a shape, and its mask: two points for an upright box, four for a rotated one."""
    where = f"{path}:{shape.line}"

    def value(key: str) -> float:
        return number(_attribute(shape, key, path), f"{where}: {key}")

    angle = number(shape.attributes.get("rotation", 0), f"{where}: rotation")
    if shape.tag == "box":
        x1, y1, x2, y2 = (value(key) for key in ("xtl", "ytl", "xbr", "ybr"))
        if not angle:
            return [(x1, y1), (x2, y2)], None
        return rotate([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], (x1 + x2) / 2, (y1 + y2) / 2, angle), None
    if shape.tag == "mask":
        left, top, width, height = (
            whole(_attribute(shape, key, path), f"{where}: {key}") for key in ("left", "top", "width", "height")
        )
        if left + width > size[0] or top + height > size[1]:
            raise AnnotationError(f"{where}: the mask is outside of the image of {size[0]} x {size[1]}")
        mask = empty_mask(*size, where)
        runs = [whole(word, f"{where}: rle") for word in _attribute(shape, "rle", path).split(",")]
        if sum(runs) != width * height:
            raise AnnotationError(
                f"{where}: rle has {counted(sum(runs), 'pixel')}; allowed: width * height = {width * height}"
            )
        part = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        mask[top : top + height, left : left + width] = part
        return [(left, top), (left + width, top + height)], rle(mask)
    if shape.tag == "ellipse":
        points = ellipse(value("cx"), value("cy"), value("rx"), value("ry"), angle)
    else:
        points = []
        for pair in _attribute(shape, "points", path).split(";"):
            first, _, second = pair.partition(",")
            points.append((number(first, f"{where}: points"), number(second, f"{where}: points")))
        if len(points) < 3:
            raise AnnotationError(f"{where}: polygon of {counted(len(points), 'point')}; allowed: at least 3")
    return points, [flat(points)]


def _attribute(node: Node, key: str, path: Path) -> str:
    if key not in node.attributes:
        raise AnnotationError(f"{path}:{node.line}: <{node.tag}> without {key}")
    return node.attributes[key]
