"""Label Studio's JSON: a list of tasks with their annotations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import UNSPLIT, Data, Instance, Item, image_size
from mmgcvit.finetune.formats.base import Format, instance_tasks
from mmgcvit.finetune.formats.shapes import bounds, ellipse, flat, rotate, rotated_note
from mmgcvit.finetune.scan import Scan, number
from mmgcvit.utils import summarize
from mmgcvit.utils.images import IMAGES
from mmgcvit.utils.text import counted

UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # that Label Studio puts before the name of an uploaded file
BOX = "rectanglelabels"
#: Kinds of results, with the key of their labels.
KINDS = {BOX: "box", "polygonlabels": "polygon", "ellipselabels": "ellipse", "choices": "class"}


class LabelStudio(Format):
    """Label Studio JSON and JSON-MIN: rectangles, polygons and ellipses, or choices for the class of an image."""

    name, title, tasks = "labelstudio", "Label Studio JSON", ("detect", "segment", "classify")
    layout = "an export as JSON or JSON-MIN, with the images in the same folder or below (or an export as COCO, YOLO)"

    def find(self, scan: Scan) -> list[Path]:
        """Return the JSON files with tasks."""
        return [path for path, kind in scan.json_kinds.items() if kind == "label studio"]

    def read(self, scan: Scan, task: str | None) -> Data:
        """Read all tasks that were annotated; the classes are the labels in them, sorted."""
        files = self.find(scan)
        if len(files) > 1:
            raise AnnotationError(f"{scan.root}: several exports: {summarize(files, 4)}; give one of them as DATA")
        path = files[0]
        data = Data(self.name, scan.root, [], {UNSPLIT: []})
        skipped = several = 0
        rotated: list[str] = []
        read: list[tuple[Item, list[tuple[str, Instance | None]]]] = []
        for i, entry in enumerate(scan.json(path)):
            where = f"{path}: [{i}]"
            if not isinstance(entry, dict):
                raise AnnotationError(f"{where} is {entry!r}; allowed: a task")
            results = _results(entry, where)
            if results is None:
                skipped += 1
                continue
            several += results[1]
            image = _image(scan, entry.get("data", entry), path, where)
            item = Item(image, image_size(image))
            objects = [_result(value, kind, item.size, place) for value, kind, place in results[0]]
            rotated += [place for value, kind, place in results[0] if kind == BOX and _angle(value, place)]
            read.append((item, [(label, instance) for labels, instance in objects for label in labels]))
        data.classes = sorted({label for _, objects in read for label, _ in objects})
        if not data.classes:
            raise AnnotationError(f"{path}: no task has labels, so there are no class names")
        _assign(data, read, path)
        data.notes += rotated_note(rotated)
        if skipped:
            data.notes.append(f"{counted(skipped, 'task is', 'tasks are')} not annotated, or skipped: left out")
        if several:
            data.notes.append(
                f"{counted(several, 'task is', 'tasks are')} annotated more than once; the first annotation is used"
            )
        return data


def _assign(data: Data, read: list[tuple[Item, list[tuple[str, Instance | None]]]], path: Path) -> None:
    whole = any(instance is None for _, objects in read for _, instance in objects)
    for item, objects in read:
        for label, instance in objects:
            index = data.classes.index(label)
            if (instance is None) != whole:
                raise AnnotationError(f"{path}: {item.path}: both choices and regions; allowed: one of them")
            if instance is None:
                if item.label is not None:
                    raise AnnotationError(f"{path}: {item.path}: more than one choice; allowed: one class per image")
                item.label = index
            else:
                instance.label = index
                item.instances.append(instance)
        data.splits[UNSPLIT].append(item)
    if whole:
        bare = [item for item in data.splits[UNSPLIT] if item.label is None]
        data.splits[UNSPLIT] = [item for item in data.splits[UNSPLIT] if item.label is not None]
        data.notes += [f"{counted(len(bare), 'image has', 'images have')} no choice: left out"] if bare else []
    data.tasks = ("classify",) if whole else instance_tasks(data)


def _results(entry: Mapping, where: str) -> tuple[list[tuple[Mapping, str, str]], bool] | None:
    """Results of a task with their kinds and places, and whether there are other annotations; None if not annotated."""
    found: list[tuple[Mapping, str, str]] = []
    if "data" not in entry:  # JSON-MIN
        for key, values in entry.items():
            if isinstance(values, list) and values and isinstance(values[0], dict):
                for i, value in enumerate(values):
                    place = f"{where}.{key}[{i}]"
                    if not isinstance(value, dict):
                        raise AnnotationError(f"{place}={value!r}; allowed: an object with keys")
                    kinds = [kind for kind in (*KINDS, "brushlabels", "keypointlabels") if kind in value]
                    found += [(value, kind, place) for kind in kinds[:1]]
            elif key == "choice" and isinstance(values, str):
                found.append(({"choices": [values]}, "choices", f"{where}.{key}"))
        return found, False
    key = "annotations" if "annotations" in entry else "completions"
    done = [a for a in _list(entry, key, where) if isinstance(a, dict) and not a.get("was_cancelled")]
    if not done:
        return None
    for i, result in enumerate(_list(done[0], "result", f"{where}.{key}[0]")):
        place = f"{where}.{key}[0].result[{i}]"
        if not isinstance(result, dict) or not isinstance(result.get("type"), str):
            raise AnnotationError(f"{place}: has no type")
        kind, value = result["type"], result.get("value")
        if kind in ("relation", "textarea", "rectangle", "polygon", "ellipse", "brush"):  # shapes without labels
            continue
        if not isinstance(value, dict):
            raise AnnotationError(f"{place}: has no value")
        found.append((value, kind, place))
    return found, len(done) > 1


def _list(values: Mapping, key: str, where: str) -> list:
    found = values.get(key) or []
    if not isinstance(found, list):
        raise AnnotationError(f"{where}.{key}={found!r}; allowed: a list")
    return found


def _result(value: Mapping, kind: str, size: tuple[int, int], where: str) -> tuple[list[str], Instance | None]:
    if kind not in KINDS:
        hint = "; export brush labels as COCO" if kind == "brushlabels" else ""
        raise AnnotationError(f"{where}: type {kind!r}; allowed: {', '.join(KINDS)}{hint}")
    labels = value.get(kind)
    if not isinstance(labels, list) or not labels or not all(isinstance(v, str) and v.strip() for v in labels):
        raise AnnotationError(f"{where}: {kind}={labels!r}; allowed: names")
    if kind == "choices":
        return labels, None
    if len(labels) > 1:
        raise AnnotationError(f"{where}: {kind}={labels!r}; allowed: one name")

    def pixels(key: str, side: int) -> float:
        return number(value.get(key), f"{where}.value.{key}") * size[side] / 100

    if kind == "polygonlabels":
        given = value.get("points")
        if not isinstance(given, list) or len(given) < 3 or any(not isinstance(p, list) or len(p) != 2 for p in given):
            raise AnnotationError(f"{where}.value.points={given!r}; allowed: 3 or more [x, y]")
        place = f"{where}.value.points"
        points = [(number(x, place) * size[0] / 100, number(y, place) * size[1] / 100) for x, y in given]
        return labels, Instance(0, bounds(points), [flat(points)])
    angle = _angle(value, where)
    x, y = pixels("x", 0), pixels("y", 1)
    if kind == "ellipselabels":
        points = ellipse(x, y, pixels("radiusX", 0), pixels("radiusY", 1), angle)
        return labels, Instance(0, bounds(points), [flat(points)])
    width, height = pixels("width", 0), pixels("height", 1)
    if not angle:
        return labels, Instance(0, (x, y, width, height))
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    return labels, Instance(0, bounds(rotate(corners, x, y, angle)))


def _angle(value: Mapping, where: str) -> float:
    return number(value.get("rotation") or 0, f"{where}.value.rotation")


def _image(scan: Scan, values: Any, path: Path, where: str) -> Path:
    """Image of a task: the one value of its data that names an image."""
    named = {key: value for key, value in values.items() if isinstance(value, str) and _name(value)} if isinstance(
        values, dict) else {}  # fmt: skip
    if len(named) != 1:
        raise AnnotationError(f"{where}: images {named}; allowed: one image per task, whose data names a file")
    name = _name(next(iter(named.values())))
    near = [path.parent, path.parent / "images"]
    short = UPLOAD.sub("", name.rpartition("/")[2])
    if name.rpartition("/")[2] not in scan.by_name and short in scan.by_name:
        name = short
    return scan.find_image(name, near, where)


def _name(text: str) -> str:
    """File name in a path, a URL, or '/data/local-files/?d=...'; '' if it is none of an image."""
    try:
        parts = urlparse(text)
    except ValueError:  # no URL, such as 'http://[a.jpg'
        return ""
    name = (
        parse_qs(parts.query)["d"][0] if "d" in parse_qs(parts.query) else unquote(parts.path) if parts.scheme else text
    )
    return name.removeprefix("/data/upload/").lstrip("/") if name.lower().endswith(IMAGES) else ""
