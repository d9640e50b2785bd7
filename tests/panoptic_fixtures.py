"""A tiny panoptic data set: two things, two kinds of stuff, images of odd sizes, and one image with a crowd."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

THINGS, STUFF = ("ball", "box"), ("sky", "grass")
METAINFO = dict(classes=THINGS + STUFF, thing_classes=THINGS, stuff_classes=STUFF)
SIZES = ((75, 101), (64, 97))  # height, width


def write_panoptic(folder: Path, sizes=SIZES, change=None) -> dict:
    """Write images, PNGs and ``panoptic.json``; ``change`` modifies the JSON's content. Returns the content."""
    for name in ("images", "panoptic"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    content = dict(
        images=[],
        annotations=[],
        categories=[dict(id=10 * i + 3, name=name, isthing=int(name in THINGS))
                    for i, name in enumerate(METAINFO["classes"])],
    )  # fmt: skip
    for number, (height, width) in enumerate(sizes, 1):
        ids = np.full((height, width), 70_000 + number, np.int32)  # sky
        ids[height // 2 :] = 300  # grass
        ids[10:30, 5:45] = 4_000_000  # ball
        ids[35:61, 50:90] = 7  # box
        ids[40:50, 10:21] = 9  # box, of the last image a crowd
        ids[:3] = 0
        pixels = random.randint(0, 60, (height, width, 3), dtype=np.uint8)
        segments = []
        for key, label in ((70_000 + number, 2), (300, 3), (4_000_000, 0), (7, 1), (9, 1)):
            own = ids == key
            pixels[own] += np.array([key % 190, label * 60, 90], np.uint8)
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
            crowd = int(key == 9 and number == len(sizes))
            segments.append(dict(id=key, category_id=10 * label + 3, iscrowd=crowd, bbox=[int(v) for v in box],
                                 area=int(own.sum())))  # fmt: skip
        Image.fromarray(pixels).save(folder / f"images/{number}.jpg", quality=95)
        write_ids(folder / f"panoptic/{number}.png", ids)
        content["images"].append(dict(id=number, file_name=f"{number}.jpg", height=height, width=width))
        content["annotations"].append(dict(image_id=number, file_name=f"{number}.png", segments_info=segments))
    if change is not None:
        change(content)
    (folder / "panoptic.json").write_text(json.dumps(content))
    return content


def write_ids(path: Path, ids: np.ndarray) -> None:
    """Write ids (H, W) as colours."""
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)).save(path)


def dataset_of(folder: Path, test_mode: bool = False, **changes) -> dict:
    """Config of the data set, with a pipeline that keeps the sizes."""
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadPanopticAnnotations"),
        dict(type="Resize", scale=(101, 101), keep_ratio=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
    ]
    if test_mode:  # as in mmdet's configs: the ground truth keeps the size of the image
        pipeline[1:3] = pipeline[2:0:-1]
    return dict(
        type="CocoPanopticDataset", data_root=str(folder), ann_file="panoptic.json", metainfo=METAINFO,
        data_prefix=dict(img="images/", seg="panoptic/"), pipeline=pipeline, test_mode=test_mode,
    ) | changes  # fmt: skip
