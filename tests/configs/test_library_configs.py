"""The configs for mmpretrain, mmpose and mmrotate train a step on made-up data of their format, and predict."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

pytest.importorskip("mmdet")

from mmengine.config import Config
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from test_configs import build_untrained, train_one_step

FOLDER = ROOT / "configs" / "libraries"
SIZES = ((75, 101), (64, 97))  # height, width


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two images."""
    (tmp_path / "images").mkdir()
    random = np.random.RandomState(0)
    for number, (height, width) in enumerate(SIZES):
        pixels = random.randint(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
    return tmp_path


def load(library: str, name: str) -> Config:
    """Load a config, if its library is installed."""
    pytest.importorskip(library)
    for part in ("models", "datasets"):
        import_module(f"{library}.{part}")
    cfg = Config.fromfile(FOLDER / name)
    assert cfg.default_scope == library
    if "data_preprocessor" in cfg:  # as mmengine's runner does
        cfg.model.setdefault("data_preprocessor", cfg.data_preprocessor)
    init_default_scope(library)
    return cfg


def images_of(cfg: Config, part: str, **changes) -> list[dict]:
    """Read the images of a data set of the config through its pipeline."""
    dataset = copy.deepcopy(cfg[f"{part}_dataloader"].dataset)
    dataset.update(changes)
    built = DATASETS.build(dataset)
    assert len(built) == 2
    return [built[0], built[1]]


def predict(model: torch.nn.Module, images: list[dict]) -> list:
    """Predict as in a test."""
    with torch.no_grad():
        return model.eval().test_step(pseudo_collate(images))


def test_classifier_of_mmpretrain(images: Path):
    cfg = load("mmpretrain", "gcvit-tiny_mmpretrain_16xb64_in1k.py")
    (images / "list.txt").write_text("0.png 3\n1.png 999\n")
    files = dict(data_root="", ann_file=str(images / "list.txt"), data_prefix=str(images / "images"), split="")
    model = build_untrained(cfg)
    losses = train_one_step(cfg, model, default_collate_of(images_of(cfg, "train", **files)))
    assert losses.keys() == {"loss"}
    assert float(losses["loss"]) == pytest.approx(np.log(1000), rel=0.1)
    found = predict(model, images_of(cfg, "val", **files))
    for result, label in zip(found, (3, 999), strict=True):
        assert result.gt_label.tolist() == [label]
        assert result.pred_score.shape == (1000,)
        assert float(result.pred_score.sum()) == pytest.approx(1, rel=1e-4)


def default_collate_of(images: list[dict]) -> dict:
    """A batch as mmpretrain makes it: one tensor of images, a list of samples."""
    return dict(
        inputs=default_collate([image["inputs"] for image in images]),
        data_samples=[image["data_samples"] for image in images],
    )


def test_keypoints_of_mmpose(images: Path):
    cfg = load("mmpose", "td-hm_gcvit-tiny_8xb32-210e_coco-256x192.py")
    points = [[20 + 3 * i, 10 + 2 * i, 2] for i in range(17)]
    flat = [value for point in points for value in point]
    person = dict(category_id=1, iscrowd=0, bbox=[10, 5, 70, 50], area=3500, num_keypoints=17)
    content = dict(
        images=[dict(id=i, file_name=f"{i}.png", height=h, width=w) for i, (h, w) in enumerate(SIZES)],
        annotations=[dict(person, id=i + 1, image_id=i, keypoints=flat) for i in range(2)],
        categories=[dict(id=1, name="person")],
    )
    (images / "persons.json").write_text(json.dumps(content))
    files = dict(data_root="", ann_file=str(images / "persons.json"), data_prefix=dict(img=str(images / "images")))
    model = build_untrained(cfg)
    losses = train_one_step(cfg, model, pseudo_collate(images_of(cfg, "train", **files)))
    assert {"loss", "loss_kpt", "acc_pose"} == losses.keys()
    read = images_of(cfg, "val", bbox_file=None, **files)
    assert read[0]["inputs"].shape == (3, 256, 192)
    found = predict(model, read)
    for result in found:
        np.testing.assert_allclose(result.gt_instances.keypoints[0], np.array(points)[:, :2])
        assert result.pred_instances.keypoints.shape == (1, 17, 2)
        assert result.pred_instances.keypoint_scores.shape == (1, 17)


def test_rotated_boxes_of_mmrotate(images: Path):
    cfg = load("mmrotate", "oriented-rcnn-le90_gcvit-tiny_fpn_1x_dota.py")
    (images / "labels").mkdir()
    for number in range(2):
        lines = ["10 20 50 10 55 30 15 40 plane 0", "60 20 90 20 90 50 60 50 ship 0"]
        (images / f"labels/{number}.txt").write_text("\n".join(lines))
    files = dict(data_root=str(images), ann_file="labels/", data_prefix=dict(img_path="images/"))
    for split in ("train", "val"):
        for transform in cfg[f"{split}_dataloader"].dataset.pipeline:
            if transform.type == "mmdet.Resize":
                transform.scale = (128, 128)
    model = build_untrained(cfg)
    losses = train_one_step(cfg, model, pseudo_collate(images_of(cfg, "train", **files)))
    assert {"loss", "loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "acc"} == losses.keys()
    model.roi_head.test_cfg.score_thr = 0.0
    found = predict(model, images_of(cfg, "val", **files))
    for result in found:
        instances = result.pred_instances
        assert len(instances) > 0
        assert instances.bboxes.shape[1] == 5
        assert instances.scores.diff().max() <= 0
