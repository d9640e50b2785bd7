"""A small data set for all tasks, generated in seconds from data shipped with scikit-learn.

The real handwritten digits of ``load_digits`` are coloured, rotated and placed on crops of the two real photographs of
``load_sample_images``. Training and validation images share neither digits nor photograph regions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress
from sklearn.datasets import load_digits, load_sample_images

CLASSES = tuple("0123456789")
SPLITS = ("train", "val")
VAL_SCENES, VAL_DIGITS = 20, 5  # every twentieth scene and every fifth digit is for validation
BACKGROUND_ID = 1  # of the segment of the background; those of the digits follow
SINGLE_SIZE = 64  # side of the images of single digits, in pixels
README = """Digit scenes, made by mmgcvit make-digit-scenes --images {images} --size {size} --seed {seed}

images/{{train,val}}/*.jpg                        scenes of {size} x {size} pixels
annotations/instances_{{train,val}}.json          COCO instances (masks as run lengths)
annotations/panoptic_{{train,val}}.json           COCO panoptic: the digits are things, the background is stuff
panoptic/{{train,val}}/*.png                      ids of the segments as colours
semantic/{{train,val}}/*.png                      label maps: 0 background, digit d as d + 1
classification/{{train,val}}/{{0..9}}/*.png         single digits of {single} x {single} pixels

Digits: scikit-learn's load_digits (UCI ML hand-written digits, CC BY 4.0).
Photographs: scikit-learn's load_sample_images (CC BY).
"""


def make_digit_scenes(out: str | Path, images: int = 1000, size: int = 160, seed: int = 0, force: bool = False) -> Path:
    """Generate scenes with instance annotations and label maps, and a folder tree of single digits.

    The same arguments give the same images. Everything is written to a temporary folder, which is then renamed, so that
    ``out`` is either complete or absent.

    Args:
        out: folder to create.
        images: total number of scenes; every twentieth is a validation scene.
        size: side of a scene, in pixels.
        seed: seed for colours, sizes, rotations and positions.
        force: replace ``out`` if it is an empty folder or holds digit scenes.

    Returns:
        ``out``.

    Raises:
        ValueError: fewer than 20 images, a size below 64 pixels, or a negative seed.
        FileExistsError: ``out`` exists, and ``force`` is not set or ``out`` contains something else.
    """
    if images < VAL_SCENES:
        raise ValueError(f"images={images}; allowed: an integer >= {VAL_SCENES}, as every twentieth is for validation")
    if size < 64:
        raise ValueError(f"size={size}; allowed: an integer >= 64 (pixels)")
    if seed < 0:
        raise ValueError(f"seed={seed}; allowed: an integer >= 0")
    shown, out = str(out), Path(out).resolve()
    if out.exists() and not force:
        raise FileExistsError(f"{shown} exists: choose another folder, or use --force to replace it")
    if out.exists() and not _is_ours(out):
        raise FileExistsError(f"{shown} is not empty and contains no digit scenes: --force does not replace it")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write_all(building, images, size, seed)
        building.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return out


def _is_ours(folder: Path) -> bool:
    """Whether the folder is empty or contains digit scenes."""
    if not folder.is_dir():
        return False
    readme = folder / "README.txt"
    return not any(folder.iterdir()) or (readme.is_file() and readme.read_text().startswith(README.split(",")[0]))


def _write_all(root: Path, images: int, size: int, seed: int) -> None:
    digits = load_digits()
    strokes, labels = digits.images / 16.0, digits.target
    photographs = load_sample_images().images
    of_split = dict(zip(SPLITS, _split(len(labels), VAL_DIGITS), strict=True))
    backgrounds = dict(zip(SPLITS, zip(*(_halves(p) for p in photographs), strict=True), strict=True))
    counts = dict(zip(SPLITS, map(len, _split(images, VAL_SCENES)), strict=True))

    with Progress() as progress:
        for split in SPLITS:
            pool = of_split[split]
            task = progress.add_task(f"{split}: scenes", total=counts[split])
            scenes = []
            for index in range(counts[split]):
                rng = np.random.default_rng([seed, SPLITS.index(split), index])
                scene, placed = draw_scene(rng, strokes[pool], labels[pool], backgrounds[split], size)
                _write_scene(root, split, index, scene, placed)
                scenes.append(placed)
                progress.advance(task)
            annotations = root / "annotations"
            annotations.mkdir(exist_ok=True)
            coco = _coco(scenes, size)
            (annotations / f"instances_{split}.json").write_text(json.dumps(coco))
            (annotations / f"panoptic_{split}.json").write_text(json.dumps(_panoptic(coco)))

            task = progress.add_task(f"{split}: single digits", total=len(pool))
            for index in pool:
                rng = np.random.default_rng([seed, len(SPLITS), int(index)])
                image = draw_single(rng, strokes[index], backgrounds[split])
                folder = root / "classification" / split / CLASSES[labels[index]]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{index:04d}.png")
                progress.advance(task)
    (root / "README.txt").write_text(README.format(images=images, size=size, seed=seed, single=SINGLE_SIZE))


def draw_scene(
    rng: np.random.Generator, strokes: np.ndarray, labels: np.ndarray, photographs: tuple[np.ndarray, ...], size: int
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw a scene of up to nine digits.

    Args:
        rng: random generator.
        strokes: (n, 8, 8) digits to draw from, 0 to 1.
        labels: (n,) classes of the digits.
        photographs: (H, W, 3) uint8 images for the background.
        size: side of the scene, in pixels.

    Returns:
        The scene (size, size, 3) uint8, and (label, mask (size, size) bool) of each digit; masks exclude pixels covered
        by later digits.
    """
    scene = _background(rng, photographs, size)
    placed: list[tuple[int, np.ndarray]] = []
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(rng.integers(5, 10)):
        index = rng.integers(len(labels))
        cover = _rotated(rng, strokes[index], round(size * rng.uniform(0.18, 0.32)))
        height, width = cover.shape
        for _ in range(20):  # try to find a free position
            y, x = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
            box = (y, x, y + height, x + width)
            if all(_overlap(box, other) < 0.1 for other in boxes):
                break
        else:
            continue
        boxes.append(box)
        region = scene[y : y + height, x : x + width]
        region[:] = _paint(rng, region, cover)
        mask = np.zeros((size, size), bool)
        mask[y : y + height, x : x + width] = cover > 0.5
        placed = [(label, other & ~mask) for label, other in placed] + [(int(labels[index]), mask)]
    return scene, [(label, mask) for label, mask in placed if mask.any()]


def draw_single(rng: np.random.Generator, stroke: np.ndarray, photographs: tuple[np.ndarray, ...]) -> np.ndarray:
    """Draw a single digit (8, 8) at the centre of an image, (64, 64, 3) uint8."""
    image = _background(rng, photographs, SINGLE_SIZE)
    cover = _rotated(rng, stroke, round(SINGLE_SIZE * rng.uniform(0.6, 0.75)))
    height, width = cover.shape
    y, x = (SINGLE_SIZE - height) // 2, (SINGLE_SIZE - width) // 2
    region = image[y : y + height, x : x + width]
    region[:] = _paint(rng, region, cover)
    return image


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of a (H, W) bool mask: column by column, starting with a background run."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()


def _split(count: int, share: int) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into training and validation; every ``share``-th index is for validation."""
    indices = np.arange(count)
    is_val = indices % share == share - 1
    return indices[~is_val], indices[is_val]


def _halves(photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The left 60 % of a photograph for training, the right 40 % for validation."""
    cut = photograph.shape[1] * 3 // 5
    return photograph[:, :cut], photograph[:, cut:]


def _background(rng: np.random.Generator, photographs: tuple[np.ndarray, ...], size: int) -> np.ndarray:
    """Darkened crop of a photograph, against which light strokes stand out, so that training takes only minutes.

    (With strokes both lighter and darker than the background, narrow networks stay at chance level for a long time.)
    """
    photograph = photographs[rng.integers(len(photographs))]
    limit = min(photograph.shape[:2])
    side = int(rng.integers(limit // 2, limit + 1))
    y, x = (int(rng.integers(0, extent - side + 1)) for extent in photograph.shape[:2])
    crop = np.ascontiguousarray(photograph[y : y + side, x : x + side])  # row by row; Pillow would copy value by value
    part = Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return (np.array(part) * 0.45).round().astype(np.uint8)


def _rotated(rng: np.random.Generator, stroke: np.ndarray, side: int) -> np.ndarray:
    """Opacity map (h, w) from 0 to 1 of a digit (8, 8), about ``side`` pixels high, slightly rotated and cropped."""
    ink = Image.fromarray((np.pad(stroke, 1) * 255).astype(np.uint8))  # add a margin, as strokes may touch the edge
    big = ink.resize((side, side), Image.Resampling.BICUBIC)
    big = big.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    cover = np.clip((np.asarray(big) / 255.0 - 0.25) / 0.3, 0, 1)  # sharpen the blurred edge of the stroke
    rows, columns = np.flatnonzero(cover.max(1) > 0), np.flatnonzero(cover.max(0) > 0)
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paint(rng: np.random.Generator, region: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Blend a light colour into ``region`` (h, w, 3) with the opacity ``cover`` (h, w)."""
    colour = rng.integers(150, 256, 3)
    return (region * (1 - cover[..., None]) + colour * cover[..., None]).round().astype(np.uint8)


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection of two boxes (top, left, bottom, right) over the area of the smaller one."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(height, 0) * max(width, 0) / smaller


def _write_scene(root: Path, split: str, index: int, scene: np.ndarray, placed: list[tuple[int, np.ndarray]]) -> None:
    semantic = np.zeros(scene.shape[:2], np.uint8)
    panoptic = np.zeros_like(scene)
    panoptic[..., 0] = BACKGROUND_ID
    for number, (label, mask) in enumerate(placed, 1):
        semantic[mask] = label + 1
        panoptic[mask, 0] = BACKGROUND_ID + number
    for kind, array, suffix in (("images", scene, "jpg"), ("semantic", semantic, "png"), ("panoptic", panoptic, "png")):
        folder = root / kind / split
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{index:06d}.{suffix}", quality=95)


def _coco(scenes: list[list[tuple[int, np.ndarray]]], size: int) -> dict:
    annotations: list[dict] = []
    for image_id, placed in enumerate(scenes):
        for label, mask in placed:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                    "area": int(mask.sum()),
                    "segmentation": {"size": [size, size], "counts": run_lengths(mask)},
                    "iscrowd": 0,
                }
            )
    return {
        "info": {"description": "digit scenes of mmgcvit"},
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "width": size, "height": size} for i in range(len(scenes))],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
    }


def _panoptic(coco: dict) -> dict:
    """COCO panoptic annotations of scenes from their instances."""
    things = [dict(category, isthing=1) for category in coco["categories"]]
    found: dict[int, list[dict]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        segments = found[annotation["image_id"]]
        kept = {key: annotation[key] for key in ("category_id", "bbox", "area", "iscrowd")}
        segments.append(dict(kept, id=BACKGROUND_ID + 1 + len(segments)))
    annotations = []
    for image in coco["images"]:
        width, height, segments = image["width"], image["height"], found[image["id"]]
        area = width * height - sum(segment["area"] for segment in segments)
        background = dict(category_id=len(things), bbox=[0, 0, width, height], area=area, iscrowd=0, id=BACKGROUND_ID)
        name = image["file_name"].replace(".jpg", ".png")
        annotations.append(dict(image_id=image["id"], file_name=name, segments_info=[background, *segments]))
    stuff = dict(id=len(things), name="background", isthing=0)
    return dict(info=coco["info"], images=coco["images"], annotations=annotations, categories=[*things, stuff])
