"""Drawings of truth and prediction: one look, and one colour per class."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmgcvit.runtime.drawing import DISTINCT, default_palette
from mmgcvit.tasks import TASKS
from mmgcvit.tasks.visualizer import palette_of

GREY = np.full((100, 120, 3), 100, np.uint8)
ZOOM = round(512 / 120)


def visualizer(**meta: object):
    found = VISUALIZERS.build(dict(type="mmgcvit.PairVisualizer", name=f"test {meta}"))
    found.dataset_meta = meta
    return found


def test_boxes_and_masks_of_truth_and_prediction(tmp_path: Path):
    mask = np.zeros((2, 100, 120), np.uint8)
    mask[0, 30:40, 30:40] = 1
    boxes = torch.tensor([[20.0, 20, 80, 80], [5, 5, 15, 15]])
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([1, 0]), masks=BitmapMasks(mask, 100, 120))
    scores = torch.tensor([0.9, 0.1])
    found = InstanceData(bboxes=boxes, labels=torch.tensor([1, 0]), scores=scores, masks=torch.tensor(mask).bool())
    sample = DetDataSample(gt_instances=truth, pred_instances=found)
    palette = [(250, 0, 0), (0, 0, 250)]
    file = tmp_path / "drawn.png"
    visualizer(classes=("cat", "dog"), palette=palette).add_datasample("a", GREY, sample, out_file=str(file))
    drawn = cv2.imread(str(file))[..., ::-1]
    height, width = ZOOM * 100, ZOOM * 120
    assert drawn.shape == (height, 2 * width + 8, 3)
    left, right = drawn[:, :width], drawn[:, width + 8 :]
    for half in (left, right):
        assert half[ZOOM * 50, ZOOM * 20].tolist() == [0, 0, 250]  # line of the box
        assert half[ZOOM * 35, ZOOM * 35].tolist() == [55, 55, 167]  # mask
    assert left[ZOOM * 10, ZOOM * 5].tolist() == [250, 0, 0]
    assert right[ZOOM * 10, ZOOM * 5].tolist() == [100, 100, 100]  # score below the threshold


def test_label_maps_with_legend(tmp_path: Path):
    labels = np.zeros((1, 100, 120), np.int64)
    labels[:, :, 60:] = 1
    truth = labels.copy()
    truth[:, :50] = 255  # ignored
    sample = SegDataSample(
        gt_sem_seg=PixelData(data=torch.tensor(truth)), pred_sem_seg=PixelData(data=torch.tensor(labels))
    )
    file = tmp_path / "drawn.png"
    visualizer(classes=("background", "dog")).add_datasample("a", GREY, sample, out_file=str(file))
    drawn = cv2.imread(str(file))[..., ::-1].astype(int)
    width = ZOOM * 120
    colour = (np.array(DISTINCT[0]) + 100) // 2
    for half, upper in ((drawn[:, :width], 100), (drawn[:, width + 8 :], colour)):
        assert (half[ZOOM * 20, ZOOM * 90] == upper).all()
        assert (half[ZOOM * 70, ZOOM * 90] == colour).all()
        assert half[ZOOM * 70, ZOOM * 10].tolist() == [50, 50, 50]
        assert (half[ZOOM * 100 :] == DISTINCT[0]).all(-1).sum() > 100  # legend


def test_images_without_truth(tmp_path: Path):
    instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long(), scores=torch.zeros(0))
    sample = DetDataSample(gt_instances=InstanceData(), pred_instances=instances)
    file = tmp_path / "drawn.png"
    visualizer(classes=("cat",)).add_datasample("a", GREY, sample, out_file=str(file))
    assert cv2.imread(str(file)).shape == (ZOOM * 100, ZOOM * 120, 3)


def test_default_colours_are_distinct_and_definite():
    names = [f"class {i}" for i in range(150)]
    for first in ("thing", "background"):
        colours = default_palette([first, *names[1:21]])
        assert colours == default_palette([first, *names[1:21]])
        assert (colours[0] == (0, 0, 0)) == (first == "background")
        values = np.array(colours[:20]).astype(float)
        distances = np.abs(values[:, None] - values).sum(-1) + 1e9 * np.eye(20)
        assert distances.min() > 60
    assert len(set(default_palette(names))) > 130
    assert default_palette(names)[:20] == default_palette(names[:20])
    assert default_palette([]) == ()


def test_colours_of_other_classes_are_not_used():
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import BaseSegDataset

    coco = CocoDataset(lazy_init=True, metainfo=dict(classes=("cat", "dog"))).metainfo
    assert palette_of(coco, coco["classes"]) == DISTINCT[:2]
    assert palette_of(CocoDataset.METAINFO, CocoDataset.METAINFO["classes"])[0] == (220, 20, 60)
    automatic = BaseSegDataset(lazy_init=True, metainfo=dict(classes=("cat", "dog")), test_mode=True).metainfo
    assert automatic["palette"]
    assert palette_of(automatic, automatic["classes"]) == DISTINCT[:2]
    own = BaseSegDataset(lazy_init=True, metainfo=dict(classes=("cat", "dog"), palette=[[1, 2, 3], [4, 5, 6]])).metainfo
    assert palette_of(own, own["classes"]) == ((1, 2, 3), (4, 5, 6))
    assert palette_of(dict(palette="random"), ("a", "b")) == palette_of({}, ("a", "b")) == DISTINCT[:2]


@pytest.mark.parametrize(
    ("name", "kind"), [("detection", "DetLocalVisualizer"), ("segmentation", "SegLocalVisualizer")]
)
def test_show_dir_uses_it(name: str, kind: str):
    task = next(task for task in TASKS if task.name == name)
    cfg = Config(dict(model={}, visualizer=dict(type=kind, name="visualizer", alpha=0.5, vis_backends=[])))
    hook = Config(dict(type="x"))
    task.show_in(cfg, hook, "folder")
    assert cfg.visualizer.type == "mmgcvit.PairVisualizer"
    assert cfg.visualizer.name == "visualizer"
    assert "alpha" not in cfg.visualizer
    other = Config(dict(model={}, visualizer=dict(type="Visualizer", name="visualizer", vis_backends=[])))
    task.show_in(other, hook, "folder")
    assert other.visualizer.type == "Visualizer"
