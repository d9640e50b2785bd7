"""Test sets without annotations or label maps: predictions are written, or an error says how to write them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmcv._ext")

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmgcvit import apis
from mmgcvit.apis import UsageError, load_config
from mmgcvit.datasets.check import check_data

sys.path.append(str(Path(__file__).resolve().parents[1] / "configs"))
from test_configs import copy_template


def prepare(folder: Path, task: str) -> Config:
    """A template's config with a test set of two images without annotations, and an untrained model's checkpoint."""
    library = dict(detection="mmdet", segmentation="mmseg")[task]
    pytest.importorskip(library)
    base = dict(detection="_base_/retinanet_gcvit-nano_fpn.py", segmentation="_base_/fpn_gcvit-nano.py")[task]
    path = copy_template(folder, base, task, **{"'data/my_data/'": repr(str(folder))})
    cfg = load_config(path, str(folder / "work"))
    for i in range(2):
        file = folder / ("images" if task == "detection" else "images/val") / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), np.random.default_rng(i).integers(0, 255, (60, 80, 3), np.uint8))
    images = [dict(id=i + 1, file_name=f"{i}.jpg", width=80, height=60) for i in range(2)]
    categories = [dict(id=1, name="cat"), dict(id=2, name="dog")]
    (folder / "val.json").write_text(json.dumps(dict(images=images, categories=categories)))
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    init_default_scope(library)
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / "model.pth")
    for key in (
        "train_dataloader",
        "val_dataloader",
        "val_evaluator",
        "val_cfg",
        "train_cfg",
        "optim_wrapper",
        "param_scheduler",
    ):
        cfg.pop(key, None)
    return cfg


def test_detection(tmp_path: Path):
    cfg, checkpoint = prepare(tmp_path, "detection"), str(tmp_path / "model.pth")
    cfg.model.test_cfg.score_thr = 0.0
    says = r"val\.json: has no annotations, so there is nothing to evaluate.*`mmgcvit predict`.*format_only=True"
    with pytest.raises(UsageError, match=says):
        apis.test(cfg, checkpoint)
    (report,) = check_data(cfg, progress=False)
    assert [problem.kind for problem in report.problems if problem.breaks] == ["metric"]
    cfg.test_evaluator.format_only = True
    with pytest.raises(UsageError, match=r"CocoMetric with format_only=True: outfile_prefix=None; allowed: a path"):
        apis.test(cfg, checkpoint)
    cfg.test_evaluator.outfile_prefix = str(tmp_path / "results")
    apis.test(cfg, checkpoint)
    results = json.loads((tmp_path / "results.bbox.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2}
    assert not check_data(cfg, progress=False)[0].broken


def test_segmentation(tmp_path: Path):
    cfg, checkpoint = prepare(tmp_path, "segmentation"), str(tmp_path / "model.pth")
    dataset = cfg.test_dataloader.dataset
    for prefix in (dict(dataset.data_prefix), dict(img_path="images/val")):
        dataset.data_prefix = prefix
        with pytest.raises(
            UsageError, match=r"no label maps: to predict on images without label maps, use `mmgcvit predict"
        ):
            apis.test(cfg, checkpoint)
        (report,) = check_data(cfg, progress=False)
        assert [(problem.kind, problem.breaks) for problem in report.problems] == [("label maps", True)]
    cfg.test_evaluator.update(format_only=True)
    with pytest.raises(UsageError, match=r"format_only=True: output_dir=None; allowed: a folder"):
        apis.test(cfg, checkpoint)
    cfg.test_evaluator.update(output_dir=str(tmp_path / "maps"))
    with pytest.raises(UsageError, match=r"the pipeline has LoadAnnotations, but there are no label maps"):
        apis.test(cfg, checkpoint)
    dataset.pipeline = [step for step in dataset.pipeline if step.type != "LoadAnnotations"]
    apis.test(cfg, checkpoint)
    assert [cv2.imread(str(tmp_path / f"maps/{i}.png"), -1).shape for i in range(2)] == [(60, 80)] * 2
    (report,) = check_data(cfg, progress=False)
    assert (report.images, report.problems) == (2, [])
    (tmp_path / "images/val/sub").mkdir()
    (tmp_path / "images/val/0.jpg").rename(tmp_path / "images/val/sub/1.jpg")
    with pytest.raises(UsageError, match=r"several images to the same file: 1; `mmgcvit predict` keeps the folders"):
        apis.test(cfg, checkpoint)


def test_segmentation_with_tta(tmp_path: Path):
    cfg, checkpoint = prepare(tmp_path, "segmentation"), str(tmp_path / "model.pth")
    cfg.test_dataloader.dataset.data_prefix = dict(img_path="images/val")
    cfg.test_evaluator.update(format_only=True, output_dir=str(tmp_path / "maps"))
    for pipeline in (cfg.test_dataloader.dataset.pipeline, cfg.tta_pipeline[-1].transforms):
        pipeline[:] = [step for step in pipeline if "LoadAnnotations" not in str(step)]
    apis.test(cfg, checkpoint, tta=True)
    assert cv2.imread(str(tmp_path / "maps/1.png"), -1).shape == (60, 80)
