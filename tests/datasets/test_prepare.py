"""Checking and linking of downloaded data sets. (Uses small stand-ins with patched counts.)"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from run_tool import run_tool
from timm.data import ImageNetInfo

from mmgcvit.datasets import prepare as module
from mmgcvit.datasets.prepare import PrepareError, Split, prepare


@pytest.fixture
def tree(tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "download"
    splits = []
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as archive:
        for name, count, annotations in (("train2017", 5, 7), ("val2017", 2, 3)):
            (folder / name).mkdir(parents=True)
            for i in range(count):
                (folder / name / f"{i:012}.jpg").touch()
            (folder / "annotations").mkdir(exist_ok=True)
            images = [dict(file_name=f"{i:012}.jpg") for i in range(count)]
            text = json.dumps(dict(images=images, annotations=[{}] * annotations, categories=[{}] * 80))
            (folder / "annotations" / f"instances_{name}.json").write_text(text)
            archive.writestr(f"annotations/instances_{name}.json", text)
            splits.append(Split(name, count, annotations, "0" * 32))
    digest = hashlib.md5((tmp_path / "annotations.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(module, "COCO_SPLITS", tuple(splits))
    monkeypatch.setattr(module, "COCO_ANNOTATIONS", ("annotations_trainval2017", digest))
    return folder


def test_complete_tree_is_linked(tree: Path, tmp_path: Path):
    report = prepare("coco", tree, tmp_path / "data")
    assert report.problems == []
    assert (tmp_path / "data/coco").resolve() == tree
    assert any("5 images, 7 annotations, SHA-256" in line for line in report.lines)
    assert prepare("coco", tree, tmp_path / "data").lines[-1].endswith("exists already")


def test_json_is_compared_with_archive(tree: Path, tmp_path: Path):
    (tmp_path / "annotations.zip").rename(tree / "annotations_trainval2017.zip")
    report = prepare("coco", tree, tmp_path / "data")
    assert report.problems == []
    assert sum("as in annotations_trainval2017.zip" in line for line in report.lines) == 2
    path = tree / "annotations/instances_val2017.json"
    path.write_text(path.read_text() + " ")
    report = prepare("coco", tree, tmp_path / "data")
    assert "differs from its copy in" in report.problems[0]


@pytest.mark.parametrize(("harm", "problem", "advice"), [
    (lambda t: (t / "val2017/000000000000.jpg").unlink(), "val2017: 1 image; expected 2", "zips/val2017.zip"),
    (lambda t: (t / "val2017").rename(t / "validation"), "val2017: no such folder; expected 2", "zips/val2017.zip"),
    (lambda t: (t / "annotations/instances_train2017.json").unlink(), "instances_train2017.json: no such file",
     "annotations/annotations_trainval2017.zip"),
    (lambda t: (t / "annotations/instances_train2017.json").write_text("{"), "not COCO annotations: JSONDecodeError",
     "annotations/annotations_trainval2017.zip"),
    (lambda t: (t / "annotations/instances_train2017.json").write_text(
        json.dumps(dict(images=[], annotations=[], categories=[]))),
     "0 images, 0 annotations, 0 categories; expected 5, 7, 80", "annotations/annotations_trainval2017.zip"),
    (lambda t: (t / "val2017/000000000000.jpg").rename(t / "val2017/other.jpg"),
     "val2017: 1 image is missing that instances_val2017.json lists, such as 000000000000.jpg", ""),
    (lambda t: (t / "annotations_trainval2017.zip").write_bytes(b"half"), "the download is damaged",
     "annotations/annotations_trainval2017.zip"),
])  # fmt: skip
def test_missing_files_are_reported_and_nothing_is_linked(tree: Path, tmp_path: Path, harm, problem: str, advice: str):
    harm(tree)
    report = prepare("coco", tree, tmp_path / "data")
    assert any(problem in line for line in report.problems), report.problems
    assert not advice or any(advice in line for line in report.advice), report.advice
    assert not (tmp_path / "data").exists()


def test_link_path_is_occupied(tree: Path, tmp_path: Path):
    (tmp_path / "data/coco").mkdir(parents=True)
    with pytest.raises(PrepareError, match="another file or folder is in its place"):
        prepare("coco", tree, tmp_path / "data")


def test_unknown_name_or_folder(tmp_path: Path):
    with pytest.raises(PrepareError, match=r"'imagenet21'; allowed: coco, ade20k, cityscapes"):
        prepare("imagenet21", tmp_path)
    with pytest.raises(PrepareError, match="no such folder"):
        prepare("coco", tmp_path / "nowhere")


def test_published_figures():
    """The published counts of COCO 2017."""
    assert [(split.name, split.images, split.annotations) for split in module.COCO_SPLITS] == [
        ("train2017", 118287, 860001),
        ("val2017", 5000, 36781),
    ]
    assert [split.count for split in module.ADE_SPLITS] == [20210, 2000]
    assert [split.count for split in module.CITYSCAPES_SPLITS] == [2975, 500]
    assert [(split, count) for split, count, _ in module.IMAGENET_SPLITS] == [("train", 1281167), ("val", 50000)]
    assert module.IMAGENET_PER_CLASS * 1000 == 50000


@pytest.fixture(params=["ade20k", "cityscapes"])
def pairs(request, tmp_path: Path, monkeypatch) -> tuple[str, Path, module.Pairs]:
    """Name, tree and validation split of a small stand-in."""
    table = {"ade20k": "ADE_SPLITS", "cityscapes": "CITYSCAPES_SPLITS"}[request.param]
    splits = [
        dataclasses.replace(split, count=count) for split, count in zip(getattr(module, table), (3, 2), strict=True)
    ]
    monkeypatch.setattr(module, table, splits)
    town = "aachen/" if request.param == "cityscapes" else ""
    for split in splits:
        for place, suffix in ((split.images, split.image_suffix), (split.labels, split.label_suffix)):
            for i in range(split.count):
                path = tmp_path / "download" / place / f"{town}{i:03}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"content")
    return request.param, tmp_path / "download", splits[1]


def test_complete_segmentation_tree_is_linked(pairs, tmp_path: Path):
    name, tree, split = pairs
    report = prepare(name, tree, tmp_path / "data")
    assert report.problems == report.advice == []
    assert f"{tree / split.labels}: 2 label maps *{split.label_suffix}" in report.lines
    link = tmp_path / "data" / module.DATASETS[name][1]
    assert link.resolve() == tree
    # where the configs expect it
    root = ROOT / "configs/segmentation/_base_" / f"{name}_512x{'1024' if name == 'cityscapes' else '512'}.py"
    assert f"data_root = 'data/{module.DATASETS[name][1]}" in root.read_text()


def test_missing_files_of_segmentation_tree(pairs, tmp_path: Path):
    name, tree, split = pairs
    label = next((tree / split.labels).rglob("*000*"))
    label.rename(label.with_name("other" + split.label_suffix))
    report = prepare(name, tree, tmp_path / "data")
    stem = "000" if name == "ade20k" else "aachen/000"
    assert report.problems == [f"{tree / split.labels}: no label maps for 1 image, such as {stem}"]
    label.with_name("other" + split.label_suffix).unlink()
    report = prepare(name, tree, tmp_path / "data")
    assert report.problems == [
        f"{tree / split.labels}: 1 label map *{split.label_suffix}; expected 2",
        f"{tree / split.labels}: no label maps for 1 image, such as {stem}",
    ]
    assert any(
        "download" in line and (module.ADE_URL in line or "gtFine_trainvaltest" in line) for line in report.advice
    )
    assert not (tmp_path / "data").exists()


def test_empty_files_of_segmentation_tree(pairs, tmp_path: Path):
    name, tree, split = pairs
    path = next((tree / split.labels).rglob("*001*"))
    path.write_bytes(b"")
    assert prepare(name, tree, tmp_path / "data").problems == [
        f"{tree / split.labels}: 1 file of 0 bytes, such as {path.name}: unpack the archive again"
    ]
    assert not (tmp_path / "data").exists()


def test_cityscapes_with_original_ids(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(
        module, "CITYSCAPES_SPLITS", [dataclasses.replace(split, count=1) for split in module.CITYSCAPES_SPLITS]
    )
    for split in ("train", "val"):
        for name in (f"leftImg8bit/{split}/ulm/0_leftImg8bit.png", f"gtFine/{split}/ulm/0_gtFine_labelIds.png"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(b"content")
    report = prepare("cityscapes", tmp_path, tmp_path / "data")
    assert len(report.problems) == 2
    assert set(report.advice) == {advice for advice in report.advice if "csCreateTrainIdLabelImgs" in advice}


@pytest.fixture
def imagenet(tmp_path: Path, monkeypatch) -> Path:
    """The thousand classes, with one image each for training and two for validation."""
    folder = tmp_path / "ilsvrc"
    for split, count in (("train", 1), ("val", 2)):
        for name in ImageNetInfo("imagenet-1k").label_names():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                (folder / split / name / f"{index}.JPEG").touch()
    monkeypatch.setattr(module, "IMAGENET_SPLITS", (("train", 1000, "train.tar"), ("val", 2000, "val.tar")))
    monkeypatch.setattr(module, "IMAGENET_PER_CLASS", 2)
    return folder


def test_imagenet(imagenet: Path, tmp_path: Path):
    report = prepare("imagenet", imagenet, tmp_path / "data")
    assert report.problems == []
    assert report.lines[1].endswith("val: 2000 images in 1000 class folders")
    assert (tmp_path / "data/imagenet").resolve() == imagenet


@pytest.mark.parametrize(("harm", "problem", "advice"), [
    (lambda t: (t / "train/more").mkdir(), "train: 1 folder is not a class of ImageNet-1k: more",
     "move folders that are not classes out of"),
    (lambda t: (t / "train/n01440764/0.JPEG").rename(t / "train/n01440764_0.JPEG"),
     "train: 1 image outside class folders", "into their class folders"),
    (lambda t: (t / "val/n01440764/0.JPEG").rename(t / "val/0.JPEG"), "val: 1 image outside class folders",
     "valprep.sh"),
    (lambda t: (t / "val/n01443537/0.JPEG").rename(t / "val/n01484850/9.JPEG"),
     "val: 2 class folders without their 2 images", "unpack val.tar into an empty"),
    (lambda t: (t / "val/n01443537/0.JPEG").unlink(), "val: 1999 images in class folders; expected 2000",
     "unpack val.tar (from"),
    (lambda t: (t / "train/n01443537/0.JPEG").rename(t / "train/n01484850/9.JPEG"), "train: 1 class folder is empty",
     "unpack train.tar (from"),
    (lambda t: shutil.rmtree(t / "train/n01443537"), "train: 1 class folder is missing: n01443537",
     "unpack train.tar (from"),
    (lambda t: (t / "train/n01443537.tar").touch(), "train: 1 .tar file that is not unpacked", "tar -xf"),
    (lambda t: shutil.rmtree(t / "val"), "val: no such folder; expected 1000 class folders", "download val.tar from"),
])  # fmt: skip
def test_imagenet_problems_come_with_advice(imagenet: Path, tmp_path: Path, harm, problem: str, advice: str):
    harm(imagenet)
    report = prepare("imagenet", imagenet, tmp_path / "data")
    assert any(problem in line for line in report.problems), report.problems
    assert any(advice in line for line in report.advice), report.advice
    assert not (tmp_path / "data").exists()


def test_missing_parts_of_imagenet(imagenet: Path, tmp_path: Path):
    def said() -> str:
        report = prepare("imagenet", imagenet, tmp_path / "data")
        assert report.problems
        assert not (tmp_path / "data").exists()
        return "\n".join(report.problems + report.advice)

    (imagenet / "train/n01440764").rename(imagenet / "train/mine")
    text = said()
    assert "train: 1 class folder is missing: n01440764" in text
    assert "train: 1 folder is not a class of ImageNet-1k: mine" in text
    assert "train: 999 images in class folders; expected 1000" in text
    (imagenet / "train/mine").rename(imagenet / "train/n01440764")

    (imagenet / "val/n01443537/0.JPEG").rename(imagenet / "val/n01484850/9.JPEG")
    assert "val: 2 class folders without their 2 images: n01443537, n01484850" in said()
    (imagenet / "val/n01443537/1.JPEG").unlink()
    assert "val: 1 class folder is empty: n01443537" in said()

    shutil.rmtree(imagenet / "val")
    assert "val: no such folder; expected 1000 class folders" in said()
    (imagenet / "val").mkdir()
    (imagenet / "val/ILSVRC2012_val_00000001.JPEG").touch()
    text = said()
    assert "val: 1 image outside class folders, so their classes are unknown" in text
    assert "valprep.sh" in text
    (imagenet / "train/n01440764.tar").touch()
    assert "1 .tar file that is not unpacked" in said()


def test_command(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    done = run_tool("prepare_data.py", "coco", "empty", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: empty/train2017: no such folder; expected 118287" in done.stdout
    assert "download http://images.cocodataset.org/zips/train2017.zip" in done.stdout
    assert not (tmp_path / "data").exists()
