"""Label maps: a file per image, itself an image or a NumPy array, whose values are the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmgcvit.datasets.text import read_lines, read_names, read_utf8
from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import UNSPLIT, Data, Item, image_size, split_name, unique_names
from mmgcvit.finetune.formats.base import Format
from mmgcvit.finetune.formats.voc import image_sets
from mmgcvit.finetune.scan import Scan
from mmgcvit.utils import summarize
from mmgcvit.utils.images import DEEP, IMAGES, OTHER_IMAGES, any_image_size, require_pixels
from mmgcvit.utils.text import counted

FOLDERS = ("masks", "mask", "annotations", "labels", "label_maps", "segmentationclass", "gtfine", "gt", "ann_dir")
IMAGE_FOLDERS = ("images", "image", "imgs", "jpegimages", "leftimg8bit", "img_dir")
NAMES = ("classes.txt", "labels.txt", "names.txt")
COLOURS, ADE = "labelmap.txt", "objectInfo150.txt"  # of CVAT, and of ADE20K
IMAGE_ENDS, MAP_ENDS = ("_leftImg8bit",), ("_gtFine_labelTrainIds", "_mask", "_label", "_labels")
NOT_MAPS = ("_gtFine_color", "_gtFine_instanceIds", "_gtFine_labelIds")
ARRAY = ".npy"
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ARRAY)
OTHERS = {*IMAGES, *OTHER_IMAGES} - {*SUFFIXES}  # suffixes of files that are taken for label maps by mistake
IGNORED = 255
#: The 19 classes of Cityscapes in the order of its labelTrainIds.
CITYSCAPES = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
              "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")  # fmt: skip


class LabelMaps(Format):
    """Images, and label maps with the same names, in two folders."""

    name, title, tasks = "labelmaps", "label maps", ("semantic",)
    layout = (
        f"images/ and masks/ (or {', '.join(FOLDERS[2:])}) with the same names, with train/, val/ inside or around; "
        f"label maps are {', '.join(SUFFIXES)}; "
        f"{NAMES[0]} with a name per line in the order of the values from 0, {COLOURS} of CVAT with colours, or {ADE}"
    )

    def find(self, scan: Scan) -> list[Path]:
        """Return the label maps: files in a folder called masks or the like."""
        maps = [p for p in scan.files if _side(p, scan.root) == "map" and p.suffix.lower() in SUFFIXES]
        return [path for path in maps if not path.stem.endswith(NOT_MAPS)]

    def read(self, scan: Scan, task: str | None) -> Data:
        """Pair images with label maps, and read the class names."""
        data = Data(self.name, scan.root, [], {}, ("semantic",))
        maps: dict[tuple, Path] = {}
        for path in self.find(scan):
            if (other := maps.setdefault(_key(path, scan.root, MAP_ENDS), path)) is not path:
                raise AnnotationError(f"{path}: {other} is for the same image; allowed: one label map per image")
        bare, listed = [], image_sets(scan, "Segmentation")
        for path in scan.images:
            if _side(path, scan.root) != "image":
                continue
            label_map = maps.pop(_key(path, scan.root, IMAGE_ENDS), None)
            if label_map is None:
                bare.append(path)
                continue
            split = listed.get(path.stem) if listed else split_name(path.parent / "x", scan.root)
            split = split or UNSPLIT
            data.splits.setdefault(split, []).append(Item(path, image_size(path), label_map=label_map))
        missing = {_key(path, scan.root, IMAGE_ENDS) for path in bare}
        for path in scan.files:
            wrong = path.suffix.lower() in OTHERS and _side(path, scan.root) == "map"
            if wrong and _key(path, scan.root, MAP_ENDS) in missing:
                raise AnnotationError(f"{path}: cannot be read as a label map; allowed: {', '.join(SUFFIXES)}")
        if maps:
            raise AnnotationError(
                f"{summarize(maps.values(), 3)}: no image has the same name; allowed: images/NAME.jpg"
            )
        if listed and UNSPLIT in data.splits:
            left = len(data.splits.pop(UNSPLIT))
            data.notes.append(
                f"{counted(left, 'image is', 'images are')} in none of ImageSets/Segmentation/train.txt, val.txt: "
                "left out"
            )
        if bare:
            data.notes.append(
                f"{counted(len(bare), 'image has', 'images have')} no label map, such as {bare[0]}: left out"
            )
        if data.splits:
            _read_classes(scan, data)
        return data


def _side(path: Path, root: Path) -> str:
    """Whether a file is in a folder for images or one for label maps; '' for neither."""
    for part in reversed(path.relative_to(root).parts[:-1]):
        if part.lower() in FOLDERS:
            return "map"
        if part.lower() in IMAGE_FOLDERS:
            return "image"
    return ""


def _key(path: Path, root: Path, ends: Sequence[str]) -> tuple:
    """What an image and its label map have in common: split, other folders, and the name."""
    inside = [part for part in path.relative_to(root).parts[:-1] if part.lower() not in (*FOLDERS, *IMAGE_FOLDERS)]
    stem = path.stem
    for end in ends:
        stem = stem.removesuffix(end)
    return (split_name(path.parent / "x", root), tuple(inside), stem)


def _read_classes(scan: Scan, data: Data) -> None:
    files = {name: [path for path in scan.files if path.name == name] for name in (*NAMES, COLOURS, ADE)}
    given = [path for paths in files.values() for path in paths]
    if len(given) > 1:
        raise AnnotationError(f"{scan.root}: class names in {summarize(given, 4)}; allowed: one of them")
    values, example = _values(data)
    if files[COLOURS]:
        if array := next(
            (path for item in data.items if (path := item.label_map) and path.suffix.lower() == ARRAY), None
        ):
            raise AnnotationError(f"{array}: the label map is an array; allowed with {COLOURS}: images in colours")
        names, data.values = _read_colours(files[COLOURS][0])
    elif files[ADE]:
        names, data.ignore_zero = [line.split("\t")[-1] for line in read_lines("classes", files[ADE][0])[1:]], True
    elif given:
        names = read_names("classes", given[0])
    elif any(item.label_map.stem.endswith(MAP_ENDS[0]) for item in data.items if item.label_map):
        names = list(CITYSCAPES)
        data.notes.append("class names: the 19 of Cityscapes, as the files are called *_gtFine_labelTrainIds")
    elif values is None:
        raise AnnotationError(
            f"{scan.root}: label maps in colours, such as {example}, without {COLOURS}; allowed: that file with a line "
            "NAME:R,G,B:: for each class, or maps of one channel whose values are the labels"
        )
    else:
        raise AnnotationError(
            f"{scan.root}: no class names; the label maps have the values {summarize(sorted(values), 20)}. Write "
            f"{scan.root / NAMES[0]} with a name per line in the order of the values, from 0 (255 is ignored)"
        )
    data.classes = unique_names(names, data.notes)
    if values is None and data.values is None:
        raise AnnotationError(f"{example}: a label map in colours; allowed: one channel, or {COLOURS} with the colours")
    if values == {0, IGNORED} and len(names) == 2:
        data.values = {0: 0, IGNORED: 1}
        data.notes.append(f"the label maps have the values 0 and 255 only: 255 becomes label 1, {names[1]!r}")
    elif values and data.values is None and any(not _is_plain(item.label_map) for item in data.items):
        data.values = {value: value for value in values}
        data.notes.append("the label maps are converted to PNG files of 8 bits")


def _is_plain(path: Path | None) -> bool:
    """Whether a label map is a PNG file of 8 bits, which can be used as it is."""
    if path is not None and path.suffix.lower() == ARRAY:
        return False
    with any_image_size(), Image.open(path or "") as image:
        return image.format == "PNG" and image.mode in ("L", "P")


def _values(data: Data) -> tuple[set[int] | None, Path]:
    """Values of all label maps; None if one has colours, with an example."""
    found: set[int] = set()
    example = Path()
    for item in data.items:
        assert item.label_map is not None
        example = item.label_map
        pixels = read_pixels(example)
        if pixels is None:
            return None, example
        own = np.unique(pixels)
        wrong = [value for value in own.tolist() if not 0 <= value <= IGNORED or value != int(value)]
        if wrong:
            raise AnnotationError(
                f"{example}: the label map has the values {summarize(wrong)}; allowed: whole numbers, 0 to {IGNORED}"
            )
        found.update(map(int, own.tolist()))
    return found, example


def read_pixels(path: Path, colours: bool = False) -> np.ndarray | None:
    """Return the values (H, W) of a label map, or its colours (H, W, 3); None if it has colours and no values.

    Raises:
        AnnotationError: it cannot be read, or has too many pixels.
    """
    if path.suffix.lower() == ARRAY:
        return _read_array(path)
    try:
        with any_image_size(), Image.open(path) as image:
            require_pixels(*image.size)
            if colours:
                return np.asarray(image.convert("RGB"))
            return np.asarray(image) if image.mode in ("L", "P", "1", *DEEP) else None
    except Exception as error:  # Pillow raises errors of many types
        raise AnnotationError(f"{path}: the label map cannot be read: {error}") from error


def _read_array(path: Path) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # pickles may run code
        shape, kind = mapped.shape, mapped.dtype
        if len(shape) == 2:
            require_pixels(shape[1], shape[0])
    except Exception as error:  # numpy raises errors of many types for damaged files
        raise AnnotationError(f"{path}: the label map cannot be read: {error}") from error
    if len(shape) != 2 or 0 in shape or kind.kind not in "biuf":
        raise AnnotationError(
            f"{path}: the label map is an array of shape {shape} and type {kind}; allowed: (height, width), numbers"
        )
    return np.array(mapped)


def _read_colours(path: Path) -> tuple[list[str], dict]:
    names: list[str] = []
    values: dict = {}
    for i, line in enumerate(read_utf8("colours of the classes", path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.split(":")
        try:
            red, green, blue = (int(word) for word in parts[1].split(","))
        except (IndexError, ValueError):
            raise AnnotationError(f"{path}:{i}: {line!r}; allowed: NAME:R,G,B::") from None
        if not all(0 <= value <= 255 for value in (red, green, blue)):
            raise AnnotationError(f"{path}:{i}: {line!r}; allowed: R, G and B from 0 to 255")
        if (red, green, blue) in values:
            raise AnnotationError(f"{path}:{i}: {line!r}: a class before has the same colour")
        values[red, green, blue] = len(names)
        names.append(parts[0].strip())
    return names, values
