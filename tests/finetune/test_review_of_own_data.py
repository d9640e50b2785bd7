"""Data that looks right: labels in another order, folders named twice, files that are none."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.formats import read_data
from mmgcvit.finetune.write import convert


def image(path: Path, size: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def coco(folder: Path, names: list[str], categories: list[dict]) -> None:
    """Each image has an object of category 1 and one of category 2."""
    boxes = [
        dict(id=2 * i + c, image_id=i, category_id=c, bbox=[1, 2, 10, 10], area=100, iscrowd=0)
        for i, _ in enumerate(names)
        for c in (1, 2)
    ]
    images = [dict(id=i, file_name=name, width=40, height=30) for i, name in enumerate(names)]
    for name in names:
        image(folder / name)
    content = dict(images=images, annotations=boxes, categories=categories)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def test_categories_in_another_order(tmp_path: Path):
    cat, dog = dict(id=1, name="cat"), dict(id=2, name="dog")
    coco(tmp_path / "train", ["a.png"], [cat, dog])
    coco(tmp_path / "valid", ["b.png"], [dog, cat])
    data = read_data(tmp_path)
    assert data.classes == ["cat", "dog"]
    for items in data.splits.values():
        assert [instance.label for instance in items[0].instances] == [0, 1]


def test_images_found_by_name_only_are_told(tmp_path: Path):
    coco(tmp_path / "train", ["a.png", "b.png"], [dict(id=1, name="cat"), dict(id=2, name="dog")])
    image(tmp_path / "elsewhere" / "c.png").parent.joinpath("b.png").write_bytes(
        (tmp_path / "train/b.png").read_bytes()
    )
    (tmp_path / "train/b.png").unlink()
    data = read_data(tmp_path)
    assert any("found by name" in note and "elsewhere" in note for note in data.notes)


def yolo(folder: Path, text: str) -> None:
    for split in ("train", "val"):
        image(folder / f"images/{split}/{split}.png")
        label = folder / f"labels/{split}/{split}.txt"
        label.parent.mkdir(parents=True)
        label.write_text("0 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text(f"names: [disc]\n{text}")


def test_validation_images_are_kept_if_the_test_images_are_those_of_training(tmp_path: Path):
    yolo(tmp_path, "train: images/train\nval: images/val\ntest: images/train\n")
    data = read_data(tmp_path)
    assert [item.path.name for item in data.splits["val"]] == ["val.png"]


def test_two_folders_of_validation_images(tmp_path: Path):
    yolo(tmp_path, "train: images/train\nval: images/val\nvalid: images/val\n")
    with pytest.raises(AnnotationError, match=r"data.yaml: has val and valid; allowed: one of them"):
        read_data(tmp_path)


@pytest.mark.parametrize("name", ["N/A", "../../x", "/absolute", "..", ".hidden"])
def test_class_names_are_no_paths(tmp_path: Path, name: str):
    tasks = [
        dict(
            id=i,
            data=dict(image=image(tmp_path / "data" / f"{i}.png").name),
            annotations=[dict(result=[dict(type="choices", from_name="c", to_name="i", value=dict(choices=[c]))])],
        )
        for i, c in enumerate([name, "good", name, "good"])
    ]
    (tmp_path / "data/export.json").write_text(json.dumps(tasks))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AnnotationError, match=r"cannot be names of folders"):
        convert(read_data(tmp_path / "data"), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_dangling_links_are_no_files(tmp_path: Path):
    coco(tmp_path, ["a.png"], [dict(id=1, name="cat"), dict(id=2, name="dog")])
    os.mkfifo(tmp_path / "a.xml")
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    data = read_data(tmp_path)
    assert [item.path.name for items in data.splits.values() for item in items] == ["a.png"]


def test_masks_of_labelme_beyond_the_edges_are_cropped():
    from mmgcvit.finetune.formats.labelme import _mask

    part = np.zeros((4, 6), np.uint8)
    part[2:, 3:] = 255
    file = io.BytesIO()
    Image.fromarray(part).convert("RGB").save(file, "PNG")
    mask = _mask(base64.b64encode(file.getvalue()).decode(), [[-3, -1], [2, 2]], (5, 4), "shape")
    expected = np.zeros((4, 5), bool)
    expected[1:3, :3] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("place", ["categories", "images"])
def test_ids_that_are_lists(tmp_path: Path, place: str):
    coco(tmp_path, ["a.png"], [dict(id=1, name="cat"), dict(id=2, name="dog")])
    file = tmp_path / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content[place][0]["id"] = [1]
    file.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=rf"{place}\[0\]\.id=\[1\]; allowed: an integer"):
        read_data(tmp_path)
