"""Tiny detectors with many detections, mmdet's own predictions of them, and comparison of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import ROOT, randomise
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

BASES = ROOT / "configs/detection/_base_"
CLASSES = 5
SIZES = ((1, 224, 224), (3, 256, 320), (1, 300, 500), (3, 97, 401))  # batch, height, width
WIDTH = 16
FOCAL = dict(type="FocalLoss", use_sigmoid=True)
GROUPS = dict(type="GN", num_groups=4)
GIOU = dict(type="GIoULoss")
CENTERNESS = dict(type="CrossEntropyLoss", use_sigmoid=True)
ANCHORS = dict(
    type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=[8, 16, 32, 64, 128]
)
DELTAS = dict(type="DeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2])
DISTANCES = dict(type="DistancePointBBoxCoder")
#: Heads of single-stage detectors, in addition to the RetinaNet of the configs.
DENSE: dict[str, dict[str, Any]] = {
    "ATSS": dict(
        type="ATSSHead", norm_cfg=GROUPS, anchor_generator=ANCHORS, bbox_coder=DELTAS, loss_centerness=CENTERNESS
    ),
    "FCOS": dict(type="FCOSHead", norm_cfg=GROUPS, strides=[8, 16, 32, 64, 128], loss_centerness=CENTERNESS),
    "GFL": dict(type="GFLHead", norm_cfg=GROUPS, anchor_generator=ANCHORS, reg_max=8),
    "RTMDet": dict(
        type="RTMDetSepBNHead",
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[8, 16, 32]),
        bbox_coder=DISTANCES,
        exp_on_reg=True,
        share_conv=True,
        pred_kernel_size=1,
        with_objectness=False,
        norm_cfg=dict(type="BN"),
    ),
}


def dynamic(*axes: int) -> dict[int, Any]:
    """Return the ``dynamic_shapes`` of a tensor with any size along some axes; skips the test if torch is too old."""
    if not hasattr(getattr(torch.export, "Dim", None), "DYNAMIC"):
        pytest.skip("needs torch.export.Dim.DYNAMIC")
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


def config(name: str) -> Any:
    """Return the ``model`` of a config of a tiny detector.

    Args:
        name: 'mask-rcnn', 'cascade-mask-rcnn', 'faster-rcnn' or 'retinanet' (nano configs of this repository), a key
            of :data:`DENSE`, or 'DINO'.
    """
    init_default_scope("mmdet")
    path = "retinanet" if name in DENSE or name == "DINO" else name
    model = Config.fromfile(BASES / f"{path}_gcvit-nano_fpn.py").model
    model.backbone.arch = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4))
    model.backbone.window_size = (2, 2, 4, 2)
    model.neck.in_channels = [16, 32, 64, 128][-len(model.neck.in_channels) :]
    model.neck.out_channels = WIDTH
    if "roi_head" in model:
        head = model.roi_head
        model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
        for part in (head.bbox_roi_extractor, head.get("mask_roi_extractor")):
            if part:
                part.out_channels = WIDTH
        for box_head in head.bbox_head if isinstance(head.bbox_head, list) else [head.bbox_head]:
            box_head.update(in_channels=WIDTH, fc_out_channels=32, num_classes=CLASSES)
        if head.get("mask_head"):
            head.mask_head.update(in_channels=WIDTH, conv_out_channels=WIDTH, num_classes=CLASSES, num_convs=1)
        model.test_cfg.rpn.update(nms_pre=100, max_per_img=80)
        model.test_cfg.rcnn.max_per_img = 40
        return model
    model.bbox_head.update(num_classes=CLASSES, in_channels=WIDTH, feat_channels=WIDTH, stacked_convs=1)
    model.test_cfg.update(nms_pre=150, max_per_img=40)
    if name in DENSE:
        model.type = name
        model.bbox_head = dict(
            num_classes=CLASSES,
            in_channels=WIDTH,
            feat_channels=WIDTH,
            stacked_convs=1,
            loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True) if name in ("GFL", "RTMDet") else FOCAL,
            loss_bbox=GIOU,
            **DENSE[name],
        )
        model.pop("train_cfg")
        model.neck.update(add_extra_convs="on_output", num_outs=5)
    if name == "RTMDet":
        model.neck = dict(
            type="CSPNeXtPAFPN",
            in_channels=[32, 64, 128],
            out_channels=WIDTH,
            num_csp_blocks=1,
            norm_cfg=dict(type="BN"),
        )
        model.test_cfg.score_thr = 0.001
    if name == "DINO":
        return dino(model)
    return model


def dino(base: Any) -> Any:
    """Return mmdet's DINO, narrow, over the backbone of another detector."""
    model = Config.fromfile(ROOT / "configs/detection/dino-4scale_gcvit-tiny_8xb2-12e_coco.py").model
    width = 32
    model.backbone, model.num_queries = base.backbone, 60
    model.neck.update(in_channels=[32, 64, 128], out_channels=width, norm_cfg=GROUPS)
    for part in (model.encoder, model.decoder):
        part.num_layers = 2
        for key in ("self_attn_cfg", "cross_attn_cfg", "ffn_cfg"):
            if key in part.layer_cfg:
                part.layer_cfg[key].embed_dims = width
        part.layer_cfg.ffn_cfg.feedforward_channels = 48
    model.positional_encoding.num_feats = width // 2
    model.bbox_head.update(num_classes=CLASSES, embed_dims=width)
    model.test_cfg.max_per_img = 40
    return model


def mask2former_head(classes: int) -> Any:
    """Return the decode head of the Mask2Former config of this repository, with few and narrow layers.

    It lacks ``num_classes``, which has other names in mmdet.
    """
    head = Config.fromfile(ROOT / "configs/segmentation/_base_/mask2former_gcvit-tiny.py").model.decode_head
    width, position = 32, dict(num_feats=16, normalize=True)
    head.pop("num_classes")
    head.update(in_channels=[32, 64, 128, 256], feat_channels=width, out_channels=width, num_queries=20)
    head.positional_encoding = position
    head.loss_cls.class_weight = [1.0] * classes + [0.1]
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    head.pixel_decoder.positional_encoding = position
    head.pixel_decoder.norm_cfg.num_groups = 8
    encoder.num_layers, decoder.num_layers = 2, 4
    for layer in (encoder.layer_cfg, decoder.layer_cfg):
        for name in ("self_attn_cfg", "cross_attn_cfg", "ffn_cfg"):
            if name in layer:
                layer[name].embed_dims = width
        layer.ffn_cfg.feedforward_channels = 64
    return head


def sharpen(head: nn.Module) -> None:
    """Spread the scores and masks of a Mask2Former head with its initial weights."""
    head.cls_embed.weight.data *= 50
    head.mask_embed[-1].weight.data *= 50


def build(model: Any) -> nn.Module:
    """Build a detector with random values everywhere, so that there are many detections."""
    torch.manual_seed(0)
    detector = randomise(MODELS.build(model)).eval()
    norms = [layer for layer in detector.modules() if isinstance(layer, nn.BatchNorm2d)]
    if norms:  # without suitable statistics, the features would be the same everywhere
        for layer in norms:
            layer.train().momentum = 1.0
        with torch.no_grad():
            detector.bbox_head(detector.extract_feat(torch.randn(2, 3, 224, 224)))
        detector.eval()
    return detector


def images(batch: int, height: int, width: int) -> Tensor:
    """Return random images, RGB."""
    return torch.randint(
        0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@torch.no_grad()
def reference(model: nn.Module, batch: Tensor) -> list[tuple[Tensor, ...]]:
    """Predict with mmdet itself.

    Returns:
        Boxes, scores, labels and, if there are any, probabilities of the masks over the boxes, of each image.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import bbox2roi

    shape = tuple(batch.shape[-2:])
    samples = [DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))) for _ in batch]
    data = model.data_preprocessor(dict(inputs=[image.flip(0) for image in batch], data_samples=samples))  # BGR
    found = [sample.pred_instances for sample in model.predict(data["inputs"], data["data_samples"])]
    results: list[tuple[Tensor, ...]] = [(x.bboxes, x.scores, x.labels) for x in found]
    if getattr(model, "with_mask", False):
        head = model.roi_head
        maps, rois = model.extract_feat(data["inputs"]), bbox2roi([x.bboxes for x in found])
        if isinstance(head.mask_head, nn.ModuleList):
            stages = [head._mask_forward(stage, maps, rois) for stage in range(head.num_stages)]
        else:
            stages = [head._mask_forward(maps, rois)]
        masks = torch.stack([stage["mask_preds"].sigmoid() for stage in stages]).mean(0)
        labels = torch.cat([x.labels for x in found])
        masks = masks[torch.arange(len(rois)), labels.clamp(max=masks.shape[1] - 1)]
        parts = masks.split([len(x) for x in found])
        results = [(*result, part) for result, part in zip(results, parts, strict=True)]
    return results


def assert_same(got: Sequence[Any], wanted: Sequence[Any], pixels: float = 0.01, tolerance: float = 1e-4) -> None:
    """Compare the detections of one image: boxes, scores, labels and perhaps masks, best first.

    Detections whose scores differ by less than the tolerance may be in another order, and the last ones, others.

    Args:
        got: predictions of a graph; unused places have label -1.
        wanted: predictions of mmdet, or those of another graph.
        pixels: allowed difference of boxes.
        tolerance: allowed difference of scores and probabilities.
    """
    found, expected = ([torch.as_tensor(x) for x in values] for values in (got, wanted))
    used, real = int((found[2] >= 0).sum()), int((expected[2] >= 0).sum())
    assert used == real
    assert (found[2][used:] == -1).all()
    assert (found[1][used:] == 0).all()
    torch.testing.assert_close(found[1][:used], expected[1][:used], rtol=0, atol=tolerance)
    if not used:
        return
    last = expected[1][real - 1] + 2 * tolerance
    for index in range(real):
        score, label = expected[1][index], expected[2][index]
        if score <= last and index >= 3:  # its place may be taken by another of the same score
            continue
        near = ((found[1][:used] - score).abs() <= tolerance) & (found[2][:used] == label)
        near &= ((found[0][:used] - expected[0][index]).abs() <= pixels).all(1)
        assert near.any(), f"detection {index}: {expected[0][index]}, {score}, {label} not found"
        if len(expected) > 3:
            difference = (found[3][:used][near] - expected[3][index]).abs().flatten(1).amax(1).min()
            assert difference <= 10 * tolerance


def split(outputs: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return the predictions of each image of a batch."""
    return list(zip(*outputs, strict=True))
