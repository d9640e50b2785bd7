"""Mask2Former for instances as a graph against mmdet's own test step, and as files."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, randomise
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip("mmcv._ext")
pytest.importorskip("mmdet")

from detectors import SIZES, images, mask2former_head, sharpen

from mmgcvit.errors import ExportError
from mmgcvit.export import formats, verify
from mmgcvit.export.detection import detection_graph
from mmgcvit.export.instances import boxes_around
from mmgcvit.runtime.metadata import ModelInfo

THINGS, STUFF = 4, 2


def build(**test_cfg: Any) -> Any:
    """A nano Mask2Former of mmdet, some classes of which have no instances."""
    init_default_scope("mmdet")
    base = Config.fromfile(ROOT / "configs/detection/_base_/mask-rcnn_gcvit-nano_fpn.py").model
    backbone = base.backbone
    backbone.arch.depths = (1, 1, 1, 1)
    head = mask2former_head(THINGS + STUFF)
    head.pop("align_corners")
    classes = dict(num_things_classes=THINGS, num_stuff_classes=STUFF)
    head.update(classes)
    torch.manual_seed(0)
    cfg = dict(
        type="Mask2Former", backbone=backbone, data_preprocessor=base.data_preprocessor, panoptic_head=head,
        panoptic_fusion_head=dict(type="MaskFormerFusionHead", **classes), train_cfg=None,
        test_cfg=dict(panoptic_on=False, instance_on=True, max_per_image=30) | test_cfg,
    )  # fmt: skip
    model = MODELS.build(ConfigDict(cfg)).eval()
    randomise(model.backbone)  # random norms would make its queries equal
    sharpen(model.panoptic_head)
    return model


@cache
def exportable() -> SimpleNamespace:
    model = build()
    info = ModelInfo(
        "detection", tuple("abcdef"), ((1, 2, 3),) * 6, shape=(None,) * 3, masks="image", model="Mask2Former"
    )
    return SimpleNamespace(task="detection", model=model, graph=detection_graph(model).eval(), info=info)


def compare(run: Any) -> verify.Differences:
    found = verify.compare(exportable(), run, (images(*size).numpy() for size in SIZES))
    assert found.detections > 100
    return found


def test_as_mmdet():
    scores = []

    def run(batch: np.ndarray) -> dict:
        with torch.no_grad():
            outputs = [x.numpy() for x in exportable().graph(torch.from_numpy(batch))]
        scores.extend(outputs[1])
        return dict(zip(("boxes", "scores", "labels", "masks"), outputs, strict=True))

    found = compare(run)
    assert (found.unmatched, found.box) == (0, 0)
    assert found.score < 1e-4
    assert found.mask < 1e-3
    assert all((np.diff(values) <= 0).all() for values in scores)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_files(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    model = exportable()
    if suffix == ".pt2":
        formats.write_pt2(model.graph, model.info, file)
    else:
        pytest.importorskip("onnxscript")
        formats.write_onnx(model.graph, model.info, file.with_suffix(".onnx"))
    if suffix == ".xml":
        pytest.importorskip("openvino")
        formats.write_openvino(file.with_suffix(".onnx"), model.info, file)
    verify.require_equal(compare(verify.open_file(file)), verify.Tolerance(), file.name)


@pytest.mark.parametrize("change", [dict(panoptic_on=True), dict(instance_on=False)])
def test_panoptic_maps_are_refused(change):
    with pytest.raises(
        ExportError, match=r"panoptic_on=.*allowed: False, True.*--cfg-options model.test_cfg.panoptic_on"
    ):
        detection_graph(build(**change))


def test_other_decoders_are_refused():
    model = build()
    model.panoptic_head.pixel_decoder = torch.nn.Identity()
    with pytest.raises(ExportError, match=r"panoptic_head.pixel_decoder.type='Identity'; allowed: 'MSDeformAttn"):
        detection_graph(model)


def test_boxes_around_masks():
    masks = torch.zeros(2, 3, 7, 9, dtype=torch.bool)
    masks[0, 0, 2:5, 3:9] = True
    masks[1, 2, 6, 0] = True
    expected = torch.zeros(2, 3, 4)
    expected[0, 0], expected[1, 2] = torch.tensor([3.0, 2, 9, 5]), torch.tensor([0.0, 6, 1, 7])
    assert torch.equal(boxes_around(masks), expected)
