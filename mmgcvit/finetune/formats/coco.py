"""COCO's format: one JSON file per split with images, annotations and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgcvit.datasets.categories import entries_of, new_id, read_categories, value_of
from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import UNSPLIT, Data, Instance, Item, image_size, split_name, unique_names
from mmgcvit.finetune.formats.base import Format, instance_tasks
from mmgcvit.finetune.formats.shapes import angle_note
from mmgcvit.finetune.scan import Scan, flag, number, whole
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted

#: Files of COCO beside instances_*.json.
OTHERS = ("person_keypoints_", "stuff_", "captions_")


class Coco(Format):
    """COCO JSON, also as Roboflow, CVAT and Label Studio export it."""

    name, title, tasks = "coco", "COCO JSON", ("detect", "segment")
    layout = (
        "{train,valid,test}/_annotations.coco.json beside the images; annotations/instances_{train,val}.json; "
        "{train,val}.json or annotations.json, with images/"
    )

    def find(self, scan: Scan) -> list[Path]:
        """Return the JSON files with images, annotations and categories."""
        return [path for path, kind in scan.json_kinds.items() if kind == "coco"]

    def read(self, scan: Scan, task: str | None) -> Data:
        """Read one file per split; all must have the same categories."""
        files = self.find(scan)
        data = Data(self.name, scan.root, [], {})
        if any(path.name.startswith("instances_") for path in files):
            left = [path.name for path in files if path.name.startswith(OTHERS)]
            files = [path for path in files if not path.name.startswith(OTHERS)]
            data.notes += [f"not read: {name}" for name in left]
        by_split: dict[str, Path] = {}
        for path in files:
            split = split_name(path, scan.root) or UNSPLIT
            if split in by_split:
                raise AnnotationError(
                    f"{scan.root}: two COCO files for {split!r}: {by_split[split]} and {path}; allowed: one per split. "
                    "Give the file itself in place of the folder, or move the other one away"
                )
            by_split[split] = path
        names: dict[Any, str] | None = None
        angles: list[str] = []
        for split, path in by_split.items():
            content = scan.json(path)
            categories = read_categories(content, path)
            if names is None:
                names, first = categories, path
            elif names != categories:
                raise AnnotationError(
                    f"{path}: categories {summarize(categories.items())}; {first} has {summarize(names.items())}; "
                    "allowed: the same in all files"
                )
            data.splits[split] = _read_items(scan, content, path, list(names))  # in the order of the first file
            angles += _angles(content, path)
        names = _without_root(names or {}, data, [scan.json(path) for path in by_split.values()])
        data.classes = unique_names(list(names.values()), data.notes)
        data.notes += angle_note(angles)
        data.tasks = instance_tasks(data)
        if crowds := sum(instance.crowd for image in data.items for instance in image.instances):
            data.notes.append(
                f"{counted(crowds, 'object has', 'objects have')} iscrowd=1: ignored in training and evaluation"
            )
        return data


def _read_items(scan: Scan, content: Mapping, path: Path, ids: Sequence[Any]) -> list[Item]:
    near = _folders(scan, path)
    labels = {identity: label for label, identity in enumerate(ids)}
    items: dict[Any, Item] = {}
    for i, image in enumerate(entries_of(content, "images", path)):
        where = f"{path}: images[{i}]"
        identity, name = new_id(image, where, items), value_of(image, "file_name", where)
        if not isinstance(name, str):
            raise AnnotationError(f"{where}.file_name={name!r}; allowed: a file name")
        file = scan.find_image(name, near, f"{where}.file_name")
        width, height = (whole(image.get(key) or 0, f"{where}.{key}") for key in ("width", "height"))
        items[identity] = Item(file, (width, height) if width and height else image_size(file))
    for i, annotation in enumerate(entries_of(content, "annotations", path)):
        where = f"{path}: annotations[{i}]"
        owner, kind = value_of(annotation, "image_id", where), value_of(annotation, "category_id", where)
        if not isinstance(owner, (int, str)) or owner not in items:
            raise AnnotationError(f"{where}.image_id={owner!r}: no image has this id")
        if not isinstance(kind, (int, str)) or kind not in labels:
            raise AnnotationError(f"{where}.category_id={kind!r}; allowed: {summarize(labels)}")
        crowd = flag(annotation.get("iscrowd"), f"{where}.iscrowd")
        mask = _mask(annotation.get("segmentation"), f"{where}.segmentation")
        items[owner].instances.append(Instance(labels[kind], _box(annotation, where), mask, crowd))
    return list(items.values())


def _mask(mask: Any, where: str) -> list | dict | None:
    """Polygons or run lengths as they are in the file, if they consist of numbers; the check of the data sees more."""
    if not mask:
        return None
    if isinstance(mask, list):
        for i, polygon in enumerate(mask):
            if not isinstance(polygon, list):
                raise AnnotationError(f"{where}[{i}]={polygon!r}; allowed: [x1, y1, x2, y2, ...]")
            for value in polygon:
                number(value, f"{where}[{i}]")
        return [[float(v) if isinstance(v, str) else v for v in polygon] for polygon in mask]
    if not isinstance(mask, dict):
        raise AnnotationError(f"{where}={mask!r}; allowed: polygons or RLE")
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not isinstance(counts, (list, str)):
        raise AnnotationError(f"{where}={mask!r:.100}; allowed: run lengths with size [height, width] and counts")
    whole_size = [whole(side, f"{where}.size") for side in size]
    runs = counts if isinstance(counts, str) else [whole(run, f"{where}.counts") for run in counts]
    return dict(mask, size=whole_size, counts=runs)


def _angles(content: Mapping, path: Path) -> list[str]:
    """Places of boxes for which CVAT has written an angle."""
    found = []
    for i, annotation in enumerate(content["annotations"]):
        attributes = annotation.get("attributes")
        place = f"{path}: annotations[{i}].attributes.rotation"
        if isinstance(attributes, dict) and number(attributes.get("rotation") or 0, place):
            found.append(place)
    return found


def _box(annotation: Mapping, where: str) -> tuple[float, float, float, float]:
    box = value_of(annotation, "bbox", where)
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        raise AnnotationError(f"{where}.bbox={box!r}; allowed: [x, y, width, height]")
    x, y, width, height = (number(value, f"{where}.bbox") for value in box)
    return x, y, width, height


def _folders(scan: Scan, path: Path) -> list[Path]:
    """Folders that the file names in an annotation file may be relative to."""
    above = path.parent.parent if path.parent != scan.root else path.parent
    stem = path.stem.rpartition("_")[2]  # instances_train2017
    split = split_name(path, scan.root)
    near = [path.parent]
    for base in dict.fromkeys((path.parent, above, scan.root)):
        for name in filter(None, ("images", stem, split)):
            near += [base / name, base / "images" / name]
        near.append(base)
    return list(dict.fromkeys(near))


def _without_root(names: dict[Any, str], data: Data, contents: Sequence[Mapping]) -> dict[Any, str]:
    """Leave out Roboflow's first category: it is the supercategory of all others and has no annotations."""
    first = next(iter(names), None)
    others = [c for content in contents for c in content["categories"] if c["id"] != first]
    used = any(item.label == 0 for image in data.items for item in image.instances)
    if used or not others or any(category.get("supercategory") != names[first] for category in others):
        return names
    data.notes.append(f"category {names[first]!r} has no annotations and stands for all others: left out")
    for image in data.items:
        for item in image.instances:
            item.label -= 1
    return {identity: name for identity, name in names.items() if identity != first}
