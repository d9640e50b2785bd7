"""Data sets with random faults: what tools/check_data.py calls broken is refused, and all else trains."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

pytest.importorskip("mmcv._ext")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("hypothesis")

from classification_run import config as classification
from classification_run import make_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from PIL import Image

from mmgcvit import apis
from mmgcvit.datasets.check import check_data

CLASSES = ("cat", "dog")
SIZE = (64, 48)  # width, height
FAST = settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SLOW = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

ODD = st.sampled_from(
    [None, True, "x", "", -1, 0, 1, 1.5, 1e308, float("nan"), float("inf"), [], {}, [1], [[]], 2**70, "1", [None]]
)
BOXES = st.sampled_from(
    [[0, 0, 0, 0], [-10, -10, 15, 15], [200, 200, 5, 5], [0, 0, 1e6, 1e6], [0, 0, -5, -5], [1, 2, 3], ["1"] * 4]
    + [[0, 0, 0.5, 0.5], [63.5, 0, 5, 5], None, [0, 0, 1e-9, 50], [0, 0, 64, 48], [1e9, 0, 5, 5], [0, 0, 1e38, 1e38]]
)
MASKS = st.sampled_from(
    [[], [[]], [[1, 2]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, 6, 7]], [["a"] * 6], [[float("nan")] * 6]]
    + [[[1e9] * 6], [[-5] * 8], [[0, 0, 1, 0, 1, 1], [1]], "rle", [5, 6], [[[1, 2], [3, 4], [5, 6]]], [[5, 5] * 3]]
    + [[[1], [0, 0, 9, 0, 9, 9]], [[], [0, 0, 9, 0, 9, 9]], [[0, 0, 9, 0, 9, 9, 5]], [[0, 0, 1e6, 0, 1e6, 1e6]]]
    + [[[-900, -900, 900, 0, 0, 900]], [[500, 500, 600, 500, 600, 600]], [[0, 0, 5, 5, 10, 10]]]
    + [
        dict(size=size, counts=counts)
        for size in ([48, 64], [64, 48], [5, 5], "x", [-48, 64], [48, 64, 1], [0, 0], [10**6, 10**6])
        for counts in ([0, 10, 3062], [3072], [1], [0, 4000], [-1, 3073], [], "", "abc", "oooo", "PPP3", "üü", None)
    ]
)


def coco(first: int, count: int) -> dict[str, Any]:
    """A COCO file of ``count`` images with two objects each, one with a polygon and one with run lengths."""
    images = [dict(id=i, file_name=f"{i}.png", width=SIZE[0], height=SIZE[1]) for i in range(first, first + count)]
    annotations: list[dict] = []
    for image in images:
        for label, (x, y) in enumerate([(5, 8), (33, 20)]):
            polygon: Any = [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]]
            runs = dict(size=[48, 64], counts=[x * 48 + y] + [20, 28] * 19 + [20, 3072 - (x + 19) * 48 - y - 20])
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image["id"],
                    category_id=label + 1,
                    bbox=[x, y, 20, 20],
                    area=400,
                    iscrowd=0,
                    segmentation=runs if label else polygon,
                )
            )
    return dict(
        images=images, annotations=annotations, categories=[dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    )


def write(folder: Path, splits: dict[str, dict]) -> None:
    (folder / "images").mkdir(exist_ok=True)
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"images/{i}.png")
    for split, content in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(content))


def config(folder: Path) -> Config:
    """A narrow Mask R-CNN on images of 64 x 48, trained for two iterations and then validated."""
    cfg = Config.fromfile(ROOT / "configs/detection/_base_/mask-rcnn_gcvit-nano_fpn.py")
    cfg.model.backbone.arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = len(CLASSES)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    for split in ("train", "val"):
        loader = cfg[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(folder),
            ann_file=f"{split}.json",
            data_prefix=dict(img="images/"),
            metainfo=dict(classes=CLASSES),
        )
        for transform in loader.dataset.pipeline:
            if transform.type == "Resize":
                transform.scale = SIZE
    cfg.val_evaluator = dict(type="CocoMetric", ann_file=str(folder / "val.json"), metric=["bbox", "segm"])
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=2)
    cfg.merge_from_dict(dict(param_scheduler=[], work_dir=str(folder / "run"), log_level="ERROR", launcher="none"))
    cfg.experiment_name = cfg.visualizer.name = folder.name  # mmengine keeps global instances by name
    cfg.default_hooks.checkpoint = None
    return cfg


@st.composite
def faults(draw: Any) -> tuple[str, str, int, str, Any]:
    """A fault: split, list of the file, index, what is done, and a value."""
    split = draw(st.sampled_from(["train", "val"]))
    part = draw(st.sampled_from(["images", "annotations", "categories"]))
    index = draw(st.integers(0, 3))
    keys = {
        "images": ["id", "file_name", "width", "height"],
        "annotations": ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "ignore"],
        "categories": ["id", "name"],
    }[part]
    what = draw(st.sampled_from(["drop", "twice", "entry", "delete", *["set"] * 4]))
    if what in ("drop", "twice"):
        return split, part, index, what, None
    if what == "entry":
        return split, part, index, what, draw(ODD)
    key = draw(st.sampled_from(keys))
    if what == "delete":
        return split, part, index, key, ...
    return split, part, index, key, draw({"bbox": BOXES, "segmentation": MASKS}.get(key, ODD) | ODD)


def break_(contents: dict[str, dict], fault: tuple[str, str, int, str, Any]) -> None:
    split, part, index, what, value = fault
    entries = contents[split][part]
    index %= max(1, len(entries))
    if not entries:
        return
    if what == "drop":
        entries.pop(index)
    elif what == "twice":
        entries.append(copy.deepcopy(entries[index]))
    elif what == "entry":
        entries[index] = copy.deepcopy(value)
    elif isinstance(entries[index], dict):
        if value is ...:
            entries[index].pop(what, None)
        else:
            entries[index][what] = copy.deepcopy(value)


def check(found: list[tuple[str, str, int, str, Any]]) -> str:
    """Train on data with faults if tools/check_data.py finds nothing broken; otherwise it must be refused."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contents = dict(train=coco(0, 3), val=coco(3, 2))
        for fault in found:
            break_(contents, fault)
        write(folder, contents)
        cfg = config(folder)
        if any(report.broken for report in check_data(cfg, workers=1, progress=False)):
            with pytest.raises(apis.UsageError):
                apis.train(cfg)
            return "refused"
        train_and_predict(cfg, folder / "images")
        return "trained"


def train_and_predict(cfg: Config, images: Path) -> None:
    """Train, and predict on a folder of intact images with the weights."""
    runner = apis.train(cfg)
    meta = dict(dataset_meta=runner.train_dataloader.dataset.metainfo)
    torch.save(dict(state_dict=runner.model.state_dict(), meta=meta), images.parent / "weights.pth")
    cfg = copy.deepcopy(cfg)
    cfg.test_dataloader = cfg.val_dataloader
    out = images.parent / "predictions"
    summary = apis.predict(cfg, str(images.parent / "weights.pth"), [images], str(out), "cpu", batch_size=2)
    assert summary.images == len([path for path in images.rglob("*") if path.suffix.lower() in (".png", ".jpg")])
    assert len([path for path in (out / "vis").rglob("*") if path.is_file()]) == summary.images


def test_intact_data_are_trained_on():
    assert check([]) == "trained"


@FAST
@given(st.lists(faults(), min_size=1, max_size=2))
def test_faults_in_coco_files(found: list):
    check(found)


@pytest.mark.slow
@SLOW
@given(st.lists(faults(), min_size=1, max_size=3))
def test_many_faults_in_coco_files(found: list):
    check(found)


def labels(size: tuple[int, int] = SIZE) -> np.ndarray:
    values = np.zeros(size[::-1], np.uint8)
    values[5:25, 5:30], values[-1] = 1, 255
    return values


LABEL_FAULTS = [
    "value",
    "size",
    "rgb",
    "ignored",
    "deep",
    "no image",
    "no label map",
    "empty file",
    "suffix",
    "cut off",
]


def break_label_map(folder: Path, split: str, fault: str) -> None:
    image, label_map = folder / f"images/{split}/0.png", folder / f"annotations/{split}/0.png"
    if fault == "value":
        Image.fromarray(np.where(labels() == 1, 6, labels()).astype(np.uint8)).save(label_map)
    elif fault == "size":
        Image.fromarray(labels((48, 64))).save(label_map)
    elif fault == "rgb":
        Image.fromarray(labels()).convert("RGB").save(label_map)
    elif fault == "ignored":
        Image.fromarray(np.full_like(labels(), 255)).save(label_map)
    elif fault == "deep":
        Image.fromarray(labels().astype(np.uint16) * 257).save(label_map)
    elif fault == "suffix":
        image.exists() and image.rename(image.with_suffix(".PNG"))
    elif fault == "empty file":
        label_map.write_bytes(b"")
    elif fault == "cut off":
        label_map.write_bytes(label_map.read_bytes()[:-30] if label_map.exists() else b"")
    else:
        (image if fault == "no image" else label_map).unlink(missing_ok=True)


def write_pairs(folder: Path) -> None:
    """Write two images and label maps for each of both splits."""
    for split in ("train", "val"):
        for kind in ("images", "annotations"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng([i, len(split)]).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"images/{split}/{i}.png")
            Image.fromarray(labels()).save(folder / f"annotations/{split}/{i}.png")


def segmentation(folder: Path) -> Config:
    """A narrow segmentor on crops of 32 x 32, trained for two iterations and then validated."""
    cfg = Config.fromfile(ROOT / "configs/segmentation/_base_/fpn_gcvit-nano.py")
    cfg.model.backbone.arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2))
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    cfg.model.decode_head.num_classes = len(CLASSES)
    cfg.model.pop("auxiliary_head")
    cfg.model.data_preprocessor.size = (32, 32)
    load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
    crop = dict(type="RandomCrop", crop_size=(32, 32))
    for split in ("train", "val"):
        dataset = dict(
            type="BaseSegDataset",
            _scope_="mmseg",
            data_root=str(folder),
            metainfo=dict(classes=CLASSES),
            img_suffix=".png",
            data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
            pipeline=[*load, *([crop] if split == "train" else []), dict(type="PackSegInputs")],
        )
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False, dataset=dataset)
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=2)
    cfg.merge_from_dict(dict(param_scheduler=[], work_dir=str(folder / "run"), log_level="ERROR", launcher="none"))
    cfg.experiment_name = cfg.visualizer.name = folder.name
    cfg.default_hooks.checkpoint = None
    return cfg


def check_segmentation(found: list[tuple[str, str]]) -> str:
    """As check, for a segmentor; the images themselves are intact."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder)
        for split, fault in found:
            break_label_map(folder, split, fault)
        cfg = segmentation(folder)
        if any(report.broken for report in check_data(cfg, 1, False)):
            with pytest.raises(apis.UsageError):
                apis.train(cfg)
            return "refused"
        train_and_predict(cfg, folder / "images/train")
        return "trained"


def test_intact_label_maps_are_trained_on():
    assert check_segmentation([]) == "trained"


@FAST
@given(st.lists(st.tuples(st.sampled_from(["train", "val"]), st.sampled_from(LABEL_FAULTS)), min_size=1, max_size=2))
def test_faults_in_label_maps(found: list):
    check_segmentation(found)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_each_fault_in_label_maps(split: str, fault: str):
    check_segmentation([(split, fault)])


FOLDER_FAULTS = ("no class", "empty class", "another class", "another file", "file outside", "no split")


def check_classification(found: list[tuple[str, str]]) -> str:
    """As check, for a classifier; all images are intact."""
    with tempfile.TemporaryDirectory() as name:
        tree = make_tree(Path(name) / "tree", train=4, val=2)
        for split, fault in found:
            first = tree / split / "blue"
            if fault == "no split":
                shutil.rmtree(tree / split, ignore_errors=True)
            elif fault == "another class":
                (tree / split / "cyan").mkdir(parents=True, exist_ok=True)
                Image.new("RGB", SIZE).save(tree / split / "cyan/0.png")
            elif fault == "no class":
                shutil.rmtree(first, ignore_errors=True)
            elif first.is_dir():
                for path in first.glob("*") if fault == "empty class" else ():
                    path.unlink()
                if fault != "empty class":
                    (first if fault == "another file" else first.parent).joinpath("notes.txt").write_text("no image")
        cfg = classification(tree, Path(name) / "run", workers=0)
        cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
        cfg.experiment_name = name
        if any(report.broken for report in check_data(cfg, 1, False)):
            with pytest.raises(apis.UsageError):
                apis.train(cfg)
            return "refused"
        train_and_predict(cfg, tree / "train")
        return "trained"


@FAST
@given(st.lists(st.tuples(st.sampled_from(["train", "val"]), st.sampled_from(FOLDER_FAULTS)), max_size=2))
def test_faults_in_class_folders(found: list):
    check_classification(found)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_each_fault_in_class_folders(split: str, fault: str):
    check_classification([(split, fault)])
