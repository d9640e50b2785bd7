"""``mmgcvit check-data``: each error is in the report and sets the exit status."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from run_tool import run_tool

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")

from classification_run import COLOURS, make_tree
from classification_run import config as classification
from test_annotations import content, dataset, write

from mmengine.config import Config  # isort: skip
from mmgcvit.datasets.check import check_data
from mmgcvit.datasets.report import print_reports
from mmgcvit.report import detection
from mmgcvit.report.evaluate import training_data
from mmgcvit.report.page import Section


def config(folder: Path, **more) -> Config:
    train, val = dataset(folder, **more), dataset(folder, test_mode=True, **more)
    return Config(
        dict(
            default_scope="mmdet",
            train_dataloader=dict(dataset=train),
            val_dataloader=dict(dataset=val),
            test_dataloader=dict(dataset=val),
        )
    )


def kinds(cfg: Config, breaks: bool = True) -> list[str]:
    return [problem.kind for problem in check_data(cfg, progress=False)[0].problems if problem.breaks == breaks]


def test_good_data(tmp_path: Path, capsys):
    write(tmp_path, content())
    reports = check_data(config(tmp_path), progress=False)
    assert [(report.name, report.images, report.objects, report.kept, report.empty) for report in reports] == [
        ("train", 2, 3, 3, 0),
        ("val", 2, 3, 3, 0),
    ]  # the test set is the validation set
    assert reports[0].classes == {"cat": 2, "dog": 1}
    assert reports[0].sizes == {(64, 48): 1, (48, 64): 1}
    assert [str(problem) for report in reports for problem in report.problems] == [
        f"{tmp_path}/coco.json: 2 of 2 images also in the training data, such as {tmp_path}/images/a.jpg: the "
        "metrics will be too good"
    ]
    print_reports(reports)
    assert capsys.readouterr().out.strip().endswith("nothing that would break training")


def test_crowds_are_counted_as_in_the_report_of_a_run(tmp_path: Path, capsys, monkeypatch):
    """Apart from the objects, and in no class."""
    own = content()
    own["annotations"][0]["iscrowd"] = 1
    write(tmp_path, own)
    reports = check_data(config(tmp_path), progress=False)
    print_reports(reports)
    shown = capsys.readouterr().out
    header, row = (
        re.split(r"[\s┃│]+", line.strip("┃│ ")) for line in shown.splitlines() if re.match(r"[┃│] (set|train) ", line)
    )
    assert dict(zip(header, row, strict=True)) == {
        "set": "train", "annotations": f"{tmp_path}/coco.json", "images": "2", "empty": str(reports[0].empty),
        "objects": "2", "ignored": "1", "used": "2"}  # fmt: skip
    assert "ignored: crowds (iscrowd=1) or difficult objects; no other number includes them" in shown
    assert sum(reports[0].classes.values()) == 2
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(detection, "class_counts", lambda counts, *_: drawn.append(counts["training"]))
    monkeypatch.setattr(detection, "size_figure", lambda sizes, *_: drawn.append(sizes["training"]))
    cfg = config(tmp_path)
    cfg.train_dataloader.update(batch_size=1, sampler=dict(type="DefaultSampler"))
    detection.DetectionReport(("cat", "dog"), [(0, 0, 0)] * 2).count(Section("data", "Data"), training_data(cfg))
    assert drawn[0].tolist() == list(reports[0].classes.values())
    assert len(drawn[1]) == 2


def test_same_data_with_another_metric(tmp_path: Path):
    coco = content()
    for annotation in coco["annotations"]:
        annotation.pop("segmentation", None)
    write(tmp_path, coco)
    cfg = config(tmp_path, with_mask=False)
    cfg.val_evaluator, cfg.test_evaluator = (dict(type="CocoMetric", metric=name) for name in ("bbox", "segm"))
    _, val, test = check_data(cfg, progress=False)[:3]
    assert (val.name, val.broken) == ("val", False)
    assert (test.name, test.broken) == ("test", True)
    cfg.test_evaluator = cfg.val_evaluator
    assert [report.name for report in check_data(cfg, progress=False)][:2] == ["train", "val"]


def test_missing_image(tmp_path: Path):
    write(tmp_path, content())
    (tmp_path / "images/a.jpg").unlink()
    report = check_data(config(tmp_path), progress=False)[0]
    assert [str(problem) for problem in report.problems] == [f"{tmp_path}/images/a.jpg: no such file"]
    assert report.broken


@pytest.mark.parametrize("content_", ["truncated", b"", b"<html>not found</html>"])
def test_images_that_cannot_be_decoded(tmp_path: Path, content_: str | bytes):
    write(tmp_path, content())
    path = tmp_path / "images/a.jpg"
    path.write_bytes(path.read_bytes()[:-500] if content_ == "truncated" else content_)
    assert kinds(config(tmp_path)) == ["image"]


def test_image_size_differs_from_annotations(tmp_path: Path):
    write(tmp_path, content())
    Image.new("RGB", (48, 64)).save(tmp_path / "images/a.jpg")
    report = check_data(config(tmp_path), progress=False)[0]
    assert str(report.problems[0]).endswith("is 48 x 64 (width x height), but 64 x 48 in the annotations")


def test_exif_orientation_is_applied(tmp_path: Path):
    """mmcv rotates images when loading them with OpenCV."""
    import mmcv

    write(tmp_path, content())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(tmp_path / "images/a.jpg", exif=exif)
    assert mmcv.imread(str(tmp_path / "images/a.jpg")).shape == (48, 64, 3)
    assert kinds(config(tmp_path)) == []


def test_skipped_annotations_are_warnings(tmp_path: Path, capsys):
    coco = content()
    coco["annotations"][1].update(category_id=99)
    coco["annotations"][2].update(area=0)
    write(tmp_path, coco)
    assert kinds(config(tmp_path)) == []
    assert sorted(kinds(config(tmp_path), False)) == ["area", "category", "class"]
    reports = check_data(config(tmp_path), progress=False)
    assert (reports[0].empty, reports[0].kept) == (1, 1)
    print_reports(reports)
    printed = capsys.readouterr().out
    assert "warning: train: category: 1, skipped" in printed
    assert "no object of class 'dog'" in printed


def test_classes_in_another_order(tmp_path: Path):
    write(tmp_path, content())
    assert kinds(config(tmp_path, classes=("cat", "dog"))) == ["classes"]


def test_voc(tmp_path: Path):
    """A data set in another format, read by mmdet's own class."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("one\n")
    Image.new("RGB", (80, 60)).save(tmp_path / "JPEGImages/one.jpg")
    box = "<bndbox><xmin>{}</xmin><ymin>5</ymin><xmax>{}</xmax><ymax>50</ymax></bndbox>"
    item = "<object><name>dog</name><difficult>0</difficult>" + box + "</object>"
    (tmp_path / "Annotations/one.xml").write_text(
        "<annotation><size><width>80</width><height>60</height></size>"
        + item.format(5, 40)
        + item.format(200, 300)
        + "</annotation>"
    )
    voc = dict(
        type="VOCDataset",
        data_root=str(tmp_path),
        ann_file="ImageSets/Main/trainval.txt",
        data_prefix=dict(sub_data_root=""),
        pipeline=[dict(type="LoadImageFromFile")],
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
    cfg = Config(
        dict(
            default_scope="mmdet",
            train_dataloader=dict(
                dataset=dict(type="RepeatDataset", times=3, dataset=dict(type="ConcatDataset", datasets=[voc]))
            ),
        )
    )
    (report,) = check_data(cfg, progress=False)
    assert (report.images, report.objects, report.kept) == (1, 2, 1)
    assert report.classes["dog"] == 1
    assert [problem.kind for problem in report.problems if problem.kind != "class"] == ["box", "beyond"]
    (tmp_path / "Annotations/one.xml").write_text("<annotation>")
    (report,) = check_data(cfg, progress=False)
    assert report.broken
    assert f"{tmp_path}/Annotations/one.xml: ParseError" in report.problems[0].what
    (tmp_path / "Annotations/one.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    (report,) = check_data(cfg, progress=False)
    assert f"{tmp_path}/Annotations/one.xml: object 0 has no name or no bndbox" in report.problems[0].what


def test_voc_lists_in_other_encodings(tmp_path: Path):
    data = dict(
        type="VOCDataset", data_root=str(tmp_path), ann_file="list.txt", data_prefix=dict(sub_data_root=""), pipeline=[]
    )
    (tmp_path / "list.txt").write_text("0\n", "utf-8-sig")
    (tmp_path / "names.txt").write_text("rouge-é\n", "cp1252")
    for metainfo, says in (
        ({}, f"ann_file '{tmp_path}/list.txt' is UTF-8 with a byte order mark"),
        (dict(classes=str(tmp_path / "names.txt")), f"metainfo.classes '{tmp_path}/names.txt' is not UTF-8"),
    ):
        cfg = Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dict(data, metainfo=metainfo))))
        (problem,) = check_data(cfg, progress=False)[0].problems
        assert says in str(problem)


def test_classification_folders(tmp_path: Path, capsys):
    tree = make_tree(tmp_path / "colours", train=70, val=2)  # more images than are opened at a time
    cfg = classification(tree, tmp_path / "run")
    reports = check_data(cfg, progress=False)
    assert [(report.name, report.images, report.kept, report.problems) for report in reports] == [
        ("train", 210, 210, []),
        ("val", 6, 6, []),
    ]
    assert reports[0].classes == dict.fromkeys(COLOURS, 70)
    assert reports[1].sizes == {(48, 40): 6}
    print_reports(reports)
    assert "labels by class" in capsys.readouterr().out

    broken = tree / "train" / "red" / "69.png"
    broken.write_bytes(broken.read_bytes()[:-500])
    (tree / "val" / "green").rename(tree / "val" / "cyan")
    cfg.model.num_classes = 2
    train, val = check_data(cfg, progress=False)
    assert train.broken
    assert val.broken
    assert [problem.kind for problem in train.problems] == ["classes", "image"]
    assert "3 classes; allowed: at most model.num_classes=2" in str(train.problems[0])
    assert str(train.problems[1]).startswith("red/69.png: cannot be decoded")
    assert (train.images, train.kept) == (210, 209)
    assert (
        "the val data: 1 class folder is missing: green; 1 class folder is not among the training data's 3: cyan"
        in str(val.problems[0])
    )
    shutil.rmtree(tree / "val")
    _, val = check_data(cfg, progress=False)
    assert [str(problem) for problem in val.problems] == [
        f"{tree}/val: {tree}/val: no such folder; expected: {tree}/val/CLASS/NAME.jpg"
    ]


def test_given_classes(tmp_path: Path):
    tree = make_tree(tmp_path / "colours", train=1, val=1)
    shutil.rmtree(tree / "val" / "green")
    with tarfile.open(tree / "val.tar", "w") as tar:
        tar.add(tree / "val", arcname=".")
    cfg = classification(tree, tmp_path / "run")
    cfg.val_dataloader.dataset.update(classes=list(COLOURS), reader="tar", split="val.tar")
    report = check_data(cfg, progress=False)[1]
    assert report.classes == dict(blue=1, green=0, red=1)
    assert not report.broken
    assert [problem.what for problem in report.problems] == ["no image of class 'green'"]


def test_command(tmp_path: Path):
    coco = content()
    coco["annotations"][0]["bbox"] = [1, 2]
    path = write(tmp_path / "data", coco)
    mine = tmp_path / "mine.py"
    template = (ROOT / "configs/detection/custom_coco_template.py").read_text()
    mine.write_text(
        template.replace("./_base_", f"{ROOT}/configs/detection/_base_")
        .replace("'data/my_data/'", f"'{tmp_path}/data'")
        .replace("('cat', 'dog')", "('dog', 'cat')")
    )
    for name in ("train.json", "val.json"):
        (tmp_path / "data" / name).write_text(path.read_text())
    done = run_tool("check_data.py", mine, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert (
        "  data/train.json: image id 7, annotation id 1: bbox=[1, 2]" in done.stdout
    )  # relative to the current folder
    assert done.stdout.strip().endswith("would break training or make a metric meaningless: train, val")
    for name in ("train.json", "val.json"):
        (tmp_path / "data" / name).write_text(json.dumps(content()))
    done = run_tool("check_data.py", mine, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
