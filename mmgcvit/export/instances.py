"""mmdet's Mask2Former, for instance segmentation, as a graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.export.boxes import unsupported_kinds
from mmgcvit.export.graph import ExportGraph
from mmgcvit.export.masked_attention import replace_parts, unsupported_head
from mmgcvit.export.operators import NO_CANDIDATE, crop, features, take, top_k


class InstanceGraph(ExportGraph):
    """Preprocessing, Mask2Former, and the best masks with their boxes.

    Args:
        model: a Mask2Former of mmdet.
        channels: channels of the images.
    """

    detectors = ("Mask2Former",)
    masks = "image"

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        self.model = copy.deepcopy(model)
        replace_parts(self.model.panoptic_head)

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return why a detector cannot be exported."""
        reason = unsupported_kinds(
            [
                ("model", model, InstanceGraph.detectors),
                ("model.panoptic_head", model.panoptic_head, ("Mask2FormerHead",)),
                ("model.panoptic_fusion_head", model.panoptic_fusion_head, ("MaskFormerFusionHead",)),
            ]
        )
        if reason:
            return reason
        # mmdet's own defaults
        panoptic, instance = (model.test_cfg.get(f"{name}_on", name == "panoptic") for name in ("panoptic", "instance"))
        if panoptic or not instance:
            return (
                f"model.test_cfg: panoptic_on={panoptic}, instance_on={instance}; allowed: False, True, as files have "
                "no panoptic maps. Add --cfg-options model.test_cfg.panoptic_on=False model.test_cfg.instance_on=True "
                "for the instances"
            )
        return unsupported_head("model.panoptic_head", model.panoptic_head)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (B, K, 4), scores (B, K), labels (B, K) and masks (B, K, H, W)."""
        fusion = self.model.panoptic_fusion_head
        height, width = images.shape[-2:]
        x = self.preprocess(images)
        classes, logits = self.model.panoptic_head(features(self.model, x), [])
        scores = classes[-1].softmax(-1)[..., :-1]
        count = scores.shape[-1]
        scores, place = top_k(scores.flatten(1), fusion.test_cfg.get("max_per_image", 100))
        query = place // count
        labels = place - query * count
        scores = torch.where(labels < fusion.num_things_classes, scores, NO_CANDIDATE)
        masks = F.interpolate(choose(logits[-1], query), x.shape[-2:], mode="bilinear", align_corners=False)
        masks = crop(masks, height, width).sigmoid()
        inside = masks > self.mask_threshold
        area = inside.float().sum((-2, -1))
        certainty = torch.where(inside, masks, 0).sum((-2, -1)) / (area + 1e-6)
        scores = torch.where(scores >= 0, scores * certainty, NO_CANDIDATE)
        scores, order = scores.sort(dim=1, descending=True)
        used = scores >= 0
        boxes = torch.where(used[..., None], take(boxes_around(inside), order), 0)
        return boxes, scores.clamp(min=0), torch.where(used, labels.gather(1, order), -1), choose(masks, order)


def choose(maps: Tensor, indices: Tensor) -> Tensor:
    """Choose maps of each image: (B, N, h, w) and (B, K) to (B, K, h, w)."""
    batch, count = maps.shape[:2]
    rows = indices + count * torch.arange(batch, device=indices.device)[:, None]
    return maps.flatten(0, 1).index_select(0, rows.flatten()).reshape(batch, -1, *maps.shape[2:])


def boxes_around(inside: Tensor) -> Tensor:
    """Return x1, y1, x2, y2 around masks (B, K, H, W), (B, K, 4); zeros for an empty mask."""
    lows, highs = [], []
    for axis in (-2, -1):
        there = inside.any(axis)
        places = torch.arange(there.shape[-1], device=inside.device)
        highs.append(torch.where(there, places + 1, 0).amax(-1))
        lows.append(torch.minimum(torch.where(there, places, there.shape[-1]).amin(-1), highs[-1]))
    return torch.stack([*lows, *highs], dim=-1).float()
