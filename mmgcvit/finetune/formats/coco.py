"""COCO's format: one JSON file per split with images, annotations and categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import UNSPLIT, Data, Instance, Item, image_size, split_name, unique_names
from mmgcvit.finetune.formats.base import Format, instance_tasks
from mmgcvit.finetune.scan import Scan, number
from mmgcvit.utils import summarize

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
        names = _without_root(names or {}, data, [scan.json(path) for path in by_split.values()])
        data.classes = unique_names(list(names.values()), data.notes)
        data.tasks = instance_tasks(data)
        if crowds := sum(instance.crowd for image in data.items for instance in image.instances):
            data.notes.append(f"{crowds} objects have iscrowd=1: ignored in training and evaluation")
        return data


def read_categories(content: Mapping, path: Path) -> dict[Any, str]:
    """Names of a COCO file's categories by id, in the order of the file."""
    found: dict[Any, str] = {}
    for i, category in enumerate(_objects(content, "categories", path)):
        where = f"{path}: categories[{i}]"
        identity, name = _new_id(category, where, found), _key(category, "name", where)
        if not isinstance(name, (str, int)) or not str(name).strip():
            raise AnnotationError(f"{where}.name={name!r}; allowed: a name")
        found[identity] = str(name)
    if not found:
        raise AnnotationError(f"{path}: categories is empty: there are no class names")
    return found


def _read_items(scan: Scan, content: Mapping, path: Path, ids: Sequence[Any]) -> list[Item]:
    near = _folders(scan, path)
    labels = {identity: label for label, identity in enumerate(ids)}
    items: dict[Any, Item] = {}
    for i, image in enumerate(_objects(content, "images", path)):
        where = f"{path}: images[{i}]"
        identity, name = _new_id(image, where, items), _key(image, "file_name", where)
        if not isinstance(name, str):
            raise AnnotationError(f"{where}.file_name={name!r}; allowed: a file name")
        file = scan.find_image(name, near, f"{where}.file_name")
        size = tuple(int(number(image.get(key) or 0, f"{where}.{key}")) for key in ("width", "height"))
        items[identity] = Item(file, (size[0], size[1]) if all(size) else image_size(file))
    for i, annotation in enumerate(_objects(content, "annotations", path)):
        where = f"{path}: annotations[{i}]"
        owner, kind = _key(annotation, "image_id", where), _key(annotation, "category_id", where)
        if not isinstance(owner, (int, str)) or owner not in items:
            raise AnnotationError(f"{where}.image_id={owner!r}: no image has this id")
        if not isinstance(kind, (int, str)) or kind not in labels:
            raise AnnotationError(f"{where}.category_id={kind!r}; allowed: {summarize(labels)}")
        mask = annotation.get("segmentation") or None
        if mask is not None and not isinstance(mask, (list, dict)):
            raise AnnotationError(f"{where}.segmentation={mask!r}; allowed: polygons or RLE")
        items[owner].instances.append(
            Instance(labels[kind], _box(annotation, where), mask, bool(annotation.get("iscrowd")))
        )
    return list(items.values())


def _box(annotation: Mapping, where: str) -> tuple[float, float, float, float]:
    box = _key(annotation, "bbox", where)
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


def _objects(content: Mapping, key: str, path: Path) -> list[Mapping]:
    values = content[key]
    if not isinstance(values, list):
        raise AnnotationError(f"{path}: {key} is {type(values).__name__}; allowed: a list")
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise AnnotationError(f"{path}: {key}[{i}] is {value!r}; allowed: an object with keys")
    return values


def _key(values: Mapping, key: str, where: str) -> Any:
    if key not in values:
        raise AnnotationError(f"{where}: has no {key!r}; its keys are {summarize(values)}")
    return values[key]


def _new_id(values: Mapping, where: str, known: Mapping[Any, Any]) -> int | str:
    identity = _key(values, "id", where)
    if not isinstance(identity, (int, str)):
        raise AnnotationError(f"{where}.id={identity!r}; allowed: an integer")
    if identity in known:
        raise AnnotationError(f"{where}.id={identity!r}: an entry above has the same id")
    return identity


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
