"""mmdet's single-stage detectors as a graph: RetinaNet, ATSS, FCOS, GFL and RTMDet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmgcvit.export.boxes import (
    activate,
    best,
    decode,
    drop_small,
    kind,
    rows,
    suppress,
    unsupported_coder,
    unsupported_kinds,
    unsupported_selection,
)
from mmgcvit.export.graph import ExportGraph
from mmgcvit.export.operators import NO_CANDIDATE, features, probability, take, top_k

HEADS = ("RetinaHead", "RetinaSepBNHead", "ATSSHead", "FCOSHead", "GFLHead", "RTMDetHead", "RTMDetSepBNHead")
GENERATORS = ("AnchorGenerator", "MlvlPointGenerator")
CODERS = ("DeltaXYWHBBoxCoder", "DistancePointBBoxCoder")


class DenseGraph(ExportGraph):
    """Preprocessing, features, dense predictions, and the best boxes.

    Args:
        model: a single-stage detector of mmdet.
        channels: channels of the images.
    """

    detectors = ("RetinaNet", "ATSS", "FCOS", "GFL", "RTMDet", "SingleStageDetector")

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        self.model = model
        # With a distribution of distances, GFL's head predicts more than four numbers for a box.
        self.bins = model.bbox_head.reg_max + 1 if kind(model.bbox_head) == "GFLHead" else 0
        stride = max(max(strides) for strides in model.bbox_head.prior_generator.strides)
        if kind(getattr(model, "neck", None)) == "CSPNeXtPAFPN" and self.preprocess.divisor % stride:
            self.any_size = (
                f"model.neck.type='CSPNeXtPAFPN' takes multiples of {stride} only; add --cfg-options "
                f"model.data_preprocessor.pad_size_divisor={stride} for any size"
            )

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return why a detector cannot be exported."""
        reason = unsupported_kinds([("model", model, DenseGraph.detectors)])
        if reason:
            return reason
        head = model.bbox_head
        reason = unsupported_kinds([("model.bbox_head", head, HEADS)])
        if reason:
            return reason
        reason = unsupported_kinds(
            [
                ("model.bbox_head.anchor_generator", head.prior_generator, GENERATORS),
                ("model.bbox_head.bbox_coder", head.bbox_coder, CODERS),
            ]
        )
        reason = reason or unsupported_coder("model.bbox_head.bbox_coder", head.bbox_coder)
        if not reason and getattr(head.loss_cls, "custom_cls_channels", False):
            reason = (
                f"model.bbox_head.loss_cls.type={kind(head.loss_cls)!r} has its own activation; "
                "allowed: losses with sigmoid or softmax"
            )
        if not reason and getattr(head, "with_objectness", False):
            reason = "model.bbox_head.with_objectness=True; allowed: False"
        return reason or unsupported_selection("model.test_cfg", model.test_cfg, ("nms_pre", "max_per_img"), True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (B, K, 4), scores (B, K) and labels (B, K)."""
        head, config = self.model.bbox_head, self.model.test_cfg
        size = images.shape[-2:]
        logits, deltas, *factors = head(features(self.model, self.preprocess(images)))
        sizes = [x.shape[-2:] for x in logits]
        priors = head.prior_generator.grid_priors(sizes, device=logits[0].device)
        chosen: list[tuple[Tensor, ...]] = []
        for level, x in enumerate(logits):
            scores = activate(head, rows(x, head.cls_out_channels))
            classes = scores.shape[-1]
            scores, indices = top_k(scores.flatten(1), config.nms_pre)
            scores = torch.where(scores > config.get("score_thr", 0), scores, NO_CANDIDATE)
            place = indices // classes
            if factors:  # centerness
                factor = probability(take(rows(factors[0][level], 1), place).squeeze(-1))
                scores = torch.where(scores >= 0, scores * factor, NO_CANDIDATE)
            delta = self.deltas(deltas[level], place, level)
            chosen.append((scores, indices - place * classes, priors[level][place], delta))
        scores, labels, prior, delta = (torch.cat(x, dim=1) for x in zip(*chosen, strict=True))
        if self.bins:
            prior = (prior[..., :2] + prior[..., 2:]) / 2
        boxes = decode(head.bbox_coder, prior, delta, size)
        scores = drop_small(scores, boxes, config)
        groups = scores[:, None]
        if not config.nms.get("class_agnostic", False):
            own = labels[:, None] == torch.arange(classes, device=labels.device)[:, None]
            groups = torch.where(own, groups, NO_CANDIDATE)  # [B, classes, N]
        scores = suppress(boxes, groups, config.nms.iou_threshold).amax(1)
        return best(boxes, scores, labels, config.max_per_img)

    def deltas(self, deltas: Tensor, place: Tensor, level: int) -> Tensor:
        """Return what the head predicts for the boxes at some places (B, K) of a level, (B, K, 4)."""
        if not self.bins:
            return take(rows(deltas, 4), place)
        head = self.model.bbox_head
        bins = take(rows(deltas, 4 * self.bins), place).unflatten(-1, (4, self.bins)).softmax(-1)
        # What `head.integral` computes, whose `type_as` the ONNX exporter cannot translate. OpenVINO 2026.4 cannot
        # optimize the product of a matrix, a vector and a number.
        return (bins * (head.integral.project * head.prior_generator.strides[level][0])).sum(-1)
