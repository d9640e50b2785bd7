"""The panoptic configs train on a made-up data set and predict; the narrow one runs through train, test and predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from panoptic_fixtures import METAINFO, SIZES, dataset_of, write_panoptic
from PIL import Image

pytest.importorskip("mmdet")

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from test_configs import PANOPTIC, build_untrained, load, train_one_step

from mmgcvit import apis
from mmgcvit.app import actions
from mmgcvit.app.checkpoint import CheckpointModel
from mmgcvit.datasets.pipelines import use_checked_loading
from mmgcvit.errors import ExportError, UsageError
from mmgcvit.export.exporter import export
from mmgcvit.report.make import make_report
from mmgcvit.tasks.panoptic.annotations import check_png, read_panoptic

CLASSES = dict(num_things_classes=2, num_stuff_classes=2)


def adapt(cfg: Config) -> Config:
    """Give the heads of a config the classes of the made-up data."""
    model = cfg.model
    model.panoptic_fusion_head.update(CLASSES)
    if "semantic_head" in model:
        model.semantic_head.update(CLASSES)
        model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = 2
        model.test_cfg.panoptic.stuff_area_limit = 64
    else:
        model.panoptic_head.update(CLASSES)
        model.panoptic_head.loss_cls.class_weight = [1.0] * 4 + [0.1]
    return cfg


@pytest.mark.parametrize("name", PANOPTIC)
def test_a_step_on_made_up_data(tmp_path: Path, name: str):
    write_panoptic(tmp_path)
    cfg = adapt(load(name))
    for part in cfg.model.data_preprocessor.get("batch_augments") or ():
        part.size = (112, 128)
    model = build_untrained(cfg)
    dataset = dataset_of(tmp_path)
    use_checked_loading(dataset)
    built = DATASETS.build(dataset)
    losses = train_one_step(cfg, model, pseudo_collate([built[0], built[1]]))
    wanted = {"loss_seg", "loss_mask", "loss_cls"} if "fpn" in name else {"loss_mask", "loss_dice", "d8.loss_cls"}
    assert wanted <= losses.keys()
    model.eval()
    with torch.no_grad():
        results = model.test_step(pseudo_collate([built[0], built[1]]))
    for result, size in zip(results, SIZES, strict=True):
        found = result.pred_panoptic_seg.sem_seg
        assert tuple(found.shape) == (1, *size)
        assert set((found % 1000).unique().tolist()) <= set(range(5))


@pytest.mark.parametrize("name", [name for name in PANOPTIC if "digits" not in name])
def test_heads_and_metrics_are_those_of_coco(name: str):
    cfg = load(name)
    metrics = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    assert metrics[0].type == "mmgcvit.PanopticMetric"
    assert Path(metrics[0].ann_file) == Path(cfg.data_root, cfg.val_dataloader.dataset.ann_file)
    assert Path(metrics[0].seg_prefix) == Path(cfg.data_root, cfg.val_dataloader.dataset.data_prefix.seg)
    assert cfg.test_evaluator == cfg.val_evaluator
    head = cfg.model.panoptic_fusion_head
    assert (head.num_things_classes, head.num_stuff_classes) == (80, 53)


def narrow(folder: Path) -> Config:
    """Panoptic FPN with the narrow Mask R-CNN of the demo, on the made-up data."""
    cfg = adapt(load("detection/panoptic-fpn_gcvit-tiny_fpn_1x_coco.py"))
    small = load("detection/_base_/mask-rcnn_gcvit-nano_fpn.py").model
    for part in ("backbone", "neck", "rpn_head", "roi_head", "train_cfg"):
        cfg.model[part] = small[part]
    cfg.model.roi_head.bbox_head.num_classes = cfg.model.roi_head.mask_head.num_classes = 2
    cfg.model.semantic_head.update(in_channels=64, inner_channels=32)
    cfg.model.test_cfg.rpn = small.test_cfg.rpn
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    cfg.work_dir = str(folder / "run")
    cfg.load_from, cfg.launcher = None, "none"
    loader = dict(batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False))
    cfg.train_dataloader = dict(loader, dataset=dataset_of(folder))
    cfg.val_dataloader = dict(loader, batch_size=1, dataset=dataset_of(folder, test_mode=True))
    cfg.test_dataloader = cfg.val_dataloader
    cfg.val_evaluator = dict(type="mmgcvit.PanopticMetric", ann_file=str(folder / "panoptic.json"),
                             seg_prefix=str(folder / "panoptic"))  # fmt: skip
    cfg.test_evaluator = cfg.val_evaluator
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=2, val_interval=2)
    cfg.param_scheduler = []
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=2)
    cfg.visualizer.name = str(folder)  # mmengine's current visualizer is that whose name is new
    return cfg


def test_train_test_and_predict(tmp_path: Path):
    write_panoptic(tmp_path)
    cfg = narrow(tmp_path)
    apis.train(cfg)
    checkpoint = str(tmp_path / "run/iter_2.pth")
    metrics = apis.test(cfg, checkpoint, show_dir=str(tmp_path / "shown"))
    assert len([path for path in (tmp_path / "shown").rglob("*") if path.suffix in (".jpg", ".png")]) == 2
    assert {"coco_panoptic/PQ", "coco_panoptic/PQ_th", "coco_panoptic/PQ_st"} <= metrics.keys()
    assert 0 <= metrics["coco_panoptic/PQ"] <= 100

    inputs = [str(tmp_path / "images")]
    summary = apis.predict(cfg, checkpoint, inputs, str(tmp_path / "out"), device="cpu", batch_size=2)
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert (summary.images, summary.unit) == (2, "segments")
    assert summary.objects == sum(len(entry["segments_info"]) for entry in content["annotations"]) > 0
    assert [(c["name"], c["isthing"]) for c in content["categories"]] == [
        ("ball", 1), ("box", 1), ("sky", 0), ("grass", 0)]  # fmt: skip
    assert {Image.open(tmp_path / "out/vis" / f"{i}.jpg").mode for i in (1, 2)} == {"RGB"}

    # What was written is a panoptic data set without faults.
    written = dataset_of(tmp_path, ann_file=str(tmp_path / "out/predictions.json"))
    written["data_prefix"]["seg"] = str(tmp_path / "out/panoptic")
    found = read_panoptic(written)
    assert not [problem for problem in found.problems if problem.breaks]
    assert not [problem for image in found.images for problem in check_png(image)]
    assert found.objects == summary.objects

    for option in (dict(tile=64), dict(tta=True)):
        with pytest.raises(UsageError, match=r"omit it|segments of several views cannot be merged"):
            apis.predict(cfg, checkpoint, inputs, str(tmp_path / "other"), device="cpu", **option)
    with pytest.raises(
        ExportError, match=r"'PanopticFPN': a panoptic segmentor .* cannot be exported, .*; allowed: mod"
    ):
        export(cfg, checkpoint, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()

    # The page: the same segments in drawing, table and files.
    model = CheckpointModel(cfg, checkpoint, "cpu")
    assert (model.task, model.tile, model.has_tta) == ("panoptic segmentation", None, False)
    assert {"local", "global", "features"} == model.methods.keys()
    result = actions.predict(model, tmp_path / "images/1.jpg")
    header, rows = actions.table(result, 0.3)
    assert header == ["class", "share (%)", "pixels", "segments"]
    labels, segments = result.prediction.labels, result.prediction.segments
    assert {row[0]: (int(row[2]), int(row[3])) for row in rows} == {
        METAINFO["classes"][i]: ((labels == i).sum(), len(np.unique(segments[labels == i])))
        for i in np.unique(labels[labels < 4])
    }
    files = {Path(path).name: Path(path) for path in actions.write_results(model, result, tmp_path)}
    assert files.keys() == {"1.png", "predictions.json"}
    written, (first, _) = json.loads(files["predictions.json"].read_text()), content["annotations"]
    assert [(c["id"], c["isthing"]) for c in written["categories"]] == [(1, 1), (2, 1), (3, 0), (4, 0)]
    assert [s["area"] for s in written["annotations"][0]["segments_info"]] == [
        s["area"] for s in first["segments_info"]
    ]
    assert np.array_equal(
        np.asarray(Image.open(files["1.png"])), np.asarray(Image.open(tmp_path / "out/panoptic/1.png"))
    )
    drawn = actions.drawing(model, result, 0.3)
    assert drawn.width > 101
    assert actions.summary(result, 0.3).startswith("101 x 75 pixels")
    assert actions.explain(model, result, 20, 20, "local").size

    # The report: PQ of each class, things and stuff apart, as the metric computes them.
    page = make_report(tmp_path / "run", device="cpu").read_text()
    assert f"<strong>{metrics['coco_panoptic/PQ']:.4g}</strong>coco_panoptic/PQ<" in page
    for kind, suffix in (("things", "_th"), ("stuff", "_st")):
        means = [f"{name} {metrics[f'coco_panoptic/{name}{suffix}']:.2f} %" for name in ("PQ", "SQ", "RQ")]
        assert f"Panoptic quality of {kind}. 'none'".replace("'", "&#39;") in page
        assert f"Mean: {', '.join(means)}." in page
    for number in range(2):
        for part in range(3):
            assert (tmp_path / f"run/report/image_{number}_{part}.jpg").is_file()


def test_drawing_has_borders_and_names():
    from mmgcvit.runtime.drawing import DISTINCT, draw
    from mmgcvit.runtime.predictions import Panoptic

    labels = np.full((530, 601), 4, np.int32)
    labels[100:300, 50:400] = 0
    segments = np.where(labels < 4, 1, 0)
    segments[:, 200:][labels[:, 200:] < 4] = 2
    image = np.full((530, 601, 3), 100, np.uint8)
    drawn = np.asarray(draw(image, Panoptic("a", 530, 601, METAINFO["classes"], labels, segments), DISTINCT[:4]))
    assert drawn.shape[1] == 601
    assert (drawn[200, 199] == 255).all()  # between the two objects
    assert np.array_equal(drawn[200, 100], (100 + np.array(DISTINCT[0])) // 2)
    assert (drawn[50, 50] == 100).all()
