"""Boxes of detectors in a graph: decoding, selection, and what of a config is supported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any

import torch
from torch import Tensor

from mmgcvit.export.operators import NO_CANDIDATE, nms, probability, take, top_k

#: Largest change of the logarithm of width and height that mmdet's coder decodes.
MAX_LOG_RATIO = abs(log(16 / 1000))


def clip(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Clip boxes (..., 4) to an image of a height and a width."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    height, width = size
    x1, x2 = (x.clamp(min=0, max=width) for x in (x1, x2))
    y1, y2 = (y.clamp(min=0, max=height) for y in (y1, y2))
    return torch.stack([x1, y1, x2, y2], dim=-1)


def decode(coder: Any, priors: Tensor, deltas: Tensor, size: Sequence[int]) -> Tensor:
    """Decode boxes as mmdet's DeltaXYWHBBoxCoder and DistancePointBBoxCoder do.

    Args:
        coder: the coder.
        priors: (..., 4) boxes, or (..., 2) points for distances.
        deltas: (..., 4).
        size: height and width of the image.

    Returns:
        (..., 4) x1, y1, x2, y2.
    """
    if type(coder).__name__ == "DistancePointBBoxCoder":
        boxes = torch.cat([priors - deltas[..., :2], priors + deltas[..., 2:]], dim=-1)
    else:
        deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
        center, sides = (priors[..., :2] + priors[..., 2:]) * 0.5, priors[..., 2:] - priors[..., :2]
        center = center + sides * deltas[..., :2]
        sides = sides * deltas[..., 2:].clamp(min=-MAX_LOG_RATIO, max=MAX_LOG_RATIO).exp()
        boxes = torch.cat([center - sides * 0.5, center + sides * 0.5], dim=-1)
    return clip(boxes, size) if coder.clip_border else boxes


def drop_small(scores: Tensor, boxes: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Make the scores of boxes negative that are not larger than ``min_bbox_size``; without it, of none."""
    smallest = config.get("min_bbox_size", -1)
    if smallest < 0:
        return scores
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return torch.where((width > smallest) & (height > smallest), scores, NO_CANDIDATE)


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Make the scores negative that :func:`~mmgcvit.export.operators.nms` removes; shapes as there."""
    return torch.where(nms(boxes, scores, iou_threshold), scores, NO_CANDIDATE)


def best(boxes: Tensor, scores: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Select the best detections of each image.

    Args:
        boxes: (B, N, 4).
        scores: (B, N), negative where there is no detection.
        labels: (B, N).
        k: number of detections.

    Returns:
        Boxes (B, k, 4), scores (B, k) and labels (B, k). Unused places have box 0, score 0 and label -1.
    """
    scores, indices = top_k(scores, k)
    used = scores >= 0
    boxes = torch.where(used[..., None], take(boxes, indices), 0)
    labels = torch.where(used, labels.gather(1, indices), -1)
    return boxes, scores.clamp(min=0), labels


def activate(head: Any, scores: Tensor) -> Tensor:
    """Return the probabilities of the classes, without background, from an anchor head's output (..., channels)."""
    return probability(scores) if head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]


def rows(x: Tensor, channels: int) -> Tensor:
    """Turn a map of an anchor head into rows: (B, anchors * channels, h, w) to (B, h * w * anchors, channels)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, channels)


def kind(part: Any) -> str:
    """Name of a part's class."""
    return type(part).__name__


def unsupported_kinds(parts: Sequence[tuple[str, Any, Sequence[str]]]) -> str:
    """Name the first part of a model whose class is not supported.

    Args:
        parts: name in the config, part, and names of the supported classes. Subclasses are other classes.

    Returns:
        The reason; '' if all are supported.
    """
    for name, part, allowed in parts:
        if kind(part) not in allowed:
            return f"{name}.type={kind(part)!r}; allowed: {', '.join(map(repr, allowed))}"
    return ""


def unsupported_coder(name: str, coder: Any) -> str:
    """Return why boxes are not decoded as here; '' if they are."""
    if getattr(coder, "add_ctr_clamp", False):
        return f"{name}.add_ctr_clamp=True; allowed: False"
    if coder.use_box_type:
        return f"{name}.use_box_type=True; allowed: False"
    return ""


def unsupported_selection(name: str, config: Mapping[str, Any], keys: Sequence[str], agnostic: bool) -> str:
    """Return why the selection of boxes differs from the one here.

    Args:
        name: name of the config.
        config: part of ``test_cfg``.
        keys: numbers that must be positive, such as 'nms_pre' and 'max_per_img'.
        agnostic: whether suppression across the classes is supported.

    Returns:
        The reason; '' if it is the same.
    """
    for key in keys:
        if config.get(key, -1) <= 0:
            return f"{name}.{key}={config.get(key)!r}; allowed: a positive number, because shapes are fixed"
    settings = config.get("nms")
    if settings is None or "iou_threshold" not in settings:
        return f"{name}.nms={settings}; allowed: dict(type='nms', iou_threshold=...)"
    if settings.get("type", "nms") != "nms":
        return f"{name}.nms.type={settings['type']!r}; allowed: 'nms'"
    # split_thr is about memory only.
    allowed = {"type", "iou_threshold", "split_thr"} | ({"class_agnostic"} if agnostic else set())
    for key, value in settings.items():
        if key not in allowed and not (key == "class_agnostic" and not value):
            return f"{name}.nms.{key}={value!r}; allowed: {', '.join(sorted(allowed))}"
    return ""
