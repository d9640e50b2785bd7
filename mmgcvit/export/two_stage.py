"""mmdet's two-stage detectors as a graph: Faster, Mask and Cascade R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
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
from mmgcvit.export.operators import NO_CANDIDATE, features, roi_align, take, top_k

ROI_HEADS = ("StandardRoIHead", "CascadeRoIHead")
BOX_HEADS = ("BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")


def stages(part: Any) -> list[Any]:
    """Return the parts of all stages of a RoI head; a StandardRoIHead has one stage."""
    return list(part) if isinstance(part, torch.nn.ModuleList) else [part]


class TwoStageGraph(ExportGraph):
    """Preprocessing, features, proposals, boxes and, if the model has a mask head, masks over the boxes.

    Args:
        model: a two-stage detector of mmdet.
        channels: channels of the images.
    """

    detectors = ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "TwoStageDetector")

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        self.model = model
        if model.roi_head.with_mask:
            self.masks = "box"
            self.mask_threshold = float(model.test_cfg.rcnn.mask_thr_binary)

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return why a detector cannot be exported."""
        reason = unsupported_kinds([("model", model, TwoStageGraph.detectors)])
        if reason:
            return reason
        if not model.with_rpn:
            return "model.rpn_head=None; allowed: an RPNHead"
        rpn, head = model.rpn_head, model.roi_head
        reason = unsupported_kinds(
            [
                ("model.rpn_head", rpn, ("RPNHead",)),
                ("model.rpn_head.anchor_generator", rpn.prior_generator, ("AnchorGenerator",)),
                ("model.rpn_head.bbox_coder", rpn.bbox_coder, ("DeltaXYWHBBoxCoder",)),
                ("model.roi_head", head, ROI_HEADS),
            ]
        )
        reason = reason or unsupported_coder("model.rpn_head.bbox_coder", rpn.bbox_coder)
        if reason:
            return reason
        if not head.with_bbox:
            return "model.roi_head.bbox_head=None; allowed: a box head"
        if head.with_shared_head:
            return "model.roi_head.shared_head is set; allowed: None"
        for extractor in stages(head.bbox_roi_extractor) + (stages(head.mask_roi_extractor) if head.with_mask else []):
            reason = reason or _unsupported_extractor(extractor)
        for box_head in stages(head.bbox_head):
            reason = reason or _unsupported_box_head(box_head)
        for mask_head in stages(head.mask_head) if head.with_mask else []:
            reason = reason or unsupported_kinds([("model.roi_head.mask_head", mask_head, ("FCNMaskHead",))])
        if not reason and head.with_mask and model.test_cfg.rcnn.mask_thr_binary < 0:
            reason = f"model.test_cfg.rcnn.mask_thr_binary={model.test_cfg.rcnn.mask_thr_binary}; allowed: 0 to 1"
        reason = reason or unsupported_selection(
            "model.test_cfg.rpn", model.test_cfg.rpn, ("nms_pre", "max_per_img"), agnostic=False
        )
        return reason or unsupported_selection("model.test_cfg.rcnn", model.test_cfg.rcnn, ("max_per_img",), True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (B, K, 4), scores (B, K), labels (B, K) and masks (B, K, h, w), if any."""
        size = images.shape[-2:]
        maps = features(self.model, self.preprocess(images))
        proposals, used = self.propose(maps, size)
        boxes, scores, labels = self.detect(maps, proposals, used, size)
        if not self.masks:
            return boxes, scores, labels
        return boxes, scores, labels, self.segment(maps, boxes, labels)

    def propose(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the proposals (B, P, 4), and which of these places are used (B, P)."""
        head = self.model.rpn_head
        config = head.test_cfg
        logits, deltas = head(maps)
        anchors = head.prior_generator.grid_priors([x.shape[-2:] for x in logits], device=logits[0].device)
        chosen: list[tuple[Tensor, Tensor, Tensor]] = []
        for x, delta, priors in zip(logits, deltas, anchors, strict=True):
            scores = activate(head, rows(x, head.cls_out_channels)).squeeze(-1)
            scores, indices = top_k(scores, config.nms_pre)
            chosen.append((scores, priors[indices], take(rows(delta, 4), indices)))
        scores, priors, delta = (torch.stack(x, dim=1) for x in zip(*chosen, strict=True))  # [B, levels, K, ...]
        boxes = decode(head.bbox_coder, priors, delta, size)
        scores = drop_small(scores, boxes, config)
        # Each level of each image is a group.
        scores = suppress(boxes.flatten(0, 1), scores.flatten(0, 1)[:, None], config.nms.iou_threshold)
        scores, indices = top_k(scores.reshape(boxes.shape[0], -1), config.max_per_img)
        used = scores >= 0
        return torch.where(used[..., None], take(boxes.flatten(1, 2), indices), 0), used

    def detect(
        self, maps: Sequence[Tensor], boxes: Tensor, used: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels, the best ones of each image, from proposals (B, P, 4)."""
        head = self.model.roi_head
        heads, extractors = stages(head.bbox_head), stages(head.bbox_roi_extractor)
        logits: list[Tensor] = []
        for stage, (box_head, extractor) in enumerate(zip(heads, extractors, strict=True)):
            scores, deltas = box_head(roi_align(extractor, maps[: extractor.num_inputs], boxes))
            scores, deltas = (x.reshape(*used.shape, -1) for x in (scores, deltas))
            logits.append(scores)
            deltas = deltas.unflatten(-1, (-1, 4))  # [B, P, classes or 1, 4]
            if stage < len(heads) - 1:
                label = scores[..., :-1].argmax(-1) if deltas.shape[2] > 1 else used.long() * 0
                deltas = take(deltas.flatten(0, 1), label.reshape(-1, 1)).view_as(boxes)
                boxes = decode(box_head.bbox_coder, boxes, deltas, size)
        total: Any = sum(logits)
        probabilities = (total / len(logits)).softmax(-1)[..., :-1]
        boxes = decode(heads[-1].bbox_coder, boxes[:, :, None], deltas, size)
        return self._select(boxes, torch.where(used[..., None], probabilities, NO_CANDIDATE))

    def _select(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Select among boxes (B, P, classes or 1, 4) with scores (B, P, classes)."""
        config = self.model.roi_head.test_cfg
        batch, count, classes = scores.shape
        scores = torch.where(scores > config.score_thr, scores, NO_CANDIDATE)
        threshold = config.nms.get("iou_threshold")
        if config.nms.get("class_agnostic", False):
            boxes = boxes.expand(-1, -1, classes, -1).flatten(1, 2)
            scores = suppress(boxes, scores.reshape(batch, 1, -1), threshold).squeeze(1)
        elif boxes.shape[2] == 1:  # all classes share the boxes
            scores = suppress(boxes[:, :, 0], scores.transpose(1, 2), threshold).transpose(1, 2).flatten(1)
            boxes = boxes.expand(-1, -1, classes, -1).flatten(1, 2)
        else:
            groups = boxes.transpose(1, 2).flatten(0, 1)  # [B * classes, P, 4]
            kept = suppress(groups, scores.transpose(1, 2).reshape(-1, 1, count), threshold)
            scores = kept.reshape(batch, classes, count).transpose(1, 2).flatten(1)
            boxes = boxes.flatten(1, 2)
        labels = torch.arange(classes, device=scores.device).repeat(count).expand(batch, -1)
        return best(boxes, scores, labels, config.max_per_img)

    def segment(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the probability of each pixel over each box, (B, K, h, w)."""
        head = self.model.roi_head
        total: Any = 0
        mask_heads, extractors = stages(head.mask_head), stages(head.mask_roi_extractor)
        for mask_head, extractor in zip(mask_heads, extractors, strict=True):
            logits = mask_head(roi_align(extractor, maps[: extractor.num_inputs], boxes))
            if not mask_head.class_agnostic:
                index = labels.clamp(min=0).reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[-2:])
                logits = logits.gather(1, index)
            total = total + logits.sigmoid()
        return (total / len(mask_heads)).reshape(*labels.shape, *total.shape[-2:])


def _unsupported_extractor(extractor: Any) -> str:
    name = "model.roi_head: extractor"
    reason = unsupported_kinds([(name, extractor, ("SingleRoIExtractor",))])
    for layer in [] if reason else extractor.roi_layers:
        if kind(layer) != "RoIAlign":
            return f"{name}.roi_layer.type={kind(layer)!r}; allowed: 'RoIAlign'"
        if layer.pool_mode != "avg" or not layer.aligned:
            return f"{name}.roi_layer: pool_mode={layer.pool_mode!r}, aligned={layer.aligned}; allowed: 'avg', True"
    return reason


def _unsupported_box_head(head: Any) -> str:
    name = "model.roi_head.bbox_head"
    reason = unsupported_kinds(
        [(name, head, BOX_HEADS), (f"{name}.bbox_coder", head.bbox_coder, ("DeltaXYWHBBoxCoder",))]
    )
    if reason:
        return reason
    if head.custom_cls_channels or head.custom_activation:
        return f"{name}.loss_cls.type={kind(head.loss_cls)!r} has its own activation; allowed: losses with softmax"
    if not (head.with_cls and head.with_reg):
        return f"{name}: with_cls={head.with_cls}, with_reg={head.with_reg}; allowed: True, True"
    return unsupported_coder(f"{name}.bbox_coder", head.bbox_coder)
