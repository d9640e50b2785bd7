"""Forward pass of a detector for counting operations."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmgcvit import compat

PROPOSALS, MASKS = 1000, 100  # maximum at test time for the heads of a two-stage detector


def image_meta(image: Tensor) -> dict:
    """Meta information of an image (1, C, H, W) that was not resized, as read by the heads of mmdet and mmseg."""
    shape = tuple(image.shape[2:])
    return dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))


def forward(model: Any, image: Tensor) -> None:
    """Run all heads; the box heads of a two-stage detector on 1000 proposals, its mask heads on 100.

    The mask head of a one-stage detector gets the boxes of its box head, as many as ``test_cfg`` allows.
    """
    if not hasattr(model, "roi_head"):
        from mmdet.structures import DetDataSample

        sample = DetDataSample(metainfo=image_meta(image))
        boxes = getattr(model, "bbox_head", None)
        if boxes is None or getattr(model, "mask_head", None) is None:
            model(image, [sample], mode="tensor")
            return
        # In mmdet's tensor mode, the mask head of a one-stage detector needs annotations. Without a threshold, it gets
        # the maximum number of boxes from an untrained box head.
        threshold = boxes.test_cfg.score_thr
        boxes.test_cfg.score_thr = -1.0
        try:
            model.predict(image, [sample])
        finally:
            boxes.test_cfg.score_thr = threshold
        return
    maps = model.extract_feat(image)
    model.rpn_head(maps)
    if getattr(model, "semantic_head", None) is not None:  # of a panoptic segmentor
        model.semantic_head(maps)
    # NMS on untrained scores would leave a random number of proposals.
    proposals = InstanceData(bboxes=image.new_tensor([[0.0, 0.0, 64.0, 64.0]]).repeat(PROPOSALS, 1))
    head = model.roi_head
    cascade = isinstance(head.bbox_head, nn.ModuleList)
    rois = torch.cat([proposals.bboxes.new_zeros(PROPOSALS, 1), proposals.bboxes], dim=1)
    for stage in range(len(head.bbox_head) if cascade else 1):
        index = [stage] if cascade else []
        compat.forward_box_head(head, *index, maps, rois)
        if head.with_mask:
            compat.forward_mask_head(head, *index, maps, rois[:MASKS])
