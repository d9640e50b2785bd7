"""Pooling of regions: RoIAlign by torchvision or, on a CPU, :mod:`.roi_cpu`; its maximum, and RoIPool, in torch.

Regions are rows (index of the image, x1, y1, x2, y2) in pixels of the image; ``spatial_scale`` scales them to the map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

from mmgcvit.compat import roi_align_gradient
from mmgcvit.ops import roi_cpu
from mmgcvit.ops.nms import at_least_float32
from mmgcvit.ops.roi_cpu import neighbours

#: Value of a bin without samples in mmcv's maximum.
NO_SAMPLE = -10000.0


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (https://arxiv.org/abs/1703.06870): (B, C, H, W), (N, 5) -> (N, C, h, w).

    Args:
        input: the map.
        rois: regions. One of negative size gives zeros.
        output: the result.
        argmax_y: gets the y of the largest samples, of the shape of ``output``, if ``pool_mode`` is 0.
        argmax_x: their x.
        aligned_height: height of the result.
        aligned_width: its width.
        spatial_scale: size of the map divided by that of the image.
        sampling_ratio: samples per bin and axis; 0 or less: as many as the bin has pixels, rounded up.
        pool_mode: 0 takes the maximum of a bin, 1 the mean.
        aligned: pixels are centred at half coordinates; else regions are one pixel large at least.
    """
    size = (aligned_height, aligned_width)
    maps, regions = at_least_float32(input, rois)
    if pool_mode:
        setting = roi_cpu.Setting(size, spatial_scale, sampling_ratio, aligned)
        if roi_cpu.pays(tuple(maps.shape), regions, setting):
            output.copy_(roi_cpu.pool(maps, regions, setting))
        else:
            output.copy_(roi_align(maps, regions, size, spatial_scale, sampling_ratio, aligned))
        return
    for n, image in enumerate(regions[:, 0].long().tolist()):
        features = maps[image]
        ys, xs = _samples(regions[n, 1:], size, spatial_scale, sampling_ratio, aligned)
        best, at = _largest(features, ys, xs)
        output[n] = best.clamp(min=NO_SAMPLE)
        nothing = (at < 0) | (best <= NO_SAMPLE)
        at = at.clamp(min=0)
        rows, columns = torch.arange(size[0], device=at.device), torch.arange(size[1], device=at.device)
        across = max(xs.shape[1], 1)
        if ys.numel() and xs.numel():
            argmax_y[n] = ys[rows[:, None], at // across].masked_fill(nothing, -1)
            argmax_x[n] = xs[columns, at % across].masked_fill(nothing, -1)
        else:
            argmax_y[n] = argmax_x[n] = -1


def _samples(corners: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Coordinates of a region's samples: y (h, samples per bin) and x (w, samples per bin)."""
    x1, y1, x2, y2 = corners * scale - (0.5 if aligned else 0.0)
    positions = []
    for start, end, bins in ((y1, y2, size[0]), (x1, x2, size[1])):
        length = end - start
        if not aligned:
            length = length.clamp(min=1)
        count = ratio if ratio > 0 else max(int(torch.ceil(length / bins)), 0)
        step, bin_index = length / bins, torch.arange(bins, device=corners.device)[:, None]
        inner = torch.arange(count, device=corners.device) + corners.new_tensor(0.5)
        positions.append(start + bin_index * step + inner * step / max(count, 1))
    return positions[0], positions[1]


def _largest(features: Tensor, ys: Tensor, xs: Tensor) -> tuple[Tensor, Tensor]:
    """Largest sample of each bin and its number in the bin (-1: the bin has none): (C, H, W) -> twice (C, h, w)."""
    shape = (len(features), len(ys), len(xs))
    if not ys.numel() or not xs.numel():
        return features.new_full(shape, NO_SAMPLE), ys.new_full(shape, -1, dtype=torch.long)
    top, bottom, down, inside_y = neighbours(ys.flatten(), features.shape[1])
    left, right, along, inside_x = neighbours(xs.flatten(), features.shape[2])
    down = down[:, None]
    values = (
        (1 - down) * (1 - along) * features[:, top[:, None], left]
        + (1 - down) * along * features[:, top[:, None], right]
        + down * (1 - along) * features[:, bottom[:, None], left]
        + down * along * features[:, bottom[:, None], right]
    )
    values = values.where(inside_y[:, None] & inside_x, 0)
    values = values.unflatten(2, xs.shape).unflatten(1, ys.shape)  # (C, h, samples, w, samples)
    found = values.transpose(2, 3).flatten(3).max(dim=3)
    return found.values, found.indices


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of RoIAlign with respect to the map, written to ``grad_input``: (N, C, h, w) -> (B, C, H, W)."""
    gradient, regions = at_least_float32(grad_output, rois)
    if pool_mode:
        size, shape = (aligned_height, aligned_width), tuple(grad_input.shape)
        setting = roi_cpu.Setting(size, spatial_scale, sampling_ratio, aligned)
        if roi_cpu.pays(shape, regions, setting):
            grad_input.copy_(roi_cpu.pool_gradient(gradient, regions, shape, setting))
            return
        if gradient.is_cuda and torch.are_deterministic_algorithms_enabled():  # torchvision has a slower one in Python
            maps = gradient.new_zeros(grad_input.shape).requires_grad_()
            with torch.enable_grad():
                pooled = roi_align(maps, regions, size, spatial_scale, sampling_ratio, aligned)
            grad_input.copy_(torch.autograd.grad(pooled, maps, gradient)[0])
            return
        grad_input.copy_(roi_align_gradient(gradient, regions, spatial_scale, size, shape, sampling_ratio, aligned))
        return
    _, channels, height, width = grad_input.shape
    ys, xs = argmax_y.to(gradient.dtype), argmax_x.to(gradient.dtype)
    top, bottom, down, inside_y = neighbours(ys, height)
    left, right, along, inside_x = neighbours(xs, width)
    image = regions[:, 0].long()[:, None] * channels + torch.arange(channels, device=regions.device)
    first = image[:, :, None, None] * height * width
    gradient = gradient.where(inside_y & inside_x & (ys != -1), 0)
    total = gradient.new_zeros(grad_input.numel())
    for rows, columns, weight in (
        (top, left, (1 - down) * (1 - along)),
        (top, right, (1 - down) * along),
        (bottom, left, down * (1 - along)),
        (bottom, right, down * along),
    ):
        total.index_add_(0, (first + rows * width + columns).flatten(), (gradient * weight).flatten())
    grad_input.copy_(total.view_as(grad_input))


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool (https://arxiv.org/abs/1504.08083): the maximum of each bin, (B, C, H, W), (N, 5) -> (N, C, h, w).

    Bins are those of mmcv: a region reaches from x1 * scale to (x2 + 1) * scale without rounding, a bin is rounded
    outwards. torchvision's ``roi_pool`` rounds the region first.

    Args:
        input: the map.
        rois: regions. One without area gives zeros.
        output: the result; an empty bin is 0.
        argmax: gets the position of each maximum in the map (y * W + x), -1 for an empty bin.
        pooled_height: height of the result.
        pooled_width: its width.
        spatial_scale: size of the map divided by that of the image.
    """
    maps, regions = at_least_float32(input, rois)
    height, width = maps.shape[2:]
    output.zero_()
    argmax.fill_(-1)
    starts, ends = regions[:, 1:3] * spatial_scale, (regions[:, 3:] + 1) * spatial_scale
    row_bins = _bins(starts[:, 1], ends[:, 1], pooled_height, height)
    column_bins = _bins(starts[:, 0], ends[:, 0], pooled_width, width)
    for n, image in enumerate(regions[:, 0].long().tolist()):
        if not bool((ends[n] > starts[n]).all()):
            continue
        rows, valid_rows = _pixels(row_bins[:, n], height)
        columns, valid_columns = _pixels(column_bins[:, n], width)
        if not rows.numel() or not columns.numel():
            continue
        at = (rows[:, None, :, None] * width + columns[:, None]).flatten(2)  # (h, w, pixels of a bin)
        valid = (valid_rows[:, None, :, None] & valid_columns[:, None]).flatten(2)
        values = maps[image].flatten(1)[:, at].masked_fill(~valid, -torch.inf)
        best = values.max(dim=3)
        empty = ~valid.any(dim=2)
        output[n] = best.values.masked_fill(empty, 0)
        positions = at.expand(len(values), -1, -1, -1).gather(3, best.indices[..., None])[..., 0]
        argmax[n] = positions.masked_fill(empty, -1)


def _bins(start: Tensor, end: Tensor, bins: int, size: int) -> Tensor:
    """First pixel of each bin, and the one after its last, within the map: (N,), (N,) -> (2, N, bins)."""
    step = ((end - start) / bins)[:, None]
    number = torch.arange(bins, device=start.device)
    first = (number * step + start[:, None]).floor()
    last = ((number + 1) * step + start[:, None]).ceil()
    return torch.stack([first, last]).clamp(0, size).long()


def _pixels(bins: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Pixels of bins of different sizes: (2, bins) -> (bins, size of the largest), and which of them count."""
    first, last = bins
    count = max(int((last - first).max()), 0)
    pixels = first[:, None] + torch.arange(count, device=first.device)
    return pixels.clamp(max=size - 1), pixels < last[:, None]


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of RoIPool with respect to the map, written to ``grad_input``: (N, C, h, w) -> (B, C, H, W)."""
    _, channels, height, width = grad_input.shape
    image = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    target = image[:, :, None, None] * (height * width) + argmax.long()
    counted = argmax >= 0
    (gradient,) = at_least_float32(grad_output)
    total = gradient.new_zeros(grad_input.numel())
    grad_input.copy_(total.index_add_(0, target[counted], gradient[counted]).view_as(grad_input))
