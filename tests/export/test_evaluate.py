"""Metrics of a file on the validation data, and the image files of a config's data, for all three tasks."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("mmcv._ext")
pytest.importorskip("mmseg")

from onnx_models import CLASSES, scene, write_model

from mmgcvit.errors import UsageError
from mmgcvit.export.commands import data_images
from mmgcvit.export.evaluate import evaluate
from mmgcvit.runtime import Resize

TASKS = ("classification", "segmentation", "detection")
SCENES = [((57, 101), (10, 20, 60, 40)), ((100, 64), (0, 0, 30, 64)), ((57, 101), (33, 5, 101, 57))]
SIDE = 32  # of the classifier's input


def write_classes(root: Path) -> dict:
    """A red, a green and a blue image, one of each class."""
    for channel, name in enumerate(CLASSES):
        image = np.zeros((41 + channel, 57, 3), np.uint8)
        image[..., channel] = 150
        (root / "val" / name).mkdir(parents=True)
        Image.fromarray(image).save(root / "val" / name / "a.png")
    pipeline = [dict(type="mmgcvit.LoadPillowImage"), dict(type="mmgcvit.TimmTransform", input_size=SIDE)]
    dataset = dict(
        type="mmgcvit.ClassificationDataset", data_root=str(root), split="val", classes=list(CLASSES), test_mode=True,
        pipeline=pipeline,
    )  # fmt: skip
    return dict(
        dataset=dataset, collate_fn=dict(type="default_collate"), evaluator=dict(type="mmgcvit.TopKAccuracy", topk=(1,))
    )


def write_label_maps(root: Path) -> dict:
    """Bright boxes of class 1."""
    for folder in ("images/val", "maps/val"):
        (root / folder).mkdir(parents=True)
    for i, (size, box) in enumerate(SCENES):
        image = scene(*size, box)
        Image.fromarray(image).save(root / f"images/val/{i}.png")
        Image.fromarray((image[..., 0] > 128).astype(np.uint8)).save(root / f"maps/val/{i}.png")
    return dict(
        dataset=dict(
            type="BaseSegDataset", data_root=str(root), img_suffix=".png", metainfo=dict(classes=CLASSES),
            data_prefix=dict(img_path="images/val", seg_map_path="maps/val"), test_mode=True,
            pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
        ),
        evaluator=dict(type="IoUMetric", iou_metrics=["mIoU"]),
    )  # fmt: skip


def write_boxes(root: Path) -> dict:
    """Bright boxes of class 1, the annotations of which are also masks."""
    (root / "val").mkdir(parents=True)
    images, annotations = [], []
    for i, ((height, width), (x1, y1, x2, y2)) in enumerate(SCENES):
        Image.fromarray(scene(height, width, (x1, y1, x2, y2))).save(root / f"val/{i}.png")
        images.append(dict(id=i + 1, file_name=f"{i}.png", height=height, width=width))
        polygon = [x1, y1, x2, y1, x2, y2, x1, y2]
        box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
        annotations.append(dict(id=i + 1, image_id=i + 1, category_id=2, bbox=box, area=area, iscrowd=0,
                                segmentation=[polygon]))  # fmt: skip
    content = dict(images=images, annotations=annotations)
    content["categories"] = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    (root / "val.json").write_text(json.dumps(content))
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True),
        dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape")),
    ]
    return dict(
        dataset=dict(
            type="CocoDataset", data_root=str(root), ann_file="val.json", data_prefix=dict(img="val/"), test_mode=True,
            metainfo=dict(classes=CLASSES), pipeline=pipeline,
        ),
        evaluator=dict(type="CocoMetric", ann_file=str(root / "val.json"), metric=["bbox", "segm"]),
    )  # fmt: skip


WRITERS = dict(zip(TASKS, (write_classes, write_label_maps, write_boxes), strict=True))
SCOPES = dict(zip(TASKS, ("mmengine", "mmseg", "mmdet"), strict=True))
METRICS = dict(zip(TASKS, ("accuracy/top1", "mIoU", "coco/segm_mAP"), strict=True))
WHOLE = dict(zip(TASKS, (100, 100, 1), strict=True))  # the metric if every prediction is right
IMAGES = {
    "classification": [f"val/{name}/a.png" for name in sorted(CLASSES)],
    "segmentation": [f"images/val/{i}.png" for i in range(3)],
    "detection": [f"val/{i}.png" for i in range(3)],
}


def config(task: str, root: Path, workers: int = 0, **changed) -> Config:
    parts = WRITERS[task](root)
    evaluator = parts.pop("evaluator")
    parts["dataset"].update(changed)
    loader = dict(batch_size=2, num_workers=workers, sampler=dict(type="DefaultSampler", shuffle=False), **parts)
    return Config(
        dict(default_scope=SCOPES[task], val_dataloader=loader, test_dataloader=loader, val_evaluator=evaluator)
    )


def wrong(data: dict) -> list:
    """Predictions of a model that is always wrong."""
    if "sample_idx" in data:
        return list(torch.eye(3)[(data["targets"] + 1) % 3])
    for sample in data["data_samples"]:
        size = sample.ori_shape
        sample.pred_sem_seg = PixelData(data=torch.full((1, *size), 2))
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([[0.0, 0, 5, 5]]), scores=torch.tensor([0.5]), labels=torch.tensor([1]),
            masks=torch.ones((1, *size), dtype=torch.bool),
        )  # fmt: skip
    return data["data_samples"]


def model(task: str, cfg: Config) -> SimpleNamespace:
    return SimpleNamespace(task=task, cfg=cfg, model=SimpleNamespace(test_step=wrong))


def exported(tmp_path: Path, task: str, batch: int | None = 2, side: int = SIDE, **changed) -> Path:
    if task == "classification":
        changed = dict(shape=(batch, side, side), resize=Resize("fixed", (side, side)), **changed)
    elif task == "detection":
        changed = dict(shape=(batch, 128, 128), masks="image", **changed)
    else:
        changed = dict(shape=(batch, None, None), **changed)
    return write_model(tmp_path / "model.onnx", task, **changed)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("task", TASKS)
def test_metrics(tmp_path: Path, task: str, batch: int | None):
    """Three images in batches of two, with a file of any batch size, and with one of a fixed batch size."""
    ours, file = evaluate(model(task, config(task, tmp_path / "data")), exported(tmp_path, task, batch))
    name = METRICS[task]
    assert ours.keys() == file.keys()
    assert file[name] == pytest.approx(WHOLE[task], abs=1e-3)
    assert ours[name] < WHOLE[task] / 2


def test_classifier_loads_the_files_itself(tmp_path: Path):
    """The size of its input need not be that of the pipeline."""
    cfg = config("classification", tmp_path / "data")
    _, file = evaluate(model("classification", cfg), exported(tmp_path, "classification", side=SIDE - 9))
    assert file["accuracy/top1"] == 100


@pytest.mark.parametrize("wrapped", [False, True])
def test_classifier_without_files(tmp_path: Path, wrapped: bool):
    """Images of tar files, and data sets in wrappers."""
    cfg = config("classification", tmp_path / "data")
    if wrapped:
        cfg.val_dataloader.dataset = dict(type="RepeatDataset", times=1, dataset=cfg.val_dataloader.dataset)
    else:
        with tarfile.open(tmp_path / "data/val.tar", "w") as tar:
            tar.add(tmp_path / "data/val", "val")
        cfg.val_dataloader.dataset.update(reader="tar", split="val.tar")
    _, file = evaluate(model("classification", cfg), exported(tmp_path, "classification"))
    assert file["accuracy/top1"] == 100


@pytest.mark.parametrize("task", TASKS)
def test_missing_data(tmp_path: Path, task: str):
    cfg = config(task, tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"^--verify val: .*data.*$") as error:
        evaluate(model(task, cfg), exported(tmp_path, task))
    assert "\n" not in str(error.value)
    assert list(data_images(cfg)) == []


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("task", TASKS)
def test_corrupt_image(tmp_path: Path, task: str, workers: int):
    cfg = config(task, tmp_path / "data", workers)
    path = tmp_path / "data" / IMAGES[task][1]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match=rf"^--verify val: .*{path.name}.*cannot be decoded.*$") as error:
        evaluate(model(task, cfg), exported(tmp_path, task))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("task", TASKS)
def test_unsuitable_file(tmp_path: Path, task: str):
    """The error is that of the runtime, and none about metrics."""
    cfg = config(task, tmp_path / "data")
    file = exported(tmp_path, task, classes=("cat",), palette=((1, 2, 3),))
    with pytest.raises(UsageError, match=r"^--verify val: .*model\.onnx: predicts .*names"):
        evaluate(model(task, cfg), file)


@pytest.mark.parametrize("task", TASKS[1:])
def test_samples_without_the_name_of_their_file(tmp_path: Path, task: str):
    cfg = config(task, tmp_path / "data")
    cfg.val_dataloader.dataset.pipeline[-1].meta_keys = ("img_id", "ori_shape", "img_shape")
    with pytest.raises(
        UsageError, match=r"^--verify val: .* no img_path; add 'img_path' to meta_keys of PackDetInputs"
    ):
        evaluate(model(task, cfg), exported(tmp_path, task))


def test_metrics_that_cannot_be_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mmgcvit.tasks.classification.metric import TopKAccuracy

    def fail(self, results):
        raise TypeError("no such metric")

    monkeypatch.setattr(TopKAccuracy, "compute_metrics", fail)
    cfg = config("classification", tmp_path / "data")
    words = r"^--verify val: the metrics of val_evaluator cannot be computed: no such metric \(TypeError\)$"
    with pytest.raises(UsageError, match=words):
        evaluate(model("classification", cfg), exported(tmp_path, "classification"))


@pytest.mark.parametrize("task", TASKS)
def test_data_images(tmp_path: Path, task: str):
    cfg = config(task, tmp_path / "data")
    found = [path.relative_to(tmp_path / "data").as_posix() for path in data_images(cfg)]
    assert sorted(found) == IMAGES[task]
    cfg.test_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=cfg.test_dataloader.dataset)
    assert len(list(data_images(cfg))) == 3
