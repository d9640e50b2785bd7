"""Non-maximum suppression and overlaps of boxes (x1, y1, x2, y2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """Cast floating-point tensors to their common dtype, float32 at least: torchvision has no bfloat16 kernels."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that remain, by descending score: (N, 4), (N,) -> (K,).

    A box is suppressed if its IoU with a remaining box of a higher score is above the threshold.

    Args:
        boxes: floating-point boxes.
        scores: their scores.
        iou_threshold: largest allowed overlap.
        offset: a box is ``x2 - x1 + offset`` wide, 0 or 1.
    """
    if not boxes.numel():
        return boxes.new_empty(0, dtype=torch.long)
    boxes, scores = at_least_float32(boxes, scores)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # mmcv compares float32 overlaps with a float32 threshold, torchvision with a double: an overlap of exactly 0.3 in
    # float32 is above the double 0.3.
    threshold = float(np.float32(iou_threshold)) if boxes.dtype == torch.float32 else iou_threshold
    # mmcv's sort is not stable, torchvision's is: sorting here first gives boxes of equal scores mmcv's order.
    scores, order = scores.sort(descending=True)
    return order[torchvision_nms(boxes[order], scores, threshold)]


def _overlaps_with_first(boxes: np.ndarray, areas: np.ndarray, first: int, others: slice, offset: int) -> np.ndarray:
    """IoU of one box with others: boxes (N, 4), areas (N,) -> as many as ``others`` selects."""
    upper = np.maximum(boxes[first, :2], boxes[others, :2])
    lower = np.minimum(boxes[first, 2:], boxes[others, 2:])
    sides = np.maximum(lower - upper + boxes.dtype.type(offset), 0)
    overlap = sides[:, 0] * sides[:, 1]
    with np.errstate(invalid="ignore", divide="ignore"):  # boxes without area: NaN, as in mmcv
        return overlap / (areas[first] + areas[others] - overlap)


def _areas(boxes: np.ndarray, offset: int) -> np.ndarray:
    sides = boxes[:, 2:] - boxes[:, :2] + boxes.dtype.type(offset)
    return sides[:, 0] * sides[:, 1]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (https://arxiv.org/abs/1704.04503) on the CPU: (N, 4), (N,) -> indices (K,).

    Overlapping boxes get a lower score instead of being removed. The order of boxes with equal scores is mmcv's, which
    depends on how it moves boxes: the best one is swapped to the front, and one that drops out is replaced by the last.

    Args:
        boxes: boxes.
        scores: their scores.
        dets: gets the remaining boxes and their new scores, (N, 5); only the first K rows are set.
        iou_threshold: overlap from which a score is lowered (methods 0 and 1).
        sigma: parameter of method 2.
        min_score: boxes whose lowered score is below are removed.
        method: 0 sets scores to zero, 1 multiplies by 1 - IoU, 2 by exp(-IoU^2 / sigma).
        offset: a box is ``x2 - x1 + offset`` wide, 0 or 1.
    """
    corners, score = (tensor.detach().cpu().numpy() for tensor in at_least_float32(boxes, scores))
    kind = corners.dtype.type
    indices = np.arange(len(corners))
    areas = _areas(corners, offset)
    found, count, place = [], len(corners), 0
    while place < count:
        # Swap the best one to the front. A NaN is never larger in a comparison, but stays the best if it is first.
        rest = score[place:count]
        best = place if np.isnan(rest[0]) else place + int(np.argmax(np.where(np.isnan(rest), -np.inf, rest)))
        order = np.arange(count)
        order[place], order[best] = best, place
        corners, score, areas, indices = corners[order], score[order], areas[order], indices[order]
        found.append(np.append(corners[place], score[place]))
        others = slice(place + 1, count)
        overlap = _overlaps_with_first(corners, areas, place, others, offset)
        if method == 2:
            weight = np.exp(-(overlap * overlap) / kind(sigma))
        else:
            lowered = 1 - overlap if method else np.zeros_like(overlap)
            weight = np.where(overlap >= kind(iou_threshold), lowered, kind(1))
        score[others] *= weight
        stays = np.ones(count, dtype=bool)
        stays[others] = ~(score[others] < kind(min_score))
        remaining = int(stays.sum())
        places = np.arange(remaining)  # what drops out is replaced by the last ones that stay
        places[~stays[:remaining]] = np.flatnonzero(stays[remaining:])[::-1] + remaining
        corners, score, areas, indices = corners[places], score[places], areas[places], indices[places]
        count, place = remaining, place + 1
    if found:
        dets[: len(found)] = torch.from_numpy(np.stack(found)).to(dets)
    return torch.from_numpy(indices[:count]).to(boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """NMS that keeps track of what each box suppresses: (N, 5) -> for each remaining box its index, then those.

    Args:
        dets: boxes and scores.
        iou_threshold: overlap from which a box is suppressed.
    """
    rows = at_least_float32(dets)[0].detach().cpu()
    order = rows[:, 4].sort(descending=True).indices.numpy()
    boxes = rows[:, :4].numpy()[order]
    areas, free = _areas(boxes, 0), np.ones(len(boxes), dtype=bool)
    groups = []
    for first in range(len(boxes)):
        if free[first]:
            overlap = _overlaps_with_first(boxes, areas, first, slice(first + 1, None), 0)
            matched = first + 1 + np.flatnonzero((overlap >= boxes.dtype.type(iou_threshold)) & free[first + 1 :])
            free[matched] = False
            groups.append([int(order[first]), *order[matched].tolist()])
    return groups


def bbox_overlaps(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Overlaps of boxes, written to ``ious``: (M, 4), (N, 4) -> (M, N), or (M,) if aligned.

    Args:
        boxes1: boxes.
        boxes2: boxes; as many if aligned.
        ious: the result.
        mode: 0 divides the intersection by the union, 1 by the area of the first box.
        aligned: compare the boxes in pairs.
        offset: a box is ``x2 - x1 + offset`` wide, 0 or 1.
    """
    area1, area2 = ((boxes[:, 2:] - boxes[:, :2] + offset).prod(1) for boxes in (boxes1, boxes2))
    if not aligned:
        boxes1, area1 = boxes1[:, None], area1[:, None]
    upper, lower = torch.maximum(boxes1[..., :2], boxes2[:, :2]), torch.minimum(boxes1[..., 2:], boxes2[:, 2:])
    overlap = (lower - upper + offset).clamp(min=0).prod(-1)
    ious.copy_(overlap / (area1 if mode else area1 + area2 - overlap))
