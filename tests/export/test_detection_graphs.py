"""Detectors as graphs: the same predictions as mmdet's, in torch, ONNX Runtime, torch.export files and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmcv._ext")
pytest.importorskip("mmdet")

from detectors import DENSE, SIZES, assert_same, build, config, dynamic, images, reference, split
from torch import Tensor

from mmgcvit.errors import ExportError
from mmgcvit.export.detection import detection_graph
from mmgcvit.export.graph import ExportGraph

TWO_STAGE = ("faster-rcnn", "mask-rcnn", "cascade-mask-rcnn")
ALL = (*TWO_STAGE, "retinanet", *DENSE, "DINO")
# The neck of RTMDet takes multiples of 32 only, as the preprocessor of the nano configs produces them.


@cache
def graph(name: str) -> ExportGraph:
    return detection_graph(build(config(name))).eval()


@torch.no_grad()
def run(module: Any, batch: Tensor) -> list[tuple[Tensor, ...]]:
    return split(module(batch))


@pytest.mark.parametrize("name", ALL)
def test_predictions_are_those_of_mmdet(name):
    """Boxes, scores, labels and masks at all sizes, with more candidates than places and with fewer."""
    for size in SIZES:
        batch = images(*size)
        found, wanted = run(graph(name), batch), reference(graph(name).model, batch)
        for got, expected in zip(found, wanted, strict=True):
            assert len(expected[0]) > 20
            assert len(got) == (4 if "mask" in name else 3)
            count = len(expected[0])
            assert torch.equal(got[2][:count], expected[2])  # the same order
            torch.testing.assert_close(got[0][:count], expected[0], rtol=0, atol=0.01)
            assert_same(got, expected)


@pytest.mark.parametrize(
    "change", ["class-specific cascade", "class-agnostic NMS", "dense class-agnostic NMS", "softmax"]
)
def test_other_settings(change):
    """Settings that the configs do not have."""
    if change == "class-specific cascade":
        model = config("cascade-mask-rcnn")
        for head in model.roi_head.bbox_head:
            head.reg_class_agnostic = False
        model.roi_head.mask_head.class_agnostic = True
    elif change == "class-agnostic NMS":
        model = config("faster-rcnn")
        model.test_cfg.rcnn.nms.class_agnostic = True
        model.test_cfg.rpn.min_bbox_size = 8
    elif change == "dense class-agnostic NMS":
        model = config("retinanet")
        model.test_cfg.nms.class_agnostic = True
        model.test_cfg.min_bbox_size = 16
    else:
        model = config("retinanet")
        model.bbox_head.loss_cls = dict(type="CrossEntropyLoss", use_sigmoid=False)
    detector, batch = build(model), images(2, 160, 97)
    for got, expected in zip(run(detection_graph(detector), batch), reference(detector, batch), strict=True):
        assert len(expected[0]) > 5
        assert_same(got, expected)


@pytest.mark.parametrize("name", ["mask-rcnn", "retinanet"])
def test_nothing_found(name):
    """Places without a detection have box 0, score 0 and label -1."""
    model = config(name)
    (model.test_cfg.rcnn if "rcnn" in name else model.test_cfg).score_thr = 1.0
    boxes, scores, labels, *masks = detection_graph(build(model))(images(2, 64, 96))
    assert boxes.shape == (2, 40, 4)
    assert scores.shape == labels.shape == (2, 40)
    assert not boxes.any()
    assert not scores.any()
    assert (labels == -1).all()
    assert all(mask.shape == (2, 40, 28, 28) and mask.isfinite().all() for mask in masks)


def test_masks_of_a_graph():
    """The description of a file needs to know what masks cover."""
    assert (graph("mask-rcnn").masks, graph("mask-rcnn").mask_threshold) == ("box", 0.5)
    assert graph("retinanet").masks == graph("DINO").masks == graph("faster-rcnn").masks == ""


def to_onnx(module: ExportGraph, file: Path) -> None:
    """Export for any batch size, height and width.

    From two images: with one, torch takes tests for size 1 as true, and DINO's graph holds for single images only.
    """
    from mmgcvit.export.operators import translation_table

    program = torch.onnx.export(
        module,
        (images(2, 224, 224),),
        dynamo=True,
        custom_translation_table=translation_table(),
        dynamic_shapes=(dynamic(0, 2, 3),),
        input_names=["images"],
        verbose=False,
    )
    program.save(file)


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory) -> Callable[[str], Path]:
    """Exports a detector to ONNX once."""
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")

    def export(name: str) -> Path:
        file = folder / f"{name}.onnx"
        if not file.exists():
            to_onnx(graph(name), file)
        return file

    return export


@pytest.mark.parametrize(
    "name", ["mask-rcnn", *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name != "mask-rcnn")]
)
def test_onnx(onnx_files, name):
    """One file, run by ONNX Runtime at all sizes; only standard operators."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = onnx_files(name)
    assert {node.domain for node in onnx.load(file).graph.node} <= {""}
    session = onnxruntime.InferenceSession(file)
    for size in SIZES:
        batch = images(*size)
        found = split(session.run(None, {"images": batch.numpy()}))
        for got, expected in zip(found, run(graph(name), batch), strict=True):
            assert_same(got, expected)


@pytest.mark.slow
def test_onnx_where_nothing_is_found(tmp_path):
    """An image without detections beside one with some, and images with detections after it in the same session."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module = detection_graph(build(config("mask-rcnn"))).eval()
    batch = images(2, 224, 224)
    batch[1] = batch[1] // 4  # a darker image, with other scores
    best = torch.stack([scores[0] for _, scores, *_ in run(module, batch)])
    module.model.roi_head.test_cfg.score_thr = float(best.mean())
    to_onnx(module, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for part in (batch, batch[best.argmin()][None], batch.flip(0), batch[best.argmax()][None]):
        found, wanted = split(session.run(None, {"images": part.numpy()})), run(module, part)
        counts = [int((labels >= 0).sum()) for _, _, labels, _ in wanted]
        assert len(part) == 1 or (min(counts) == 0 and max(counts) > 0)
        for got, expected in zip(found, wanted, strict=True):
            assert_same(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_openvino(onnx_files, name):
    """OpenVINO's reader of ONNX files, in float32."""
    openvino = pytest.importorskip("openvino")
    model = openvino.convert_model(onnx_files(name))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in SIZES:
        batch = images(*size)
        found = split(list(compiled(batch.numpy()).values()))
        for got, expected in zip(found, run(graph(name), batch), strict=True):
            assert_same(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_torch_export(tmp_path, name):
    """A .pt2 file needs torch and torchvision only, and holds for all sizes.

    torch.export assumes that no size is 1: the coarsest map, with stride 128, needs two rows.
    """
    program = torch.export.export(graph(name), (images(2, 224, 224),), dynamic_shapes=(dynamic(0, 2, 3),), strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    targets = [node.target for node in loaded.graph.nodes if node.op == "call_function"]
    spaces = {target.namespace for target in targets if hasattr(target, "namespace")}
    assert spaces <= {"aten", "torchvision"}
    module = loaded.module()
    for count, height, width in SIZES:
        batch = images(count, max(height, 137) if name in DENSE else height, width)
        for got, expected in zip(run(module, batch), run(graph(name), batch), strict=True):
            assert_same(got, expected)


SOFT_NMS = dict(type="soft_nms", iou_threshold=0.5)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("mask-rcnn", "test_cfg.rcnn.nms", SOFT_NMS, "model.test_cfg.rcnn.nms.type='soft_nms'; allowed: 'nms'"),
        ("mask-rcnn", "test_cfg.rpn.nms_pre", -1, "model.test_cfg.rpn.nms_pre=-1; allowed: a positive number"),
        ("mask-rcnn", "test_cfg.rcnn.max_per_img", -1, "model.test_cfg.rcnn.max_per_img=-1; allowed: a positive"),
        ("mask-rcnn", "test_cfg.rcnn.mask_thr_binary", -1, "mask_thr_binary=-1; allowed: 0 to 1"),
        ("mask-rcnn", "roi_head.bbox_roi_extractor.roi_layer.type", "RoIPool", "type='RoIPool'; allowed: 'RoIAlign'"),
        ("mask-rcnn", "roi_head.bbox_roi_extractor.type", "GenericRoIExtractor", "allowed: 'SingleRoIExtractor'"),
        ("mask-rcnn", "roi_head.type", "DoubleHeadRoIHead", "roi_head.type='DoubleHeadRoIHead'; allowed: 'Stand"),
        ("mask-rcnn", "type", "MaskScoringRCNN", "model.type='MaskScoringRCNN' cannot be exported; allowed: Fas"),
        ("retinanet", "test_cfg.nms", SOFT_NMS, "model.test_cfg.nms.type='soft_nms'; allowed: 'nms'"),
        ("retinanet", "test_cfg.nms", dict(type="nms", iou_threshold=0.5, max_num=9), "model.test_cfg.nms.max_num=9"),
        ("retinanet", "test_cfg.max_per_img", 0, "model.test_cfg.max_per_img=0; allowed: a positive number"),
        ("retinanet", "type", "PAA", "model.type='PAA' cannot be exported; allowed: "),
        ("FCOS", "bbox_head.dcn_on_last_conv", True, "type='ModulatedDeformConv2dPack', an operator of mmcv; allowed:"),
        ("DINO", "data_preprocessor.pad_size_divisor", 32, "data_preprocessor.pad_size_divisor=32"),
    ],
)
def test_unsupported(name, key, value, message):
    """The error names the model, the reason and what is allowed, and comes before anything runs."""
    model = config(name)
    *path, last = key.split(".")
    part = model
    for step in path:
        part = part[step]
    part[last] = value
    if value == "DoubleHeadRoIHead":
        part.reg_roi_scale_factor = 1.3
    if value == "RoIPool":
        part.pop("sampling_ratio")
    with pytest.raises(ExportError) as caught:
        detection_graph(build(model))
    assert message in str(caught.value)
    assert value in ("MaskScoringRCNN", "PAA") or model.type in str(caught.value)


def test_sizes_of_rtmdet():
    """Its neck cannot take all sizes; the reason names the setting that helps."""
    model = config("RTMDet")
    assert graph("RTMDet").any_size == ""
    model.data_preprocessor.pad_size_divisor = 1
    assert "pad_size_divisor=32" in detection_graph(build(model)).any_size
