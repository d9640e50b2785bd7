"""Writing of annotated images in the layout that the template configs read; the images stay where they are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.errors import AnnotationError, UsageError
from mmgcvit.finetune.data import Data, Instance, Item
from mmgcvit.finetune.formats.label_maps import read_pixels
from mmgcvit.tasks.detection.masks import decompress
from mmgcvit.utils import summarize
from mmgcvit.utils.files import temporary_path, write_json
from mmgcvit.utils.text import is_utf8


def convert(data: Data, out: str | Path) -> Path:
    """Write the annotations of data for its first task to a new folder.

    - 'detect', 'segment': ``SPLIT.json`` in COCO's format, with file names relative to :func:`image_root`.
    - 'semantic': ``images/SPLIT/`` with links to the images, ``annotations/SPLIT/`` with links to the label maps, or
      with converted ones if their values are not the labels.
    - 'classify': ``SPLIT/CLASS/`` with links to the images.

    ``SPLIT.txt`` lists the images of a split, ``classes.txt`` the classes.

    Args:
        data: the data.
        out: the folder; it is there only once everything is written.

    Returns:
        The folder.

    Raises:
        UsageError: the folder exists and is not empty, or cannot be written.
        AnnotationError: a label map has a value without a class.
    """
    folder = Path(out).absolute()
    if not is_utf8(str(folder)):
        raise UsageError(f"{str(folder)!r}: the name is not UTF-8; allowed: UTF-8")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{str(out)!r} exists; allowed: a new folder")
    part = temporary_path(folder)
    try:
        part.mkdir(parents=True)
        for split, items in data.splits.items():
            if data.tasks[0] == "semantic":
                _link_label_maps(data, split, items, part)
            elif data.tasks[0] == "classify":
                _link_classes(data, split, items, part)
            else:
                content = coco(items, data.classes, image_root(data), data.tasks[0] == "segment")
                write_json(part / f"{split}.json", content, indent=1)
            _write_lines(part / f"{split}.txt", [str(item.path) for item in items])
        _write_lines(part / "classes.txt", data.classes)
        if folder.exists():
            folder.rmdir()
        part.replace(folder)
    except OSError as error:
        raise UsageError(f"{str(out)!r}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def image_root(data: Data) -> Path:
    """Folder that holds all images."""
    folders = [item.path.parent for item in data.items]
    if all(folder.is_relative_to(data.root) for folder in folders):
        return data.root
    return Path(os.path.commonpath(folders))


def coco(items: Sequence[Item], classes: Sequence[str], root: Path, masks: bool) -> dict[str, Any]:
    """Content of a COCO annotation file.

    Args:
        items: the images.
        classes: class names; category ids count from 1.
        root: folder that file names are relative to.
        masks: whether to include masks.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, item in enumerate(items, 1):
        name = item.path.relative_to(root).as_posix()
        images.append(dict(id=image_id, file_name=name, width=item.size[0], height=item.size[1]))
        for instance in item.instances:
            annotation: dict[str, Any] = dict(
                id=len(annotations) + 1,
                image_id=image_id,
                category_id=instance.label + 1,
                bbox=list(instance.box),
                area=area(instance) if masks else instance.box[2] * instance.box[3],
                iscrowd=int(instance.crowd),
            )
            if masks and instance.segmentation is not None:
                annotation["segmentation"] = instance.segmentation
            annotations.append(annotation)
    categories = [dict(id=label + 1, name=name) for label, name in enumerate(classes)]
    return dict(images=images, annotations=annotations, categories=categories)


def area(instance: Instance) -> float:
    """Area of an object's mask in pixels; that of its box if it has no mask, or a damaged one."""
    mask = instance.segmentation
    if isinstance(mask, list) and all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in mask):
        total = 0.0
        for polygon in mask:
            x, y = np.asarray(polygon[::2], float), np.asarray(polygon[1::2], float)
            total += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        return float(total)
    if isinstance(mask, dict) and isinstance(mask.get("counts"), list):
        return float(sum(mask["counts"][1::2]))
    if isinstance(mask, dict) and isinstance(mask.get("counts"), str):
        runs = decompress(mask["counts"])
        return float(runs[1::2].sum()) if runs is not None else instance.box[2] * instance.box[3]
    return instance.box[2] * instance.box[3]


def common_suffix(data: Data) -> str:
    """Suffix of the links to the images; '.png' for images with different ones, as readers look at the content."""
    suffixes = {item.path.suffix for item in data.items}
    return suffixes.pop() if len(suffixes) == 1 else ".png"


def _link_label_maps(data: Data, split: str, items: Sequence[Item], out: Path) -> None:
    suffix = common_suffix(data)
    taken: dict[Path, Path] = {}
    for item in items:
        name = Path(item.path.stem)
        if name in taken:  # Cityscapes has a folder per city
            name = Path(item.path.parent.name, item.path.stem)
        if name in taken or item.label_map is None:
            raise AnnotationError(f"{item.path}: {taken.get(name)} has the same name; allowed: different names")
        taken[name] = item.path
        image = out / "images" / split / f"{name}{suffix}"
        label_map = out / "annotations" / split / f"{name}.png"
        for path in (image, label_map):
            path.parent.mkdir(parents=True, exist_ok=True)
        image.symlink_to(item.path)
        if data.values is None:
            label_map.symlink_to(item.label_map)
        else:
            Image.fromarray(convert_label_map(item.label_map, data.values)).save(label_map)


def convert_label_map(path: Path, values: dict[Any, int]) -> np.ndarray:
    """Return a label map (H, W) uint8 with the labels in place of the values or colours of a file.

    Raises:
        AnnotationError: a value or colour has no label.
    """
    colours = isinstance(next(iter(values)), tuple)
    pixels = read_pixels(path, colours)
    if pixels is None:
        raise AnnotationError(f"{path}: a label map in colours; allowed: one channel")
    codes = pixels.astype(np.int64)
    if colours:
        codes = codes[..., 0] << 16 | codes[..., 1] << 8 | codes[..., 2]
    table = {(v[0] << 16 | v[1] << 8 | v[2]) if colours else v: label for v, label in values.items()}
    found, places = np.unique(codes, return_inverse=True)
    if unknown := [code for code in found.tolist() if code not in table]:
        shown = [(code >> 16, code >> 8 & 255, code & 255) if colours else code for code in unknown[:5]]
        what = "colours" if colours else "values"
        raise AnnotationError(f"{path}: {what} {shown} have no class; allowed: {', '.join(map(str, values))}")
    return np.array([table[code] for code in found.tolist()], np.uint8)[places].reshape(codes.shape)


def _link_classes(data: Data, split: str, items: Sequence[Item], out: Path) -> None:
    bad = [name for name in data.classes if not name or name.startswith(".") or "/" in name or "\0" in name]
    if bad:
        raise AnnotationError(
            f"classes {summarize(map(repr, bad))} cannot be names of folders; allowed: names without '/' that do not "
            "begin with '.'"
        )
    for name in data.classes:
        (out / split / name).mkdir(parents=True, exist_ok=True)
    for item in items:
        assert item.label is not None
        link = out / split / data.classes[item.label] / item.path.name
        number = 0
        while link.is_symlink():  # images of the same name from several folders
            number += 1
            link = link.with_name(f"{item.path.stem}_{number}{item.path.suffix}")
        link.symlink_to(item.path)
    for name in data.classes:
        if not any((folder := out / split / name).iterdir()):
            folder.rmdir()


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
