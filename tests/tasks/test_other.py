"""Pascal VOC's XML files, read by mmdet's own class."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")

from mmengine.registry import init_default_scope

from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.detection import Detection
from mmgcvit.tasks.detection.other import read_other

ITEM = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>{}</xmax><ymax>50</ymax>"
    "</bndbox></object>"
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def voc(folder: Path, *items: str, size: tuple[int, int] = (80, 60)) -> dict:
    """A data set of one image of 80 x 60; ``size`` is what its XML file says."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/trainval.txt").write_text("one\n")
    Image.new("RGB", (80, 60)).save(folder / "JPEGImages/one.jpg")
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    (folder / "Annotations/one.xml").write_text(f"<annotation>{sides}{''.join(items)}</annotation>")
    return dict(
        type="VOCDataset",
        data_root=str(folder),
        ann_file="ImageSets/Main/trainval.txt",
        data_prefix=dict(sub_data_root=""),
        pipeline=[dict(type="LoadImageFromFile")],
    )


def test_names_that_are_no_classes_are_counted(tmp_path: Path):
    dataset = voc(tmp_path, *(ITEM.format(name, 0, 40) for name in ("dog", "Dog", "Dog", "hound")))
    found = read_other(dataset)
    assert (found.objects, [image.labels for image in found.images]) == (4, [["dog"]])
    assert [str(problem) for problem in found.problems] == [
        f"{tmp_path}/ImageSets/Main/trainval.txt: 3 objects are of no class of the data set: 'Dog' (2), 'hound' (1)"
    ]
    Detection().check_before_run(dataset, None, None)


def test_difficult_objects_are_not_learned(tmp_path: Path):
    found = read_other(voc(tmp_path, ITEM.format("dog", 1, 40), ITEM.format("cat", 0, 40)))
    assert (found.objects, found.crowds, found.images[0].labels, found.problems) == (2, 1, ["cat"], [])
    with pytest.raises(AnnotationError, match="none of 1 object can be used, 1 are difficult, which are ignored"):
        Detection().check_before_run(voc(tmp_path, ITEM.format("dog", 1, 40)), None, None)


@pytest.mark.parametrize(("size", "says"), [
    ((60, 80), r"one.jpg: is 80 x 60 \(width x height\), but 60 x 80 in the annotations"),
    ((0, 0), "one.xml: width=0, height=0; allowed: more than 0"),
    (("wide", 60), "one.xml: size/width is 'wide'; allowed: a number"),
])  # fmt: skip
def test_wrong_sizes_are_refused_before_a_run(tmp_path: Path, size: tuple, says: str):
    with pytest.raises(AnnotationError, match=says):
        Detection().check_before_run(voc(tmp_path, ITEM.format("dog", 0, 40), size=size), None, None)


@pytest.mark.parametrize(("items", "says"), [
    ([ITEM.format("dog", 0, "")], "one.xml: object 0, xmax is ''; allowed: a number"),
    ([ITEM.format("dog", "yes", 40)], "one.xml: object 0, difficult is 'yes'; allowed: a number"),
    (["<object><name>dog</name></object>"], "one.xml: object 0 has no name or no bndbox"),
    (["<object>"], "one.xml: ParseError"),
])  # fmt: skip
def test_broken_files_are_named(tmp_path: Path, items: list[str], says: str):
    with pytest.raises(AnnotationError, match=says):
        Detection().check_before_run(voc(tmp_path, *items), None, None)


def test_files_that_are_missing(tmp_path: Path):
    dataset = voc(tmp_path, ITEM.format("dog", 0, 40))
    (tmp_path / "JPEGImages/one.jpg").unlink()
    with pytest.raises(AnnotationError, match=r"one\.jpg: no such file"):
        Detection().check_before_run(dataset, None, None)
    for name in ("nowhere.txt", ["a.txt", "b.txt"]):
        with pytest.raises(AnnotationError, match="allowed: one text file with the names of images"):
            Detection().check_before_run(dataset | dict(ann_file=name), None, None)
