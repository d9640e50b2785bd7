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
    return [
        x + 4,
        y,
        x + w - 4,
        y,
        x + w,
        y + 4,
        x + w,
        y + h - 4,
        x + w - 4,
        y + h,
        x + 4,
        y + h,
        x,
        y + h - 4,
        x,
        y + 4,
    ]


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


def yolo(root: Path, masks: bool = False) -> None:
    """data.yaml, images/SPLIT and labels/SPLIT; the image without objects has no label file."""
    for split, chosen in (("train", TRAIN), ("val", VAL)):
        write_images(root / "images" / split, chosen)
        write_yolo_labels(root / "labels" / split, chosen, masks)
    lines = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{lines}", encoding="utf-8")


def yolo_roboflow(root: Path, masks: bool = False) -> None:
    """data.yaml with folders beside it that are called ../train/images, as Roboflow writes it."""
    for split, chosen in (("train", TRAIN), ("valid", VAL)):
        write_images(root / split / "images", chosen)
        write_yolo_labels(root / split / "labels", chosen, masks)
    names = ", ".join(f"'{name}'" for name in NAMES)
    text = f"train: ../train/images\nval: ../valid/images\n\nnc: 4\nnames: [{names}]\n"
    (root / "data.yaml").write_text(text, encoding="utf-8")


def yolo_label_studio(root: Path, masks: bool = False) -> None:
    """classes.txt, images/ and labels/, without a split."""
    write_images(root / "images")
    write_yolo_labels(root / "labels", range(6), masks)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")


def write_yolo_labels(folder: Path, chosen: range | list[int], masks: bool) -> None:
    """Write a label file for each image with objects."""
    folder.mkdir(parents=True)
    for i in chosen:
        width, height = SIZES[i]
        lines = []
        for k, (label, x, y, w, h) in enumerate(BOXES[i]):
            if masks:
                sides = (width, height)
                values = [value / sides[j % 2] for j, value in enumerate(polygon(i, k))]
            else:
                values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            lines.append(" ".join(map(str, [label, *values])))
        if lines:
            (folder / file_name(i)).with_suffix(".txt").write_text("\n".join(lines) + "\n")


def voc(root: Path) -> None:
    """Annotations/, JPEGImages/ and ImageSets/Main/."""
    write_images(root / "JPEGImages")
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    for split, chosen in (("train", TRAIN), ("val", VAL)):
        (sets / f"{split}.txt").write_text("\n".join(Path(file_name(i)).stem for i in chosen) + "\n", encoding="utf-8")
    write_voc(root / "Annotations", range(6))


def voc_beside(root: Path) -> None:
    """XML files beside the images in train/ and valid/, as Roboflow writes them."""
    for split, chosen in (("train", TRAIN), ("valid", VAL)):
        write_images(root / split, chosen)
        write_voc(root / split, chosen)


def write_voc(folder: Path, chosen: range | list[int]) -> None:
    """Write an XML file for each image."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in chosen:
        objects = "".join(
            f"  <object>\n    <name>{NAMES[label]}</name>\n    <difficult>0</difficult>\n    <bndbox>\n"
            f"      <xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>\n"
            f"    </bndbox>\n  </object>\n"
            for label, x, y, w, h in BOXES[i]
        )
        size = f"<size><width>{SIZES[i][0]}</width><height>{SIZES[i][1]}</height><depth>3</depth></size>"
        text = f"<annotation>\n  <filename>{file_name(i)}</filename>\n  {size}\n{objects}</annotation>\n"
        (folder / f"{Path(file_name(i)).stem}.xml").write_text(text, encoding="utf-8")


def labelme(root: Path, masks: bool = False) -> None:
    """A JSON file beside each image in train/ and val/; with masks, the first polygon is in two parts of one group."""
    for split, chosen in (("train", TRAIN), ("val", VAL)):
        write_images(root / split, chosen)
        for i in chosen:
            shapes = []
            for k, (label, x, y, w, h) in enumerate(BOXES[i]):
                flat = polygon(i, k) if masks else [x + w, y + h, x, y]
                points = [list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)]
                kind = "polygon" if masks else "rectangle"
                shapes.append(dict(label=NAMES[label], points=points, shape_type=kind, group_id=None))
            shapes.append(dict(label="a place", points=[[3, 4]], shape_type="point", group_id=None))
            content = dict(shapes=shapes, imagePath=file_name(i), imageWidth=SIZES[i][0], imageHeight=SIZES[i][1])
            write_json((root / split / file_name(i)).with_suffix(".json"), content)


def cvat(root: Path, masks: bool = False) -> None:
    """annotations.xml and images/SUBSET/."""
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    lines = [f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"]
    for split, chosen in (("train", TRAIN), ("val", VAL)):
        write_images(root / "images" / split, chosen)
        for i in chosen:
            lines.append(
                f'<image id="{i}" name="{file_name(i)}" subset="{split}" width="{SIZES[i][0]}" height="{SIZES[i][1]}">'
            )
            for k, (label, x, y, w, h) in enumerate(BOXES[i]):
                flat = polygon(i, k)
                points = ";".join(f"{a},{b}" for a, b in zip(flat[::2], flat[1::2], strict=True))
                where = f'points="{points}"' if masks else f'xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"'
                lines.append(f'<{"polygon" if masks else "box"} label="{NAMES[label]}" occluded="0" {where}/>')
            lines.append('<tag label="no"/>\n</image>')
    (root / "annotations.xml").write_text("\n".join([*lines, "</annotations>"]), encoding="utf-8")


def label_studio(root: Path, masks: bool = False) -> None:
    """export.json; the images have a prefix in it, and one task was skipped."""
    write_images(root / "images")
    tasks = []
    for i in range(6):
        results = []
        for k, (label, x, y, w, h) in enumerate(BOXES[i]):
            width, height = SIZES[i]
            sides = (100 / width, 100 / height)
            flat = [value * sides[j % 2] for j, value in enumerate(polygon(i, k))]
            if masks:
                kind, value = "polygonlabels", dict(points=[list(p) for p in zip(flat[::2], flat[1::2], strict=True)])
            else:
                kind = "rectanglelabels"
                value = dict(x=x * sides[0], y=y * sides[1], width=w * sides[0], height=h * sides[1], rotation=0)
            value[kind] = [NAMES[label]]
            results.append(dict(type=kind, value=value, original_width=width, original_height=height))
        annotations = [dict(result=[], was_cancelled=True), dict(result=results, was_cancelled=False)]
        tasks.append(dict(id=i, data=dict(image=f"/data/upload/1/0a1b2c3d-{file_name(i)}"), annotations=annotations))
    tasks.append(dict(id=9, data=dict(image="/data/upload/1/0a1b2c3d-x.jpg"), annotations=[]))
    write_json(root / "export.json", tasks)


def label_map(i: int) -> np.ndarray:
    """Label map of image i: class + 1 inside the boxes, 0 elsewhere."""
    width, height = SIZES[i]
    found = np.zeros((height, width), np.uint8)
    for label, x, y, w, h in BOXES[i]:
        found[y : y + h, x : x + w] = label + 1
    return found


def label_maps(root: Path, convert=Image.fromarray, names: bool = True) -> None:
    """images/SPLIT, masks/SPLIT and classes.txt."""
    for split, chosen in (("train", TRAIN), ("val", VAL)):
        write_images(root / "images" / split, chosen)
        (root / "masks" / split).mkdir(parents=True)
        for i in chosen:
            convert(label_map(i)).save((root / "masks" / split / file_name(i)).with_suffix(".png"))
    if names:
        (root / "classes.txt").write_text("\n".join(["background", *NAMES]) + "\n", encoding="utf-8")


def class_folders(root: Path, split: bool = True) -> None:
    """train/CLASS and valid/CLASS, or CLASS; two images of each class for training."""
    for i, name in enumerate(NAMES):
        for k in range(3):
            folder = root / (("train", "train", "valid")[k]) / name if split else root / name
            folder.mkdir(parents=True, exist_ok=True)
            image((i + k) % 6).save(folder / f"{k} {file_name((i + k) % 6)}")
