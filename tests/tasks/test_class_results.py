"""Results of single classes: their names, and the tables that mmdet logs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_masks

from mmgcvit.apis.runs import _watches_a_class
from mmgcvit.engine.evaluation import tell_classes_apart
from mmgcvit.engine.progress import Output, _results

pytest.importorskip("mmdet")

from mmgcvit.tasks.detection.consistency import detection_result_names

SIZE = 40


def coco_file(path: Path) -> Path:
    """Two images with a disc and none of the other class."""
    boxes = [[4, 4, 20, 20], [10, 10, 16, 16]]
    annotations = [
        dict(id=i + 1, image_id=i, category_id=1, bbox=box, area=box[2] * box[3], iscrowd=0,
             segmentation=[[box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3], box[0],
                            box[1] + box[3]]])
        for i, box in enumerate(boxes)
    ]  # fmt: skip
    images = [dict(id=i, width=SIZE, height=SIZE, file_name=f"{i}.png") for i in range(2)]
    categories = [dict(id=1, name="disc"), dict(id=2, name="ring")]
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return path


def prediction(i: int, box: list[float]) -> dict:
    """The right box, and a mask of half of it."""
    x, y, w, h = map(int, box)
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[y : y + h // 2, x : x + w] = 1
    found = dict(
        bboxes=torch.tensor([[x, y, x + w, y + h]]).float(), scores=torch.tensor([0.9]), labels=torch.tensor([0])
    )
    found["masks"] = [coco_masks.encode(mask)]
    return dict(img_id=i, ori_shape=(SIZE, SIZE), pred_instances=found)


def evaluated(metric: dict) -> dict[str, float]:
    init_default_scope("mmdet")
    evaluator = Evaluator([metric])
    evaluator.dataset_meta = dict(classes=("disc", "ring"))
    samples = [prediction(0, [4, 4, 20, 20]), prediction(1, [10, 10, 16, 16])]
    evaluator.process(data_samples=samples, data_batch=None)
    return evaluator.evaluate(2)


@pytest.mark.parametrize("scope", ["", "mmdet."])
def test_boxes_and_masks_of_a_class_have_names_of_their_own(tmp_path: Path, scope: str):
    metric = dict(
        type=f"{scope}CocoMetric", ann_file=str(coco_file(tmp_path / "a.json")), metric=["bbox", "segm"], classwise=True
    )
    before = evaluated(dict(metric))
    tell_classes_apart(both := [metric])
    found = evaluated(both[0])
    assert found["coco/bbox_disc_precision"] == 1
    assert found["coco/segm_disc_precision"] == before["coco/disc_precision"] < 0.2
    assert not any(name in found for name in ("coco/disc_precision", "coco/ring_precision"))
    assert {name: value for name, value in before.items() if "mAP" in name} == {
        name: value for name, value in found.items() if "mAP" in name
    }


@pytest.mark.parametrize("kind", ["CocoMetric", "mmgcvit.CocoMetric"])
@pytest.mark.parametrize("classwise", [False, True])
@pytest.mark.parametrize("metric", ["bbox", ["bbox", "segm"]])
def test_names_of_the_results_are_known_before_a_run(tmp_path: Path, kind: str, classwise: bool, metric: str | list):
    config = dict(type=kind, ann_file=str(coco_file(tmp_path / "a.json")), metric=metric, classwise=classwise)
    assert detection_result_names(config, ("disc", "ring")) == set(evaluated(dict(config)))
    assert (detection_result_names(config, None) is None) == classwise


def test_other_metrics_and_names_that_a_hook_looks_at_are_left():
    for metric in (
        dict(type="CocoMetric", metric="bbox", classwise=True),
        dict(type="CocoMetric", metric=["bbox", "segm"]),
        dict(type="LVISMetric", metric=["bbox", "segm"], classwise=True),
        dict(type="IoUMetric", iou_metrics=["mIoU"]),
    ):
        tell_classes_apart(changed := dict(metric))
        assert changed == metric
    tell_classes_apart(None)
    hooks = dict(checkpoint=dict(type="CheckpointHook", save_best="coco/disc_precision"), logger=None)
    assert _watches_a_class(Config(dict(default_hooks=hooks)))
    hooks["checkpoint"]["save_best"] = "coco/bbox_mAP"
    assert not _watches_a_class(Config(dict(default_hooks=hooks)))
    stop = [dict(type="EarlyStoppingHook", monitor="coco/disc_precision")]
    assert _watches_a_class(Config(dict(default_hooks=hooks, custom_hooks=stop)))
    hooks["checkpoint"]["save_best"] = ["coco/bbox_mAP", "coco/disc_precision"]
    assert _watches_a_class(Config(dict(default_hooks=hooks)))
    schedule = dict(type="ReduceOnPlateauLR", monitor="coco/disc_precision")
    assert _watches_a_class(Config(dict(param_scheduler=schedule)))
    assert _watches_a_class(Config(dict(param_scheduler=[dict(type="LinearLR"), schedule])))
    assert not _watches_a_class(Config(dict(param_scheduler=dict(type="LinearLR"))))


def test_tables_have_a_title_and_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture):
    import io

    stream = io.StringIO()
    output = Output(stream)
    table = "\n+----------+-------+-------+\n| category | mAP   | mAP_s |\n+----------+-------+-------+\n"
    table += "| disc     | 0.505 | nan   |\n| nan      | 0.505 | 0.1   |\n+----------+-------+-------+"
    for kind in ("bbox", "segm"):
        output.write(f"11/28 12:38:01 - mmengine - INFO - Evaluating {kind}...\n")
        output.write(f"11/28 12:38:01 - mmengine - INFO - {table}\n")
    shown = stream.getvalue()
    assert shown.startswith("\nAP of each class: boxes\n+----------+")
    assert shown.count("\nAP of each class: masks\n") == 1
    assert shown.count("| disc     | 0.505 |  -    |") == 2
    assert shown.count("| nan      | 0.505 | 0.1   |") == 2  # a class with this name
    assert shown.count("(-: no objects)") == 2


def test_values_have_no_noise_of_float32():
    values = {"mIoU": np.float32(83.33), "aAcc": np.float64(1 / 3), "n": 3, "unknown": -1, "none": float("nan")}
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=("cat",))))
    found = _results(loader, {**values, "IoU.cat": 5.0})  # those of classes are in a table
    assert found == [("mIoU", "83.3300"), ("aAcc", "0.3333"), ("n", "3")]
