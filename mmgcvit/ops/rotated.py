"""Operators of rotated boxes (x, y, width, height, angle): overlaps, non-maximum suppression and RoIAlign.

An angle is in radians; a positive one turns the x axis towards the y axis, clockwise in an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from mmgcvit.ops.nms import at_least_float32
from mmgcvit.ops.roi_cpu import Setting, neighbours

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


@dataclass(frozen=True)
class _Axis:
    """Samples of regions along their width or their height: ``step`` apart, numbered from one side to the other.

    Of each bin, those numbers are kept whose samples can be on the map.
    """

    start: Tensor  # (N,) side at which the numbers begin, relative to the centre
    step: Tensor  # (N,)
    first: Tensor  # (N * bins,) first number of each bin that is kept
    kept: Tensor  # (N * bins,) how many are kept
    count: Tensor  # (N,) samples of a bin, with those that are not kept

    def position(self, number: Tensor, region: Tensor) -> Tensor:
        """Where samples (S,) of regions (S,) are, relative to their centres."""
        return self.start[region] + (number.double() + 0.5) * self.step[region]


def _axis(sides: Tensor, bins: int, ratio: int, ends: Tensor) -> _Axis:
    """Place the samples of regions with sides (N,); the map is between the ends (N, 2), relative to the centres."""
    step = sides / bins
    count = (torch.full_like(step, ratio) if ratio > 0 else step.ceil()).clamp(0, 2**31).long()
    start, step = sides.double() / -2, step.double() / count.clamp(min=1)
    at = ((ends - start[:, None]) / step[:, None] - 0.5).sort(dim=1).values  # numbers at the ends of the map
    at = at.where(step[:, None] != 0, at.new_tensor([-math.inf, math.inf]))  # without a side, all are at one place
    at = torch.stack([at[:, 0].floor(), at[:, 1].ceil() + 1], dim=1).nan_to_num()
    low, high = at.clamp(min=0).minimum((bins * count)[:, None].double()).long().split(1, dim=1)
    borders = torch.arange(bins + 1, device=sides.device) * count[:, None]
    borders = borders.maximum(low).minimum(high)
    return _Axis(start, step, borders[:, :-1].flatten(), borders.diff(dim=1).flatten(), count)


@dataclass(frozen=True)
class _Samples:
    """Some of the samples, sorted by bins, and the four pixels around each: S samples of successive bins."""

    bins: Tensor  # (S,) among all N * h * w bins
    offsets: Tensor  # where each bin begins among the samples, from the first to the last of ``bins``
    pixels: Tensor  # (S, 4) among all B * H * W pixels
    weights: Tensor  # (S, 4)


def _samples(regions: Tensor, shape: tuple[int, ...], setting: Setting) -> Iterator[_Samples]:
    """Yield the samples of regions (N, 6) on maps of a shape (B, C, H, W), at most :data:`MOST` at a time.

    Samples outside of the map add nothing. Most of those in a region much larger than the map are not made.
    """
    height, width = shape[2:]
    rows, columns = setting.size
    centre = regions[:, 1:3] * setting.scale - (0.5 if setting.aligned else 0.0)
    sides = regions[:, 3:5] * setting.scale
    sides = sides if setting.aligned else sides.clamp(min=1)
    angle = regions[:, 5].double()
    finite = (centre.isfinite() & sides.isfinite()).all(dim=1) & angle.isfinite()
    low, high = (-1 - centre).double(), regions.new_tensor([width, height]).double() - centre
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    # The map on the axes of a region, (N, 2, 2): a corner of it is the sum of a horizontal and a vertical part.
    ends = torch.stack([turn * low[:, None], turn * high[:, None]], dim=3).sort(dim=3).values.sum(dim=2)
    across, down = (_axis(sides[:, i], setting.size[1 - i], setting.ratio, ends[:, i]) for i in (0, 1))
    sizes = down.kept.view(-1, rows, 1) * across.kept.view(-1, 1, columns) * finite.view(-1, 1, 1)
    last = sizes.flatten().cumsum(0)  # number of the last sample of each bin, plus 1
    begin = last - sizes.flatten()
    total = int(last[-1]) if len(last) else 0
    for start in range(0, total, MOST):
        number = torch.arange(start, min(start + MOST, total), device=regions.device)
        bins = torch.searchsorted(last, number, right=True)
        line = torch.div(bins, columns, rounding_mode="floor")
        region = torch.div(line, rows, rounding_mode="floor")
        column = bins - (line - region) * columns
        inner, length = number - begin[bins], across.kept[column]
        row = torch.div(inner, length, rounding_mode="floor")
        u = across.position(across.first[column] + inner - row * length, region)
        v = down.position(down.first[line] + row, region)
        cos, sin = turn[region, 0].unbind(dim=1)
        x, y = cos * u - sin * v + centre[region, 0], sin * u + cos * v + centre[region, 1]
        left, right, beside, inside_x = neighbours(x, width)
        top, bottom, below, inside_y = neighbours(y, height)
        weight = (inside_x & inside_y) / (across.count * down.count)[region]
        image = regions[region, 0].long() * (height * width)
        pixels = [image + i * width + j for i in (top, bottom) for j in (left, right)]
        weights = [weight * v * h for v in (1 - below, below) for h in (1 - beside, beside)]
        offsets = (begin[int(bins[0]) : int(bins[-1]) + 1] - start).clamp(min=0)
        yield _Samples(bins, offsets, torch.stack(pixels, dim=1), torch.stack(weights, dim=1).to(regions.dtype))


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
    setting = Setting((pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned)
    rows = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
    pooled = rows.new_zeros(len(rois) * pooled_height * pooled_width, maps.shape[1])
    for part in _samples(_clockwise(regions, clockwise), tuple(maps.shape), setting):
        added = F.embedding_bag(
            part.pixels.flatten(), rows, 4 * part.offsets, per_sample_weights=part.weights.flatten(), mode="sum"
        )
        first = int(part.bins[0])
        pooled[first : first + len(added)] += added  # a bin may continue in the next part
    output.copy_(pooled.view(len(rois), *setting.size, maps.shape[1]).permute(0, 3, 1, 2))


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
    setting, shape = Setting((pooled_height, pooled_width), spatial_scale, sampling_ratio, aligned), bottom_grad.shape
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, shape[1])
    total = rows.new_zeros(shape[0] * shape[2] * shape[3], shape[1])
    for part in _samples(_clockwise(regions, clockwise), tuple(shape), setting):
        sorted_pixels, order = part.pixels.flatten().sort(stable=True)
        pixels, counts = sorted_pixels.unique_consecutive(return_counts=True)
        bins = part.bins.repeat_interleave(4)[order]
        weights = part.weights.flatten()[order]
        added = F.embedding_bag(bins, rows, counts.cumsum(0) - counts, per_sample_weights=weights, mode="sum")
        total.index_add_(0, pixels, added)
    bottom_grad.copy_(total.view(shape[0], shape[2], shape[3], shape[1]).permute(0, 3, 1, 2))


def _clockwise(regions: Tensor, clockwise: bool) -> Tensor:
    """Regions (N, 6) with angles that turn clockwise."""
    return regions if clockwise else torch.cat([regions[:, :5], -regions[:, 5:]], dim=1)
