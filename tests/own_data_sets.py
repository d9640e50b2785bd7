"""Made-up data sets in all formats that are recognised, with awkward names, sizes, modes and empty images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

#: Class names with a space, other scripts, digits only, and words that YAML would read as something else.
NAMES = ["big cat", "Größe 中", "007", "no"]
SIZES = [(97, 64), (64, 129), (120, 80), (75, 75), (64, 64), (101, 67)]  # width, height
MODES = ["RGB", "L", "P", "RGBA", "RGB", "RGB"]
#: Boxes (class, x, y, width, height) of image i; the third image is empty.
BOXES: list[list[tuple[int, int, int, int, int]]] = [
    [(0, 4, 6, 40, 32), (1, 50, 10, 30, 44)],
    [(2, 8, 8, 40, 60)],
    [],
    [(3, 5, 5, 50, 40), (0, 30, 40, 30, 30)],
    [(1, 10, 12, 32, 32), (2, 4, 4, 20, 20)],
    [(3, 20, 10, 50, 40)],
]


def file_name(i: int) -> str:
    """Name of image i, with spaces, dots and an umlaut."""
    return f"bild {i}.foto ä.{'png' if MODES[i] in ('P', 'RGBA') else 'jpg'}"


def image(i: int) -> Image.Image:
    """Image i: noise with a filled rectangle for each object."""
    width, height = SIZES[i]
    pixels = np.random.default_rng(i).integers(0, 60, (height, width, 3), np.uint8)
    for label, x, y, w, h in BOXES[i]:
        pixels[y : y + h, x : x + w] = [(250, 60, 60), (60, 250, 60), (60, 60, 250), (250, 250, 60)][label]
    return Image.fromarray(pixels).convert(MODES[i])


def write_images(folder: Path, chosen: range | list[int] = range(6)) -> None:
    """Write images into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in chosen:
        image(i).save(folder / file_name(i))


def polygon(i: int, k: int) -> list[float]:
    """Octagon-like polygon of object k of image i, within its box and touching all its sides."""
    _, x, y, w, h = BOXES[i][k]
    return [x + 4, y, x + w - 4, y, x + w, y + 4, x + w, y + h - 4, x + w - 4, y + h, x + 4, y + h, x, y + h - 4, x, y + 4]


def coco_content(chosen: range | list[int], masks: bool) -> dict:
    """COCO content for some images; ids have gaps, and the categories are not in the order of their ids."""
    ids = [7, 3, 11, 5]
    images, annotations = [], []
    for i in chosen:
        images.append(dict(id=100 + i, file_name=file_name(i), width=SIZES[i][0], height=SIZES[i][1]))
        for k, (label, *box) in enumerate(BOXES[i]):
            annotation = dict(id=len(annotations) + 50, image_id=100 + i, category_id=ids[label], bbox=box, iscrowd=0)
            annotation["area"] = box[2] * box[3]
            if masks:
                annotation["segmentation"] = [polygon(i, k)]
            annotations.append(annotation)
    categories = [dict(id=identity, name=name) for identity, name in zip(ids, NAMES, strict=True)]
    return dict(images=images, annotations=annotations, categories=categories)


def write_json(path: Path, content: object) -> None:
    """Write JSON with its letters unescaped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


TRAIN, VAL = [0, 1, 2, 3], [4, 5]


def coco_roboflow(root: Path, masks: bool = False) -> None:
    """train/_annotations.coco.json beside the images."""
    for split, chosen in (("train", TRAIN), ("valid", VAL)):
        write_images(root / split, chosen)
        write_json(root / split / "_annotations.coco.json", coco_content(chosen, masks))


def coco_usual(root: Path, masks: bool = False) -> None:
    """annotations/instances_train2017.json with train2017/ beside it, and a file that is not read."""
    for split, chosen in (("train2017", TRAIN), ("val2017", VAL)):
        write_images(root / split, chosen)
        write_json(root / "annotations" / f"instances_{split}.json", coco_content(chosen, masks))
        write_json(root / "annotations" / f"person_keypoints_{split}.json", coco_content(chosen, masks))


def coco_one_file(root: Path, masks: bool = False) -> None:
    """annotations.json with images/, without a split."""
    write_images(root / "images")
    write_json(root / "annotations.json", coco_content(range(6), masks))
