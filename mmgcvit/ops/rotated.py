"""Operators of rotated boxes (x, y, width, height, angle): overlaps, non-maximum suppression and RoIAlign.

An angle is in radians; a positive one turns the x axis towards the y axis, clockwise in an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from mmgcvit.ops.nms import at_least_float32
from mmgcvit.ops.roi_cpu import neighbours

MOST = 2**16  # pairs of boxes, or samples of regions, that are in memory at a time


def _corners(boxes: Tensor) -> Tensor:
    """Corners in order around a box: (K, 5) -> (K, 4, 2)."""
    centre, angle = boxes[:, None, :2], boxes[:, 4]
    along = torch.stack([angle.cos(), angle.sin()], dim=1) * boxes[:, 2:3] / 2
    across = torch.stack([-angle.sin(), angle.cos()], dim=1) * boxes[:, 3:4] / 2
    return centre + torch.stack([-along - across, along - across, along + across, across - along], dim=1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    """Cross product of vectors: twice (..., 2) -> (...)."""
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points are in a box, or on its edges up to rounding: (K, 4, 2), (K, 5) -> (K, 4)."""
    offset, angle = points - boxes[:, None, :2], boxes[:, 4:]
    x = offset[..., 0] * angle.cos() + offset[..., 1] * angle.sin()
    y = offset[..., 1] * angle.cos() - offset[..., 0] * angle.sin()
    half = boxes[:, 2:4] / 2 + 1e-9 * boxes[:, 2:4].amax(1, keepdim=True)
    return (x.abs() <= half[:, :1]) & (y.abs() <= half[:, 1:])


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    """Areas that boxes have in common, pair by pair: twice (K, 5) -> (K,).

    The common part is a convex polygon. Its corners are crossings of edges, and corners of one box inside the other.
    """
    a, b = _corners(first), _corners(second)
    edges_a, edges_b = (corners.roll(-1, dims=1) - corners for corners in (a, b))
    a_to_b = b[:, None] - a[:, :, None]  # (K, 4, 4, 2)
    turn = _cross(edges_a[:, :, None], edges_b[:, None])
    at_a, at_b = (
        _cross(a_to_b, edges_b[:, None]) / turn,
        _cross(a_to_b, edges_a[:, :, None]) / turn,
    )  # parallel: inf, NaN
    crosses = (at_a >= 0) & (at_a <= 1) & (at_b >= 0) & (at_b <= 1)
    crossings = a[:, :, None] + at_a[..., None] * edges_a[:, :, None]
    points = torch.cat([crossings.flatten(1, 2), a, b], dim=1)  # (K, 24, 2)
    valid = torch.cat([crosses.flatten(1), _inside(a, second), _inside(b, first)], dim=1)
    # A point that does not count is replaced by one that does, which leaves the polygon as it is.
    some = points[torch.arange(len(points), device=points.device), valid.int().argmax(dim=1)]
    points = points.where(valid[..., None], some[:, None])
    points = (points - points.mean(dim=1, keepdim=True)).nan_to_num()  # all NaN only where nothing counts
    order = torch.atan2(points[..., 1], points[..., 0]).argsort(dim=1)
    points = points.gather(1, order[..., None].expand_as(points))
    return (_cross(points, points.roll(-1, dims=1)).sum(dim=1).abs() / 2).where(valid.any(dim=1), 0)


def _overlaps(first: Tensor, second: Tensor, of_first: bool = False) -> Tensor:
    """IoU of boxes pair by pair, or their common area in units of the first's: twice (K, 5) -> (K,).

    A box without area has no overlap.
    """
    parts = []
    for a, b in zip(first.double().split(MOST), second.double().split(MOST), strict=True):
        origin = F.pad(a[:, :2], (0, 3))  # centres at 0: no digits are lost
        common = _intersections(a - origin, b - origin)
        area_a, area_b = a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]
        whole = area_a if of_first else area_a + area_b - common
        parts.append((common / whole).where((area_a > 1e-14) & (area_b > 1e-14), 0))
    return torch.cat(parts) if parts else first.new_zeros(0).double()


def _near(first: Tensor, second: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices of pairs whose upright bounding boxes overlap: (N, 5), (M, 5) -> twice (K,)."""
    bounds = []
    for boxes in (first, second):
        corners = _corners(boxes.double())
        bounds.append((corners.amin(dim=1), corners.amax(dim=1)))
    (low_a, high_a), (low_b, high_b) = bounds
    step = max(2**22 // max(len(second), 1), 1)
    for start in range(0, len(first), step):
        rows = slice(start, start + step)
        overlap = (low_a[rows, None] <= high_b) & (high_a[rows, None] >= low_b)
        i, j = overlap.all(dim=2).nonzero(as_tuple=True)
        yield i + start, j


@torch.no_grad()
def box_iou_rotated(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Overlaps of rotated boxes, written to ``ious``: (N, 5), (M, 5) -> (N * M,), or (N,) if ``aligned``.

    Args:
        bboxes1: boxes.
        bboxes2: other boxes.
        ious: the result.
        mode_flag: 0 for intersection over union, 1 for intersection over the area of the first box.
        aligned: whether boxes are compared pair by pair.
    """
    if aligned:
        ious.copy_(_overlaps(bboxes1, bboxes2, mode_flag == 1))
        return
    ious.zero_()
    for i, j in _near(bboxes1, bboxes2):
        ious.view(-1)[i * len(bboxes2) + j] = _overlaps(bboxes1[i], bboxes2[j], mode_flag == 1).to(ious.dtype)


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Indices of the rotated boxes that remain, by descending score: (N, 5 or 6), (N,) -> (K,).

    Args:
        dets: boxes, and their labels if ``multi_label``.
        scores: their scores.
        order: indices of the boxes by descending score.
        dets_sorted: the boxes in this order.
        labels: not used: the labels are in ``dets``.
        iou_threshold: a box is suppressed if its IoU with a remaining box of a higher score is above.
        multi_label: whether only boxes of the same label are compared.
    """
    boxes = dets_sorted[:, :5]
    pairs = []
    for i, j in _near(boxes, boxes):
        kept = i < j
        if multi_label:
            kept &= dets_sorted[i, 5] == dets_sorted[j, 5]
        i, j = i[kept], j[kept]
        found = _overlaps(boxes[i], boxes[j]) > iou_threshold
        pairs.append(torch.stack([i[found], j[found]]))
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    if pairs:
        i, j = torch.cat(pairs, dim=1).cpu()
        starts = torch.searchsorted(i, torch.arange(len(boxes) + 1)).tolist()
        for number, (start, end) in enumerate(pairwise(starts)):
            if not suppressed[number]:
                suppressed[j[start:end]] = True
    return order[~suppressed.to(order.device)]


def _finite(sides: Tensor) -> Tensor:
    """Replace sides that are not finite by 0: such regions have no samples."""
    return sides.nan_to_num(0, posinf=0, neginf=0)


def _pool(rows: Tensor, rois: Tensor, shape: tuple[int, ...], size: tuple[int, int], scale: float, ratio: int,
          aligned: bool, clockwise: bool) -> Tensor:  # fmt: skip
    """RoIAlign of rotated regions: pixels (B * H * W, C) of a map ``shape``, (N, 6) -> (N * h * w, C)."""
    height, width = shape[2:]
    x, y = (rois[:, axis] * scale - (0.5 if aligned else 0.0) for axis in (1, 2))
    sides = rois[:, 3:5] * scale if aligned else (rois[:, 3:5] * scale).clamp(min=1)
    angle = rois[:, 5] if clockwise else -rois[:, 5]
    along, counts = [], []
    for axis, bins in ((1, size[0]), (0, size[1])):
        step = sides[:, axis] / bins
        count = torch.full_like(step, ratio) if ratio > 0 else _finite(step).ceil().clamp(min=0)
        inner = torch.arange(max(int(count.max()), 1), device=rois.device)
        position = torch.arange(bins, device=rois.device)[:, None] + (inner + 0.5) / count.clamp(min=1)[:, None, None]
        along.append(position * step[:, None, None] - sides[:, axis, None, None] / 2)  # (N, bins, samples)
        counts.append(inner < count[:, None])  # (N, samples)
    down, right = along[0][:, :, None, :, None], along[1][:, None, :, None]
    sin, cos = (value.view(-1, 1, 1, 1, 1) for value in (angle.sin(), angle.cos()))
    columns = right * cos - down * sin + x.view(-1, 1, 1, 1, 1)  # (N, h, w, samples, samples)
    lines = right * sin + down * cos + y.view(-1, 1, 1, 1, 1)
    counted = (counts[0][:, :, None] & counts[1][:, None])[:, None, None]
    top, bottom, below, inside_y = neighbours(lines, height)
    left, right, beside, inside_x = neighbours(columns, width)
    weight = (counted & inside_y & inside_x).to(rows.dtype) / counted.sum(dim=(3, 4), keepdim=True).clamp(min=1)
    first = (rois[:, 0].long() * height * width).view(-1, 1, 1, 1, 1)
    pixels = torch.stack([first + line * width + column for line in (top, bottom) for column in (left, right)], dim=3)
    weights = torch.stack([weight * v * h for v in (1 - below, below) for h in (1 - beside, beside)], dim=3)
    bags = len(rois) * size[0] * size[1]
    return F.embedding_bag(pixels.reshape(bags, -1), rows, per_sample_weights=weights.reshape(bags, -1), mode="sum")


def _chunks(rois: Tensor, size: tuple[int, int], scale: float, ratio: int) -> Iterator[slice]:
    """Yield slices of the regions, such that those of a slice have few samples."""
    largest = int((_finite(rois[:, 3:5]).amax() * scale / min(size)).ceil()) if len(rois) else 1
    samples = size[0] * size[1] * max(ratio if ratio > 0 else largest, 1) ** 2
    step = max(MOST // samples, 1)
    for start in range(0, len(rois), step):
        yield slice(start, start + step)


def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """RoIAlign of rotated regions, written to ``output``: (B, C, H, W), (N, 6) -> (N, C, h, w).

    Args:
        input: the map.
        rois: regions (index of the image, x, y, width, height, angle).
        output: the result.
        pooled_height: height of the result.
        pooled_width: its width.
        spatial_scale: size of the map divided by that of the image.
        sampling_ratio: samples per bin and axis; 0 or less: as many as the bin has pixels, rounded up.
        aligned: pixels are centred at half coordinates; else regions are one pixel large at least.
        clockwise: whether a positive angle turns clockwise.
    """
    maps, regions = at_least_float32(input, rois)
    size, shape = (pooled_height, pooled_width), tuple(maps.shape)
    rows = maps.permute(0, 2, 3, 1).reshape(-1, shape[1])
    for part in _chunks(regions, size, spatial_scale, sampling_ratio):
        pooled = _pool(rows, regions[part], shape, size, spatial_scale, sampling_ratio, aligned, clockwise)
        output[part] = pooled.view(-1, *size, shape[1]).permute(0, 3, 1, 2).to(output.dtype)


def roi_align_rotated_backward(
    top_grad: Tensor,
    rois: Tensor,
    bottom_grad: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """Gradient with respect to the map, written to ``bottom_grad``: (N, C, h, w) -> (B, C, H, W)."""
    gradient, regions = at_least_float32(top_grad, rois)
    size, shape = (pooled_height, pooled_width), tuple(bottom_grad.shape)
    total = gradient.new_zeros(shape[0] * shape[2] * shape[3], shape[1])
    for part in _chunks(regions, size, spatial_scale, sampling_ratio):
        rows = torch.zeros_like(total).requires_grad_()
        with torch.enable_grad():
            pooled = _pool(rows, regions[part], shape, size, spatial_scale, sampling_ratio, aligned, clockwise)
        total += torch.autograd.grad(pooled, rows, gradient[part].permute(0, 2, 3, 1).reshape(-1, shape[1]))[0]
    bottom_grad.copy_(total.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2))
