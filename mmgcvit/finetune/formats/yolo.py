"""YOLO's format: a text file per image with relative coordinates, and data.yaml with class names and folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgcvit.datasets.text import read_lines, read_names, read_utf8
from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import SPLITS, UNSPLIT, Data, Instance, Item, image_size, split_name, unique_names
from mmgcvit.finetune.formats.base import Format, instance_tasks
from mmgcvit.finetune.formats.shapes import bounds
from mmgcvit.finetune.scan import Scan, number, read_yaml, walk
from mmgcvit.utils import summarize
from mmgcvit.utils.images import IMAGES
from mmgcvit.utils.text import counted

NAMES = "classes.txt"  # Label Studio writes it in place of data.yaml
TOLERANCE = 0.01  # coordinates may be outside the image by this much, by rounding; they are clipped
FOLDERS = ("train", "val", "valid", "validation", "test")  # keys of data.yaml with images


class Yolo(Format):
    """YOLO for detection and segmentation, as ultralytics, Roboflow and Label Studio write it."""

    name, title, tasks = "yolo", "YOLO", ("detect", "segment")
    layout = "data.yaml with names and train, val; images/ and labels/NAME.txt; or images/, labels/ and classes.txt"

    def find(self, scan: Scan) -> list[Path]:
        """Return the YAML files with class names, or else the text files in folders called labels."""
        found = [path for path in scan.with_suffix(".yaml", ".yml") if _describes(read_yaml(path))]
        return found or [p for p in scan.with_suffix(".txt") if "labels" in p.relative_to(scan.root).parts[:-1]]

    def read(self, scan: Scan, task: str | None) -> Data:
        """Read the label files of all images; an image without one has no objects."""
        files = [path for path in self.find(scan) if path.suffix != ".txt"]
        if len(files) > 1:
            raise AnnotationError(f"{scan.root}: several descriptions: {summarize(files, 4)}; give one of them as DATA")
        data = Data(self.name, scan.root, [], {})
        if files:
            content = read_yaml(files[0])
            names = _names(content, files[0])
            images = _images_of(content, files[0], data)
        else:
            names, images = _without_yaml(scan)
        data.classes = unique_names(names, data.notes)
        missing = 0
        for split, paths in images.items():
            data.splits[split] = []
            for path in paths:
                label_file = _label_file(path)
                item = Item(path, image_size(path))
                if label_file.is_file():
                    item.instances = read_labels(label_file, item.size, len(names))
                else:
                    missing += 1
                data.splits[split].append(item)
        total = sum(map(len, images.values()))
        if missing and missing == total:
            example = next(path for paths in images.values() for path in paths)
            raise AnnotationError(
                f"{scan.root}: no image has a label file, such as {_label_file(example)} for {example}"
            )
        if missing:
            data.notes.append(
                f"{counted(missing, 'image has', 'images have')} no label file: taken as images without objects"
            )
        data.tasks = instance_tasks(data)
        return data


def read_labels(path: Path, size: tuple[int, int], classes: int) -> list[Instance]:
    """Read a label file: a line per object with its class and a box (5 numbers), or a polygon (7 or more).

    Args:
        path: the file.
        size: width and height of the image.
        classes: number of classes.

    Raises:
        AnnotationError: a line is neither, or has a class or a coordinate that is not allowed.
    """
    found = []
    for i, line in enumerate(read_utf8("labels", path).splitlines(), 1):
        where = f"{path}:{i}"
        words = line.split()
        if not words:
            continue
        label, *values = (number(word, where) for word in words)
        if label not in range(classes):
            raise AnnotationError(f"{where}: class {words[0]}; allowed: 0 to {classes - 1}, as data.yaml has names for")
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise AnnotationError(
                f"{where}: {counted(len(words), 'number')}; allowed: 5 (class, centre, size), or 7, 9, ... (class, "
                "polygon)"
            )
        outside = [value for value in values if not -TOLERANCE <= value <= 1 + TOLERANCE]
        if outside:
            raise AnnotationError(f"{where}: coordinate {outside[0]:g}; allowed: 0 to 1, relative to the image")
        if len(values) == 4:
            x, y, width, height = values
            corners = [(x - width / 2, y - height / 2), (x + width / 2, y + height / 2)]
        else:
            corners = list(zip(values[::2], values[1::2], strict=True))
        points = [(min(max(x, 0), 1) * size[0], min(max(y, 0), 1) * size[1]) for x, y in corners]
        mask = None if len(values) == 4 else [[value for point in points for value in point]]
        found.append(Instance(int(label), bounds(points), mask))
    return found


def _describes(content: Any) -> bool:
    return isinstance(content, dict) and ("names" in content or any(key in content for key in ("train", "val", "nc")))


def _names(content: Mapping, path: Path) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict):
        try:
            numbered = {int(key): name for key, name in names.items()}
        except ValueError:
            numbered = {}
        names = [numbered.get(i) for i in range(len(names))]
    if not names or not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise AnnotationError(
            f"{path}: names={content.get('names')!r}; allowed: a name for each class from 0, as a list, or as 0: NAME"
        )
    if "nc" in content and content["nc"] != str(len(names)):
        raise AnnotationError(
            f"{path}: nc={content['nc']}, but {counted(len(names), 'name')}; allowed: as many names as nc says"
        )
    if "kpt_shape" in content:
        raise AnnotationError(f"{path}: kpt_shape: key points are not supported; allowed: boxes or polygons")
    return [name.strip() for name in names]


def _images_of(content: Mapping, path: Path, data: Data) -> dict[str, list[Path]]:
    """Images by split, as the description says."""
    sources = {}
    for key in FOLDERS:
        value = content.get(key)
        entries = [entry for entry in (value if isinstance(value, list) else [value]) if entry]
        if not all(isinstance(entry, str) for entry in entries):
            raise AnnotationError(f"{path}: {key}={value!r}; allowed: a folder, or a list of folders")
        if entries:
            sources[key] = [_place(content, entry, key, path, data) for entry in entries]
    if not sources:
        raise AnnotationError(f"{path}: has none of {', '.join(FOLDERS)}; allowed: folders with images")
    validation = [key for key in FOLDERS if key in sources and SPLITS[key] == "val"]
    if len(validation) > 1:
        raise AnnotationError(f"{path}: has {' and '.join(validation)}; allowed: one of them")
    if "train" in sources and any(sources["train"] == sources[key] for key in validation):
        data.notes.append(f"{path.name}: the folder of the validation images is that of the training images")
        return {UNSPLIT: [image for place in sources["train"] for image in _images_in(place)]}
    found = {SPLITS[key]: [image for place in places for image in _images_in(place)] for key, places in sources.items()}
    roots = [image.parent for images in found.values() for image in images]
    if not roots:
        raise AnnotationError(f"{path}: no images in {summarize(p for places in sources.values() for p in places)}")
    return {split: images for split, images in found.items() if images}


def _place(content: Mapping, entry: str, key: str, path: Path, data: Data) -> Path:
    """Folder or list of an entry of a description; a note says so if it is not where the entry says."""
    inner = entry.lstrip("./")
    given = content.get("path") or ""
    if not isinstance(given, str):
        raise AnnotationError(f"{path}: path={given!r}; allowed: a folder")
    places = [path.parent / given / entry, path.parent / entry, path.parent / given / inner, path.parent / inner]
    tried = list(dict.fromkeys(os.path.abspath(place) for place in places))  # links stay: the labels are beside them
    found = next((place for place in tried if os.path.exists(place)), None)
    if found is None:
        raise AnnotationError(f"{path}: {key}={entry!r}: no such folder; tried {summarize(tried)}")
    if found != tried[0]:
        data.notes.append(f"{path.name}: {key}={entry!r}: there is no {tried[0]}; {found} is taken")
    return Path(found)


def _images_in(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in walk(place) if path.suffix.lower() in IMAGES)
    listed = []
    for i, line in enumerate(read_lines("list of images", place), 1):
        path = next((p for p in (place.parent / line, Path(line)) if os.path.isfile(p)), None)
        if path is None:
            raise AnnotationError(f"{place}:{i}: {line!r}: no such image")
        listed.append(Path(os.path.abspath(path)))
    return listed


def _label_file(image: Path) -> Path:
    """Label file of an image: in the folder labels in place of the last images, or beside the image."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_name(f"{image.stem}.txt")


def _without_yaml(scan: Scan) -> tuple[list[str], dict[str, list[Path]]]:
    listed = [path for path in scan.with_suffix(".txt") if path.name == NAMES]
    if len(listed) != 1:
        raise AnnotationError(
            f"{scan.root}: YOLO labels without class names; allowed: a file data.yaml with names, train and val (or "
            f"one {NAMES} with a name per line)"
        )
    images: dict[str, list[Path]] = {}
    for path in scan.images:
        images.setdefault(split_name(path.parent / "x", scan.root) or UNSPLIT, []).append(path)
    if not images:
        raise AnnotationError(f"{scan.root}: YOLO labels without images")
    return read_names("class names", listed[0]), images
