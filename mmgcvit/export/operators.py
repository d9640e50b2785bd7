"""Operations of detectors as a graph needs them: shapes of outputs do not depend on the values of tensors.

A candidate that is no candidate (a box that is too small, a place that is not used) has a negative score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Score of a place without a candidate. Real scores are probabilities.
NO_CANDIDATE = -1.0
#: Between NO_CANDIDATE and the smallest probability, for operators with a threshold.
SMALLEST = -0.5


def probability(logits: Tensor) -> Tensor:
    """Compute the sigmoid of logits by which candidates are ranked.

    onnxruntime's Sigmoid is 0 below -18, and has steps of 6e-8 above. Its ties would rank candidates in another order.
    """
    return 1 / (1 + (-logits).exp())


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k largest scores of each row, in descending order.

    Args:
        scores: (B, N), where N may be smaller than k.
        k: number of scores.

    Returns:
        Scores and their indices, (B, k). If N is smaller than k, the last scores are negative and their indices are
        valid but meaningless.
    """
    values, indices = F.pad(scores, (0, k), value=NO_CANDIDATE).topk(k)
    return values, indices.clamp(max=scores.shape[1] - 1)


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Take rows of each image: (B, N, D) and (B, K) to (B, K, D)."""
    return x.gather(1, indices[..., None].expand(-1, -1, x.shape[-1]))


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Crop maps (..., H, W) to (..., height, width).

    After a slice, a graph of torch.export would hold either for maps that are smaller afterwards, or for maps that are
    not, as these are contiguous.
    """
    for axis, side in ((-2, height), (-1, width)):
        x = x.index_select(axis, torch.arange(side, device=x.device))
    return x


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression in independent groups.

    During ``torch.onnx.export`` it is an operator of its own, which becomes ONNX's NonMaxSuppression with
    :func:`translation_table`. Otherwise it consists of operators of torch and torchvision.

    Args:
        boxes: (G, N, 4) x1, y1, x2, y2.
        scores: (G, C, N); the boxes of a group compete within each of its C classes.
        iou_threshold: a box is removed if its overlap with a better one is larger than this.

    Returns:
        (G, C, N), True for the candidates that remain.
    """
    if torch.onnx.is_in_onnx_export():
        return _nms_operator()(boxes, scores, iou_threshold)
    return _nms(boxes, scores, iou_threshold)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Suppress with torchvision: one call for all groups, which are moved apart."""
    from torchvision.ops import nms as suppress

    _, classes, count = scores.shape
    flat = scores.flatten()
    candidates = (flat > SMALLEST).nonzero().squeeze(1)
    group = candidates // count
    box = group // classes * count + candidates - group * count
    # In float32, the distances between the groups would cost digits of the boxes.
    low, high = boxes.min().double(), boxes.max().double()
    corners = boxes.flatten(0, 1).index_select(0, box).double() + (group * (high - low + 1))[:, None]
    # Two more boxes, beside all others, always remain: torchvision promises torch.export at least two.
    corners = torch.cat([corners, low - corners.new_tensor([[4, 4, 3, 3], [2, 2, 1, 1]])])
    rank = F.pad(flat.index_select(0, candidates), (0, 2), value=NO_CANDIDATE)
    places = torch.cat([candidates, flat.shape[0] + torch.arange(2, device=flat.device)])
    kept = places.index_select(0, suppress(corners, rank.double(), iou_threshold))
    marks = torch.zeros(flat.shape[0] + 2, dtype=torch.bool, device=flat.device).index_fill(0, kept, True)
    return marks[: flat.shape[0]].view_as(scores)


@cache
def _nms_operator() -> Callable[..., Tensor]:
    """Register the operator that stands for :func:`nms` during the export to ONNX."""
    schema = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
    operator = torch.library.custom_op("mmgcvit::nms", _nms, mutates_args=(), schema=schema)
    operator.register_fake(lambda boxes, scores, iou_threshold: torch.empty_like(scores, dtype=torch.bool))
    return torch.ops.mmgcvit.nms.default


def translation_table() -> dict[Callable, Callable]:
    """Return ``custom_translation_table`` of ``torch.onnx.export`` for the operators of this module."""
    import onnxscript

    op: Any = onnxscript.opset18

    def translate(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        # Rows of (group, class, box), at most as many as there are.
        kept = op.NonMaxSuppression(boxes, scores, 2**63 - 1, iou_threshold, SMALLEST)
        ones = op.Expand(1.0, op.Slice(op.Shape(kept), [0], [1]))
        marks = op.ScatterND(op.ConstantOfShape(op.Shape(scores)), kept, ones)
        return op.Greater(marks, 0.0)

    return {_nms_operator(): translate}


class AnySize(TorchFunctionMode):
    """Replaces, while it is active, operations of mmdet's modules that would fix the size of a captured graph.

    torch's max-pooling makes a graph depend on whether the size is odd. With kernel size 1, as an FPN uses it for its
    extra levels, it is a selection of pixels.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation or its replacement."""
        kwargs = kwargs or {}
        if func in (F.max_pool2d, torch.max_pool2d):
            settings = dict(zip(("input", "kernel_size", "stride", "padding", "dilation"), args, strict=False)) | kwargs
            x, stride, padding = settings["input"], settings.get("stride"), settings.get("padding", 0)
            if settings["kernel_size"] == 1 and isinstance(stride, int) and padding == 0:
                for axis in (2, 3):
                    places = stride * torch.arange((x.shape[axis] - 1) // stride + 1, device=x.device)
                    x = x.index_select(axis, places)
                return x
        return func(*args, **kwargs)


def features(model: Any, x: Tensor) -> Sequence[Tensor]:
    """Return the maps of a detector's backbone and neck for normalized images."""
    with AnySize():
        return model.extract_feat(x)


def roi_align(extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Compute what mmdet's SingleRoIExtractor does, for all boxes at all levels of the pyramid.

    At the levels to which a box does not belong, it is empty, which costs next to nothing if the number of samples
    adapts to the size (``sampling_ratio=0``).

    Args:
        extractor: the SingleRoIExtractor.
        maps: feature maps (B, C, h, w) of the levels.
        boxes: (B, N, 4) in pixels of the input.

    Returns:
        (B * N, C, height, width).
    """
    from torchvision.ops import roi_align as align

    batch, count = boxes.shape[:2]
    image = torch.arange(batch * count, device=boxes.device) // count
    rois = torch.cat([image.to(boxes.dtype)[:, None], boxes.flatten(0, 1)], dim=1)
    levels = extractor.map_roi_levels(rois, len(maps))
    # The values of empty boxes are 0 in torch, but not everywhere.
    sides = rois[:, 3:] - rois[:, 1:3]
    filled = (sides[:, 0] > 0) & (sides[:, 1] > 0)
    total: Tensor | None = None
    for level, (layer, x) in enumerate(zip(extractor.roi_layers, maps, strict=True)):
        here = filled & (levels == level)
        own = torch.cat([rois[:, :1], torch.where(here[:, None], rois[:, 1:], 0)], dim=1)
        part = align(x, own, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        part = torch.where(here[:, None, None, None], part, 0)
        total = part if total is None else total + part
    assert total is not None
    return total
