"""Annotated images in memory, whatever format they come from, and the splitting off of a validation set."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmgcvit.datasets.files import header
from mmgcvit.errors import AnnotationError
from mmgcvit.utils.text import counted

#: The tasks, with what the annotations hold for each.
TASKS = {"detect": "boxes", "segment": "masks of objects", "semantic": "label maps", "classify": "class of an image"}
#: Names of splits in files and folders. Digits at their end do not count: train2017.
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
UNSPLIT = "all"  # images that belong to no split
COPIES = ".rf."  # Roboflow's augmented copies of an image: NAME_jpg.rf.HASH.jpg


@dataclass
class Instance:
    """One annotated object.

    Attributes:
        label: index of the class.
        box: x, y, width, height in pixels.
        segmentation: polygons [[x1, y1, x2, y2, ...], ...] or a COCO RLE; None if there is no mask.
        crowd: whether the object is ignored in training and evaluation.
    """

    label: int
    box: tuple[float, float, float, float]
    segmentation: list | dict | None = None
    crowd: bool = False


@dataclass
class Item:
    """One image.

    Attributes:
        path: the file.
        size: width and height, as the annotations say.
        instances: its objects, for 'detect' and 'segment'.
        label: index of its class, for 'classify'.
        label_map: file with its label map, for 'semantic'.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    instances: list[Instance] = field(default_factory=list)
    label: int | None = None
    label_map: Path | None = None


@dataclass
class Data:
    """Annotated images of one data set.

    Attributes:
        format: name of the format that was read.
        root: folder that all images are in.
        classes: class names in the order of the labels.
        splits: images by 'train', 'val' and 'test', or :data:`UNSPLIT`.
        tasks: what the annotations can be used for, most specific first.
        notes: what the user should know: what was left out or decided.
        ignore_zero: whether label 0 of label maps is ignored, and label 1 is the first class.
        values: value of a label map -> label, if they must be converted; an (R, G, B) triple for colours.
    """

    format: str
    root: Path
    classes: list[str]
    splits: dict[str, list[Item]]
    tasks: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    ignore_zero: bool = False
    values: dict[Any, int] | None = None

    @property
    def items(self) -> Iterator[Item]:
        """All images."""
        for items in self.splits.values():
            yield from items


def split_name(path: Path, root: Path) -> str | None:
    """Split that the name of a file, or else of a folder above it, says; None if none does.

    Example:
        >>> split_name(Path("data/annotations/instances_train2017.json"), Path("data"))
        'train'
    """
    relative = path.relative_to(root)
    for part in (relative.stem, *reversed(relative.parts[:-1])):
        words = "".join(char if char.isalnum() else " " for char in part.lower()).split()
        found = {SPLITS[word.rstrip("0123456789")] for word in words if word.rstrip("0123456789") in SPLITS}
        if len(found) == 1:
            return found.pop()
    return None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, turned as its EXIF data says.

    Raises:
        AnnotationError: it is not an image that Pillow recognises.
    """
    found = header(str(path))
    if found is None:
        raise AnnotationError(f"{path}: the size of the image cannot be read: it is damaged, or of an unknown format")
    return found[0]


def merge_repeated(data: Data) -> None:
    """Keep images that a split lists several times once, with all their objects.

    Raises:
        AnnotationError: an image has two classes or two label maps.
    """
    for name, items in data.splits.items():
        kept: dict[Path, Item] = {}
        for item in items:
            if (first := kept.setdefault(item.path, item)) is item:
                continue
            if (first.label, first.label_map) != (item.label, item.label_map):
                raise AnnotationError(f"{item.path}: is annotated twice, with different classes or label maps")
            first.instances += item.instances
        if len(kept) < len(items):
            data.notes.append(
                f"{name}: {counted(len(items) - len(kept), 'image is', 'images are')} listed more than once: kept once"
            )
            data.splits[name] = list(kept.values())


def split_off(data: Data, fraction: float = 0.2, seed: int = 0) -> None:
    """Make sure that there are training and validation images: split the latter off if there are none.

    Images with the same name, such as Roboflow's augmented copies of one image, stay together. For classification, the
    fraction is taken of each class.

    Args:
        data: the data set, which is changed.
        fraction: part of the images that becomes validation data.
        seed: of the random choice.

    Raises:
        AnnotationError: there are no training images, or too few to split.
    """
    if UNSPLIT in data.splits and len(data.splits) > 1:
        names = ", ".join(sorted(data.splits))
        raise AnnotationError(f"{data.root}: some images belong to a split and some do not ({names})")
    source = UNSPLIT if UNSPLIT in data.splits else "train"
    if not data.splits.get(source):
        found = ", ".join(f"{name} ({counted(len(items), 'image')})" for name, items in data.splits.items()) or "none"
        raise AnnotationError(f"{data.root}: no training images; splits found: {found}; allowed: train, val, test")
    if data.splits.get("val"):
        return
    strata: dict[int | None, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in data.splits.pop(source):
        strata[item.label][item.path.stem.partition(COPIES)[0]].append(item)
    chosen = random.Random(seed)
    train: list[Item] = []
    val: list[Item] = []
    for groups in strata.values():
        stems = sorted(groups)
        chosen.shuffle(stems)
        count = max(1, round(fraction * len(stems))) if len(stems) > 1 else 0
        val += [item for stem in sorted(stems[:count]) for item in groups[stem]]
        train += [item for stem in sorted(stems[count:]) for item in groups[stem]]
    if not val:
        raise AnnotationError(
            f"{data.root}: {counted(len(train), 'image')} with one name; allowed: at least 2 to split off one"
        )
    rest = {name: items for name, items in data.splits.items() if name != "val"}
    data.splits = {"train": train, "val": val, **rest}
    data.notes.append(
        f"no validation images: {len(val)} of {len(train) + len(val)} are split off for validation (seed {seed}); "
        "images with the same name stay together"
    )


def unique_names(names: Sequence[str], notes: list[str]) -> list[str]:
    """Give classes with the same name different ones, so that they stay apart.

    Args:
        names: in the order of the labels.
        notes: gets a line for each name that was changed.
    """
    repeated = {name for name, count in Counter(names).items() if count > 1}
    taken, result = set(names) - repeated, []
    for index, name in enumerate(names):
        new, number = name, index
        if name in repeated:
            new = f"{name} ({number})"
            while new in taken:
                number += len(names)
                new = f"{name} ({number})"
            notes.append(f"several classes are named {name!r}; number {index} is called {new!r}")
        taken.add(new)
        result.append(new)
    return result


def counts(data: Data) -> dict[str, Counter[str]]:
    """Number of objects or images of each class, by split, without crowds; empty for label maps."""
    found: dict[str, Counter[str]] = {}
    for name, items in data.splits.items():
        found[name] = Counter()
        for item in items:
            labels = [instance.label for instance in item.instances if not instance.crowd]
            labels += [] if item.label is None else [item.label]
            found[name].update(data.classes[label] for label in labels)
    return found
