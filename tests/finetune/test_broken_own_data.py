"""Broken annotations give errors with the file, and the line or the key."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import own_data_sets as sets
import pytest
from PIL import Image

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import split_off
from mmgcvit.finetune.formats import read_data
from mmgcvit.finetune.write import convert


def replace(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text in a file."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def error_of(root: Path, **options) -> str:
    """Message of the error that reading raises."""
    with pytest.raises(AnnotationError) as error:
        read_data(root, **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"images": [', '"images": [,', "annotations.json:2: not JSON"),
        ('"category_id": 7', '"category_id": 99', "annotations[0].category_id=99; allowed: 7, 3, 11, 5"),
        ('"image_id": 100', '"image_id": 1', "annotations[0].image_id=1: no image has this id"),
        ('"category_id": 7', '"kind": 7', "annotations[0]: has no 'category_id'; its keys are id, image_id, kind"),
        ('"id": 101', '"id": 100', "images[1].id=100: an entry above has the same id"),
        ('"width": 97', '"width": "wide"', "images[0].width: 'wide' is not a number"),
        ('"file_name": "bild 0', '"file_name": "x 0', "images[0].file_name: image 'x 0.foto ä.jpg': no such file in"),
        ('"name": "007"', '"name": " "', "categories[2].name=' '; allowed: a name"),
        ('"bbox": [', '"bbox": [1, ', "annotations[0].bbox=[1, 4, 6, 40, 32]; allowed: [x, y, width, height]"),
    ],
)
def test_coco(old, new, wanted, tmp_path):
    sets.coco_one_file(tmp_path)
    replace(tmp_path / "annotations.json", old, new)
    assert wanted in error_of(tmp_path)


def test_coco_files_that_do_not_fit_together(tmp_path):
    sets.coco_roboflow(tmp_path)
    replace(tmp_path / "valid" / "_annotations.coco.json", '"name": "no"', '"name": "yes"')
    assert re.search(r"valid/_annotations.coco.json: categories .*'yes'.*allowed: the same in all", error_of(tmp_path))
    sets.coco_one_file(tmp_path / "b")
    sets.write_json(tmp_path / "b" / "more.json", sets.coco_content(range(6), False))
    assert "two COCO files for 'all'" in error_of(tmp_path / "b")
    assert read_data(tmp_path / "b" / "more.json").classes == sets.NAMES


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("0 0.5 0.5 0.1", ".txt:2: 4 numbers; allowed: 5 (class, centre, size), or 7, 9"),
        ("4 0.5 0.5 0.1 0.1", ".txt:2: class 4; allowed: 0 to 3"),
        ("0 0.5 x 0.1 0.1", ".txt:2: 'x' is not a number"),
        ("0 0.5 0.5 20 0.1", ".txt:2: coordinate 20; allowed: 0 to 1"),
    ],
)
def test_yolo_labels(line, wanted, tmp_path):
    sets.yolo(tmp_path)
    path = (tmp_path / "labels" / "train" / sets.file_name(1)).with_suffix(".txt")
    path.write_text(f"{path.read_text()}{line}\n")
    assert wanted in error_of(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("names:", "classes:", "data.yaml: names=None; allowed: a name for each class from 0"),
        ("  1:", "  9:", "data.yaml: names="),
        ("train: images/train", "train: images/trian", "data.yaml: train='images/trian': no such folder; tried"),
        ("path: .", "path: [", "data.yaml:3: not YAML"),
        ("path: .", "nc: 3", "data.yaml: nc=3, but 4 names"),
        ("path: .", "kpt_shape: [17, 3]", "data.yaml: kpt_shape: key points are not supported"),
    ],
)
def test_yolo_description(old, new, wanted, tmp_path):
    sets.yolo(tmp_path)
    replace(tmp_path / "data.yaml", old, new)
    assert wanted in error_of(tmp_path)


def test_yolo_without_names_or_labels(tmp_path):
    sets.yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    assert "YOLO labels without class names; allowed: a file data.yaml" in error_of(tmp_path)
    sets.yolo_roboflow(tmp_path / "b")
    for path in (tmp_path / "b").rglob("labels/*.txt"):
        path.unlink()
    assert "no image has a label file, such as" in error_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("<annotation>", "<annotation", ":2: not XML"),
        ("<xmax>44</xmax>", "", ":5: object without bndbox/xmax"),
        ("<xmax>44</xmax>", "<xmax>wide</xmax>", ":8: bndbox/xmax: 'wide' is not a number"),
        ("<name>big cat</name>", "", ":5: object without a name"),
        ("<filename>bild 0.", "<filename>bild.", ":2: image 'bild.foto ä.jpg': no such file in"),
    ],
)
def test_voc(old, new, wanted, tmp_path):
    sets.voc(tmp_path)
    path = (tmp_path / "Annotations" / sets.file_name(0)).with_suffix(".xml")
    if "bndbox/xmax" in wanted and not new:
        wanted = wanted.replace(":5: object without bndbox/xmax", ":4: object without bndbox/xmax")
    wanted = wanted.replace(":5: object without a name", ":4: object without a name")
    replace(path, old, new)
    assert f"{path}{wanted}" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"label": "big cat"', '"label": ""', "shapes[0]: has no label"),
        ('"shape_type": "rectangle"', '"shape_type": "cube"', "shapes[0].shape_type='cube'; allowed: polygon"),
        (
            '"shape_type": "rectangle"',
            '"shape_type": "polygon"',
            "shapes[0].points: 2 for a polygon; allowed: at least 3",
        ),
        ('"imagePath": "bild 0', '"imagePath": "other 0', "imagePath: image 'other 0.foto ä.jpg': no such file in"),
    ],
)
def test_labelme(old, new, wanted, tmp_path):
    sets.labelme(tmp_path)
    path = (tmp_path / "train" / sets.file_name(0)).with_suffix(".json")
    replace(path, old, new)
    assert f"{path}: {wanted}" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("<image", "<image<", ":2: not XML"),
        ('label="big cat"', 'label="dog"', ":3: label 'dog'; allowed: big cat, "),
        ('xtl="4"', "", ":3: <box> without xtl"),
        ('name="bild 0', 'name="no bild 0', ":2: image 'no bild 0.foto ä.jpg': no such file in"),
        ("<image ", "<track/><image ", ":2: a track: 'CVAT for video'; allowed: 'CVAT for images 1.1'"),
        ("<box ", "<blob/><box ", ":3: <blob>; allowed: box, polygon"),
    ],
)
def test_cvat(old, new, wanted, tmp_path):
    sets.cvat(tmp_path)
    replace(tmp_path / "annotations.xml", old, new)
    assert f"annotations.xml{wanted}" in error_of(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ('"rectanglelabels": [', '"rectanglelabels": ["x",', "=['x', 'big cat']; allowed: one name"),
        ('"type": "rectanglelabels"', '"type": "brushlabels"', "type 'brushlabels'; allowed: rectanglelabels"),
        ('"x": ', '"left": ', "result[0].value.x: None is not a number"),
        (
            "0a1b2c3d-bild 0",
            "0a1b2c3d-other 0",
            "export.json: [0]: image '1/0a1b2c3d-other 0.foto ä.jpg': no such file",
        ),
    ],
)
def test_label_studio(old, new, wanted, tmp_path):
    sets.label_studio(tmp_path)
    replace(tmp_path / "export.json", old, new)
    assert wanted in error_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        (
            "a.npy",
            np.zeros((2, 3, 3), np.uint8),
            "is an array of shape (2, 3, 3) and type uint8; allowed: (height, width)",
        ),
        ("a.npy", np.full((2, 3), "x"), "is an array of shape (2, 3) and type <U1; allowed: (height, width), numbers"),
        ("a.npy", np.full((2, 3), None), "the label map cannot be read: "),  # a pickle
        ("a.npy", b"\x93NUMPY\x01\0", "the label map cannot be read: "),
        ("a.npz", b"PK", "a.npz: cannot be read as a label map; allowed: .png, .bmp, .tif, .tiff, .npy"),
        ("a.jpg", b"\xff\xd8", "a.jpg: cannot be read as a label map; allowed: .png"),  # its values are not exact
    ],
)
def test_files_that_are_no_label_maps(tmp_path, name: str, content: np.ndarray | bytes, wanted: str):
    """No image is left out without a word because its label map has another format than those of the others."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for stem in "ab":
        Image.new("RGB", (3, 2)).save(tmp_path / "images" / f"{stem}.png")
    np.save(tmp_path / "masks" / "b.npy", np.zeros((2, 3), np.int64))
    (tmp_path / "classes.txt").write_text("x\ny\n")
    path = tmp_path / "masks" / name
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    said = error_of(tmp_path)
    assert said.startswith(f"{path}: ")
    assert wanted in said


def test_arrays_have_no_colours(tmp_path):
    sets.label_maps(tmp_path, lambda labels: Image.fromarray(labels).convert("RGB"), names=False)
    mask = (tmp_path / "masks" / "train" / sets.file_name(0)).with_suffix(".png")
    mask.unlink()
    np.save(mask.with_suffix(".npy"), sets.label_map(0))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\n")
    assert ".npy: the label map is an array; allowed with labelmap.txt: images in colours" in error_of(tmp_path)


def test_label_maps(tmp_path):
    sets.label_maps(tmp_path)
    mask = (tmp_path / "masks" / "train" / sets.file_name(0)).with_suffix(".png")
    mask.write_bytes(mask.read_bytes()[:60])
    assert f"{mask}: the label map cannot be read" in error_of(tmp_path)
    mask.rename(mask.with_name("other.png"))
    assert "other.png: no image has the same name" in error_of(tmp_path)
    sets.label_maps(tmp_path / "deep", lambda labels: Image.fromarray(labels.astype(np.uint16) * 100))
    assert "the label map has the values 300; allowed: whole numbers, 0 to 255" in error_of(tmp_path / "deep")
    sets.label_maps(tmp_path / "colours", lambda labels: Image.fromarray(labels).convert("RGB"), names=False)
    (tmp_path / "colours" / "labelmap.txt").write_text("background:0,0::\n")
    assert "labelmap.txt:1: 'background:0,0::'; allowed: NAME:R,G,B::" in error_of(tmp_path / "colours")
    (tmp_path / "colours" / "labelmap.txt").write_text("background:0,0,0::\na:1,-1,256::\n")
    assert "labelmap.txt:2: 'a:1,-1,256::'; allowed: R, G and B from 0 to 255" in error_of(tmp_path / "colours")


def test_colours_without_a_class(tmp_path):
    sets.label_maps(tmp_path / "data", lambda labels: Image.fromarray(labels).convert("RGB"), names=False)
    (tmp_path / "data" / "labelmap.txt").write_text("background:0,0,0::\na:1,1,1::\nb:2,2,2::\n")
    data = read_data(tmp_path / "data")
    with pytest.raises(AnnotationError, match=r"colours \[\(3, 3, 3\)\] have no class; allowed: \(0, 0, 0\)"):
        convert(data, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_too_few_images_or_no_training_images(tmp_path):
    sets.coco_one_file(tmp_path / "a")
    sets.write_json(tmp_path / "a" / "annotations.json", sets.coco_content([0], False))
    with pytest.raises(AnnotationError, match="1 image with one name; allowed: at least 2"):
        split_off(read_data(tmp_path / "a"))
    sets.coco_roboflow(tmp_path / "b")
    (tmp_path / "b" / "train" / "_annotations.coco.json").unlink()
    with pytest.raises(AnnotationError, match=r"no training images; splits found: val \(2 images\)"):
        split_off(read_data(tmp_path / "b"))


def test_a_file_inside_of_class_folders_is_not_their_annotation(tmp_path):
    sets.class_folders(tmp_path)
    (tmp_path / "notes.txt").write_text("bought on Monday", encoding="utf-8")
    assert "notes.txt: no known annotations. Seen: this file, and in its folder " in error_of(tmp_path / "notes.txt")
    assert read_data(tmp_path).tasks == ("classify",)


def test_class_folders_with_a_class_that_has_no_training_images(tmp_path):
    sets.class_folders(tmp_path)
    (tmp_path / "valid" / "new").mkdir()
    sets.image(0).save(tmp_path / "valid" / "new" / "a.png")
    assert "no training images of ['new']; allowed: some of every class" in error_of(tmp_path)
