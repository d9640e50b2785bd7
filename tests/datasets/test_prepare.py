"""A downloaded COCO tree: checked, linked, or told what is missing. (A small stand-in: counts are patched.)"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from mmgcvit.datasets import prepare as module
from mmgcvit.datasets.prepare import PrepareError, Split, prepare


@pytest.fixture
def tree(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "download"
    splits = []
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as archive:
        for name, pictures, annotations in (("train2017", 5, 7), ("val2017", 2, 3)):
            (folder / name).mkdir(parents=True)
            for i in range(pictures):
                (folder / name / f"{i:012}.jpg").touch()
            (folder / "annotations").mkdir(exist_ok=True)
            images = [dict(file_name=f"{i:012}.jpg") for i in range(pictures)]
            text = json.dumps(dict(images=images, annotations=[{}] * annotations, categories=[{}] * 80))
            (folder / "annotations" / f"instances_{name}.json").write_text(text)
            archive.writestr(f"annotations/instances_{name}.json", text)
            splits.append(Split(name, pictures, annotations, "0" * 32))
    digest = hashlib.md5((tmp_path / "annotations.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(module, "COCO_SPLITS", tuple(splits))
    monkeypatch.setattr(module, "COCO_ANNOTATIONS", ("annotations_trainval2017", digest))
    return folder


def test_a_whole_tree_is_linked(tree: Path, tmp_path: Path):
    report = prepare("coco", tree, tmp_path / "data")
    assert report.problems == []
    assert (tmp_path / "data/coco").resolve() == tree
    assert any("5 images, 7 annotations, SHA-256" in line for line in report.lines)
    assert prepare("coco", tree, tmp_path / "data").lines[-1].endswith("there already")


def test_with_the_archive_the_json_is_compared(tree: Path, tmp_path: Path):
    (tmp_path / "annotations.zip").rename(tree / "annotations_trainval2017.zip")
    report = prepare("coco", tree, tmp_path / "data")
    assert report.problems == []
    assert sum("as in annotations_trainval2017.zip" in line for line in report.lines) == 2
    path = tree / "annotations/instances_val2017.json"
    path.write_text(path.read_text() + " ")
    report = prepare("coco", tree, tmp_path / "data")
    assert "differs from its copy in" in report.problems[0]


@pytest.mark.parametrize(("harm", "problem", "advice"), [
    (lambda t: (t / "val2017/000000000000.jpg").unlink(), "val2017: 1 pictures; expected 2", "zips/val2017.zip"),
    (lambda t: (t / "val2017").rename(t / "validation"), "val2017: no such folder; expected 2", "zips/val2017.zip"),
    (lambda t: (t / "annotations/instances_train2017.json").unlink(), "instances_train2017.json: there is no such file",
     "annotations/annotations_trainval2017.zip"),
    (lambda t: (t / "annotations/instances_train2017.json").write_text("{"), "no COCO annotations: JSONDecodeError",
     "annotations/annotations_trainval2017.zip"),
    (lambda t: (t / "annotations/instances_train2017.json").write_text(
        json.dumps(dict(images=[], annotations=[], categories=[]))),
     "0 images, 0 annotations, 0 categories; expected 5, 7, 80", "annotations/annotations_trainval2017.zip"),
    (lambda t: (t / "val2017/000000000000.jpg").rename(t / "val2017/other.jpg"),
     "val2017: lacks 1 pictures that instances_val2017.json names, such as 000000000000.jpg", ""),
    (lambda t: (t / "annotations_trainval2017.zip").write_bytes(b"half"), "the download is damaged",
     "annotations/annotations_trainval2017.zip"),
])  # fmt: skip
def test_what_is_missing_is_told_and_nothing_linked(tree: Path, tmp_path: Path, harm, problem: str, advice: str):
    harm(tree)
    report = prepare("coco", tree, tmp_path / "data")
    assert any(problem in line for line in report.problems), report.problems
    assert not advice or any(advice in line for line in report.advice), report.advice
    assert not (tmp_path / "data").exists()


def test_something_else_in_the_links_place(tree: Path, tmp_path: Path):
    (tmp_path / "data/coco").mkdir(parents=True)
    with pytest.raises(PrepareError, match="there is something else already"):
        prepare("coco", tree, tmp_path / "data")


def test_unknown(tmp_path: Path):
    with pytest.raises(PrepareError, match=r"'imagenet21'; allowed: coco"):
        prepare("imagenet21", tmp_path)
    with pytest.raises(PrepareError, match="there is no such folder"):
        prepare("coco", tmp_path / "nowhere")


def test_the_published_figures():
    """COCO 2017, as its site and pycocotools' users know it."""
    assert [(split.name, split.pictures, split.annotations) for split in module.COCO_SPLITS] == [
        ("train2017", 118287, 860001), ("val2017", 5000, 36781)]


def test_the_command(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, ROOT / "tools/prepare_data.py", "coco", "empty"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: empty/train2017: no such folder; expected 118287" in done.stdout
    assert "download http://images.cocodataset.org/zips/train2017.zip" in done.stdout
    assert not (tmp_path / "data").exists()
