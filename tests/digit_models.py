"""Models of the demos' configs with random weights, and their checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import ROOT, randomise
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

CONFIGS = {
    "detection": ROOT / "configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py",
    "segmentation": ROOT / "configs/segmentation/gcvit-nano_fpn_digits-160x160.py",
    "classification": ROOT / "configs/classification/gcvit-nano_digits.py",
}
CLASSES = {"detection": list("0123456789"), "segmentation": ["background", *"0123456789"]}


def config(task: str) -> Config:
    """Load the config of a demo; its detector finds four objects in every image."""
    cfg = Config.fromfile(CONFIGS[task])
    if task == "detection":
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=4)
    if task == "classification":
        cfg.test_dataloader.dataset.pipeline[1].crop_pct = 0.8
    return cfg


def write_checkpoint(task: str, path: Path) -> Path:
    """Write a checkpoint with random weights."""
    torch.manual_seed(0)
    cfg = config(task)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    model = MODELS.build(cfg.model)
    model = randomise(model) if task == "classification" else model
    meta = dict(dataset_meta=dict(classes=CLASSES.get(task, CLASSES["detection"])))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path
