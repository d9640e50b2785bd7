"""Odd values of annotations: each gives an error that names its place, or is read; never another exception."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmgcvit.errors import AnnotationError, MMGCViTError, UsageError
from mmgcvit.finetune.data import Data, split_off
from mmgcvit.finetune.formats import read_data
from mmgcvit.finetune.work_dir import require_untrained
from mmgcvit.finetune.write import convert

ODD = [None, True, -1, float("nan"), 10**400, 10**9, "640.0", "x" * 300, "\udcff", [1], {"a": 1}]
TEXTS = ["", "640.0", "abc", "nan", "-5", "1000000000", "../b", "x" * 300]


def bitmap() -> str:
    """A mask of 4 x 4 pixels as LabelMe writes it."""
    file = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def box(kind: str, **value: Any) -> dict:
    """A result of Label Studio."""
    return dict(type=kind, value={**value, kind: ["a"]})


POLYGON = [[10, 10], [50, 10], [50, 60]]
FILES: dict[str, Any] = {
    "coco": dict(
        images=[dict(id=1, file_name="a.png", width=40, height=30), dict(id=2, file_name="b.png", width=40, height=30)],
        annotations=[
            dict(id=1, image_id=1, category_id=3, bbox=[1, 2, 9, 8], area=72, iscrowd=0,
                 segmentation=[[1, 2, 9, 2, 9, 8]], attributes=dict(rotation=0.0)),
            dict(id=2, image_id=2, category_id=3, bbox=[0, 0, 5, 5], iscrowd=1,
                 segmentation=dict(size=[30, 40], counts=[0, 5, 1195])),
        ],
        categories=[dict(id=3, name="a", supercategory="b")],
    ),
    "labelme": dict(
        imagePath="a.png", imageWidth=40, imageHeight=30,
        shapes=[
            dict(label="a", shape_type="polygon", group_id=None, points=POLYGON),
            dict(label="a", shape_type="circle", points=[[9, 9], [12, 12]]),
            dict(label="b", shape_type="mask", points=[[1, 2], [4, 5]], mask=bitmap()),
        ],
    ),
    "labelstudio": [
        dict(data=dict(image="a.png"), annotations=[dict(was_cancelled=False, result=[
            box("rectanglelabels", x=1, y=2, width=30, height=40, rotation=10),
            box("polygonlabels", points=POLYGON),
            box("ellipselabels", x=30, y=40, radiusX=10, radiusY=5, rotation=0),
        ])]),
        dict(data=dict(image="b.png"), annotations=[dict(result=[])]),
    ],
    "labelstudio-min": [
        dict(image="a.png", annotator=1, label=[dict(x=1, y=2, width=3, height=4, rotation=0, rectanglelabels=["a"])]),
        dict(image="b.png", annotator=1, choice="a"),
    ],
}  # fmt: skip


def places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Yield the path of every value of a JSON content."""
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple, value: Any) -> Any:
    """Return a copy with another value at a path, or without it."""
    if not path:
        return value
    content = copy.deepcopy(content)
    node = content
    for key in path[:-1]:
        node = node[key]
    if value is KeyError:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


def images(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name in "ab":
        Image.new("RGB", (40, 30)).save(folder / f"{name}.png")


def outcome(folder: Path, out: Path, write: Callable[[], object]) -> str | None:
    """Message of the error that the data gives; None if it is read and written."""
    write()
    try:
        data = read_data(folder)
        split_off(data)
        convert(data, out)
    except MMGCViTError as error:
        return str(error)
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return None


@pytest.mark.parametrize("name", FILES)
def test_every_value_of_json(name: str, tmp_path: Path):
    folder, said = tmp_path / "data", set()
    images(folder)
    path = folder / "a.json"
    if name == "labelme":
        (folder / "b.json").write_text(json.dumps(dict(FILES[name], imagePath="b.png")))
    for place in places(FILES[name]):
        for value in [*ODD, *([KeyError] if place else [])]:
            content = json.dumps(changed(FILES[name], place, value))
            said.add(outcome(folder, tmp_path / "out", lambda content=content: path.write_text(content)))
    assert None in said
    assert len(said) > 40


CVAT = """<annotations><meta><task><labels><label><name>a</name></label></labels></task></meta>
<image name="a.png" subset="train" width="40" height="30">
<box label="a" xtl="1" ytl="2" xbr="30" ybr="20" rotation="0" group_id="1"/>
<polygon label="a" points="1,2;30,2;30,20"/>
<ellipse label="a" cx="20" cy="10" rx="5" ry="5" rotation="0"/>
<mask label="a" rle="0, 4" left="1" top="2" width="2" height="2"/></image>
<image name="b.png" subset="val" width="40" height="30"><box label="a" xtl="1" ytl="2" xbr="3" ybr="4"/></image>
</annotations>"""
VOC = """<annotation>
<filename>a.png</filename>
<size><width>40</width><height>30</height></size>
<object><name>a</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>
<attributes><attribute><name>rotation</name><value>0.0</value></attribute></attributes></object></annotation>"""


@pytest.mark.parametrize(("text", "values"), [(CVAT, r'"([^"]*)"'), (VOC, r">([^<>\n]+)<")], ids=["cvat", "voc"])
def test_every_value_of_xml(text: str, values: str, tmp_path: Path):
    folder, said = tmp_path / "data", set()
    images(folder)
    if text is VOC:
        (folder / "b.xml").write_text(VOC.replace("a.png", "b.png"))
    for found in re.finditer(values, text):
        for odd in TEXTS:
            new = text[: found.start(1)] + odd + text[found.end(1) :]
            said.add(outcome(folder, tmp_path / "out", lambda new=new: (folder / "a.xml").write_text(new)))
    assert None in said
    assert len(said) > 20


def test_every_value_of_yolo(tmp_path: Path):
    folder, said = tmp_path / "data", set()
    (folder / "labels").mkdir(parents=True)
    images(folder / "images")
    label, description = folder / "labels/a.txt", folder / "data.yaml"
    yaml = "path: .\ntrain: images\nval: images\nnc: 2\nnames: {0: a, 1: b}\n"
    description.write_text(yaml)
    for i in range(5):
        for odd in TEXTS:
            words = ["0", "0.5", "0.5", "0.2", "0.1"]
            words[i] = odd
            said.add(outcome(folder, tmp_path / "out", lambda words=words: label.write_text(" ".join(words))))
    label.write_text("0 0.5 0.5 0.2 0.1")
    for key in ("path: .", "train: images", "val: images", "nc: 2", "names: {0: a, 1: b}", "0: a", "1: b"):
        for odd in [*TEXTS, "[]", "{}", "[[a]]", "{a: b}", "null", "[1, 2]", "images/../images", '"a\\0b"']:
            new = yaml.replace(key, f"{key.partition(':')[0]}: {odd}")
            said.add(outcome(folder, tmp_path / "out", lambda new=new: description.write_text(new)))
    assert None in said
    assert len(said) > 40


def read(folder: Path, text: str) -> Data:
    images(folder)
    (folder / "a.xml").write_text(text)
    return read_data(folder)


def test_sizes_of_cvat_with_decimals(tmp_path: Path):
    data = read(tmp_path, CVAT.replace('width="40"', 'width="40.0"').replace('left="1"', 'left="1.0"'))
    assert [item.size for item in data.items] == [(40, 30), (40, 30)]
    with pytest.raises(AnnotationError, match=r"a\.xml:2: width: '40\.5'; allowed: a whole number of at least 0"):
        read(tmp_path, CVAT.replace('width="40"', 'width="40.5"'))
    with pytest.raises(AnnotationError, match=r"a\.xml:6: the image is annotated as 1000000000 x 30 = .* million"):
        read(tmp_path, CVAT.replace('width="40"', 'width="1000000000"'))


@pytest.mark.parametrize("value", ["0", "false", "1", 1.0])
def test_crowds_of_coco_as_text(value: Any, tmp_path: Path):
    images(tmp_path)
    content = changed(FILES["coco"], ("annotations", 0, "iscrowd"), value)
    (tmp_path / "a.json").write_text(json.dumps(content))
    if value == 1.0:
        with pytest.raises(AnnotationError, match=r"annotations\[0\].iscrowd: 1.0; allowed: 0, 1"):
            read_data(tmp_path)
    else:
        assert [i.crowd for item in read_data(tmp_path).items for i in item.instances] == [value == "1", True]


@pytest.mark.parametrize("kind", [np.int32, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("suffix", [".tif", ".tiff", ".png", ".npy"])
def test_label_maps_of_more_than_8_bits(kind: type, suffix: str, tmp_path: Path):
    if suffix == ".png" and kind != np.uint16:
        pytest.skip("PNG has no such values")
    root = tmp_path / "data"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    labels = np.array([[0, 1, 2], [2, 255, 1]], kind)

    def save(path: Path) -> None:
        np.save(path, labels) if suffix == ".npy" else Image.fromarray(labels).save(path)

    for name in "ab":
        Image.new("RGB", (3, 2)).save(root / "images" / f"{name}.png")
        save(root / "masks" / f"{name}{suffix}")
    (root / "classes.txt").write_text("x\ny\nz\n")
    data = read_data(root)
    split_off(data)
    out = convert(data, tmp_path / "out")
    for path in out.rglob("annotations/*/*.png"):
        with Image.open(path) as image:
            assert image.mode == "L"
            assert (np.asarray(image) == labels).all()
    labels[1, 0] = -3 if np.issubdtype(kind, np.signedinteger) else 700
    save(root / "masks" / f"b{suffix}")
    with pytest.raises(AnnotationError, match=rf"masks/b{suffix}: the label map has the values (-3|700)(.0)?; allowed"):
        read_data(root)


def test_names_that_are_not_utf8(tmp_path: Path):
    images(tmp_path / "data")
    (tmp_path / "data/a.json").write_text(json.dumps(FILES["labelme"]))
    (tmp_path / "data/b.json").write_text(json.dumps(dict(FILES["labelme"], imagePath="b.png")))
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (tmp_path / "data/b.png").rename(tmp_path / "data" / name)
    except OSError:
        pytest.skip("this file system allows UTF-8 only")
    (tmp_path / "data/b.json").write_text(json.dumps(dict(FILES["labelme"], imagePath=name)))
    with pytest.raises(AnnotationError, match=r"file .*caf\\udce9.png': the name is not UTF-8; allowed: UTF-8"):
        read_data(tmp_path / "data")
    (tmp_path / "data" / name).rename(tmp_path / "data/b.png")
    (tmp_path / "data/b.json").unlink()
    data = read_data(tmp_path / "data")
    assert data.classes == ["a", "b"]
    with pytest.raises(UsageError, match=r"udce9': the name is not UTF-8"):
        convert(data, tmp_path / os.fsdecode(b"out\xe9"))
    with pytest.raises(UsageError, match=r"^work_dir='w\\udce9': the name is not UTF-8"):
        require_untrained(Path(os.fsdecode(b"w\xe9")))
    (tmp_path / "data/a.json").write_text(json.dumps(changed(FILES["labelme"], ("shapes", 0, "label"), "\udcff")))
    with pytest.raises(AnnotationError, match=r"^class '\\udcff': the name is not UTF-8"):
        read_data(tmp_path / "data")


def test_rotated_boxes_are_told(tmp_path: Path):
    data = read(tmp_path / "cvat", CVAT.replace('rotation="0" group', 'rotation="30" group'))
    (note,) = (note for note in data.notes if "rotated boxes" in note)
    assert note == f"1 rotated boxes become the upright boxes around them: {tmp_path}/cvat/a.xml:3, ..."
    (tmp_path / "cvat/a.xml").write_text(VOC.replace("0.0", "30.0"))
    (tmp_path / "cvat/b.xml").write_text(VOC.replace("a.png", "b.png"))
    (note,) = (note for note in read_data(tmp_path / "cvat").notes if "angle" in note)
    assert note.startswith(f"1 box has an angle in the attributes, which is not applied: {tmp_path}/cvat/a.xml:6, ")
    for name, place in (
        ("labelstudio", "1 rotated boxes become the upright boxes around them: {}: [0].annotations[0].result[0], ..."),
        (
            "coco",
            "1 box has an angle in the attributes, which is not applied: {}: annotations[0].attributes",
        ),
    ):
        folder = tmp_path / name
        images(folder)
        content = FILES[name]
        if name == "coco":
            content = changed(content, ("annotations", 0, "attributes", "rotation"), 12)
        (folder / "a.json").write_text(json.dumps(content))
        assert any(note.startswith(place.format(folder / "a.json")) for note in read_data(folder).notes), name


def test_folders_of_yolo_that_are_elsewhere_are_told(tmp_path: Path):
    for split in ("train", "valid"):
        (tmp_path / "data" / split).mkdir(parents=True)
        images(tmp_path / "data" / split / "images")
        (tmp_path / "data" / split / "labels").mkdir()
        (tmp_path / "data" / split / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data/data.yaml").write_text("names: [disc]\ntrain: ../train/images\nval: ../valid/images\n")
    (first, second) = (note for note in read_data(tmp_path / "data").notes if "is taken" in note)
    assert first == (
        f"data.yaml: train='../train/images': there is no {tmp_path}/train/images; "
        f"{tmp_path}/data/train/images is taken"
    )
    assert second.startswith("data.yaml: val=")
    (tmp_path / "data/train").rename(tmp_path / "train")  # a folder of the same name elsewhere
    notes = read_data(tmp_path / "data").notes
    assert f"2 images are outside of {tmp_path}/data, in {tmp_path}/train/images" in notes


def test_images_of_coco_that_are_outside_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
        images(tmp_path / folder)
    content = changed(FILES["coco"], ("images", 1, "file_name"), "../elsewhere/b.png")
    (tmp_path / "data/a.json").write_text(json.dumps(content))
    assert f"1 image is outside of {tmp_path}/data, in {tmp_path}/elsewhere" in read_data(tmp_path / "data").notes
    (tmp_path / "data/a.json").write_text(json.dumps(FILES["coco"]))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert not any("outside" in note for note in read_data("../data").notes)
