"""RoIAlign on a CPU: each bin is a weighted sum of pixels.

torchvision computes each sample for one channel after another, on one core. Here the pixels and weights of each bin
are found once, and ``embedding_bag`` adds up whole pixels, all channels at once, on all cores. In the backward pass, it
adds up the bins of each pixel. Both are deterministic, and differ from torchvision by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 2**22  # entries that are in memory at a time: about 200 MB
LONGEST = 64  # samples of a bin along an axis


@dataclass(frozen=True)
class Setting:
    """Arguments of RoIAlign: bins (h, w), scale of the map, samples per bin and axis, and alignment of pixels."""

    size: tuple[int, int]
    scale: float
    ratio: int
    aligned: bool


@dataclass(frozen=True)
class _Axis:
    """Where the samples of all bins are on an axis.

    Each sample lies between two pixels: (N, bins, 2 * samples of the largest bin), of which the first ``counts`` count.
    """

    pixels: Tensor
    weights: Tensor
    counts: Tensor  # (N,)


@dataclass(frozen=True)
class _Entries:
    """Pixels of bins: what is added to which bin with which weight, sorted by bins. E entries, N * h * w bins."""

    bins: Tensor  # (E,) int32
    pixels: Tensor  # (E,) int32, among all B * H * W pixels
    weights: Tensor  # (E,)
    offsets: Tensor  # (N * h * w,) int32: first entry of each bin


def pays(shape: tuple[int, ...], regions: Tensor, setting: Setting) -> bool:
    """Whether maps of a shape (B, C, H, W) are pooled faster here: if there are many samples for their pixels.

    Otherwise, it costs more than it saves to bring the channels of a pixel together.
    """
    if regions.device.type != "cpu" or not len(regions):
        return False
    counts = [_spans(regions, setting, axis)[2] for axis in (0, 1)]
    samples = float((counts[0].double() * counts[1]).sum()) * setting.size[0] * setting.size[1]
    return max(int(count.max()) for count in counts) <= LONGEST and 2 * samples > shape[0] * shape[2] * shape[3]


def pool(maps: Tensor, regions: Tensor, setting: Setting) -> Tensor:
    """RoIAlign: (B, C, H, W), (N, 5) -> (N, C, h, w), of other strides."""
    channels = maps.shape[1]
    rows = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled = [
        F.embedding_bag(each.pixels, rows, each.offsets, per_sample_weights=each.weights, mode="sum")
        for _, each in _parts(maps.shape, regions, setting)
    ]
    return torch.cat(pooled).view(len(regions), *setting.size, channels).permute(0, 3, 1, 2)


def pool_gradient(gradient: Tensor, regions: Tensor, shape: tuple[int, ...], setting: Setting) -> Tensor:
    """Gradient with respect to the maps: (N, C, h, w) -> (B, C, H, W), of other strides."""
    batch, channels, height, width = shape
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, channels)
    total: Tensor | None = None
    for first, each in _parts(shape, regions, setting):
        pixels, order = each.pixels.sort(stable=True)
        counts = torch.bincount(pixels, minlength=batch * height * width)
        offsets = (counts.cumsum(0) - counts).int()
        bins = each.bins.index_select(0, order) + first
        added = F.embedding_bag(bins, rows, offsets, per_sample_weights=each.weights.index_select(0, order), mode="sum")
        total = added if total is None else total.add_(added)
    assert total is not None
    return total.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _parts(shape: tuple[int, ...], regions: Tensor, setting: Setting) -> Iterator[tuple[int, _Entries]]:
    """Yield the entries of the first regions, of the next ones, and so on, with the number of their first bin."""
    counts = [2 * _spans(regions, setting, axis)[2] for axis in (0, 1)]
    bins = setting.size[0] * setting.size[1]
    ends = (counts[0] * counts[1] * bins).cumsum(0)
    numbers = (ends // MOST).tolist()
    start = 0
    for i in range(1, len(regions) + 1):
        if i == len(regions) or numbers[i] != numbers[start]:
            yield start * bins, _entries(shape, regions[start:i], setting)
            start = i


def _entries(shape: tuple[int, ...], regions: Tensor, setting: Setting) -> _Entries:
    _, _, height, width = shape
    rows, columns = setting.size
    ys, xs = _axis(regions, setting, 1, height), _axis(regions, setting, 0, width)
    each = (ys.counts * xs.counts).repeat_interleave(rows * columns)  # of each bin
    ends = each.cumsum(0)
    offsets = (ends - each).int()
    bin_index = torch.arange(len(each), dtype=torch.int32)
    bins = bin_index.repeat_interleave(each)
    region = torch.div(bin_index, rows * columns, rounding_mode="floor")
    row = torch.div(bin_index, columns, rounding_mode="floor")  # of all regions
    column = region * columns + bin_index % columns
    # Entries of a bin: its samples on the y axis times those on the x axis.
    inner = torch.arange(len(bins), dtype=torch.int32) - offsets.index_select(0, bins)
    across = xs.counts.int().index_select(0, region).index_select(0, bins)
    down = torch.div(inner, across, rounding_mode="floor")
    along = inner - down * across
    y = (row * ys.pixels.shape[2]).index_select(0, bins) + down
    x = (column * xs.pixels.shape[2]).index_select(0, bins) + along
    image = regions[:, 0].int() * (height * width)
    first = image.index_select(0, region).index_select(0, bins)
    pixels = (ys.pixels * width).flatten().index_select(0, y) + xs.pixels.flatten().index_select(0, x) + first
    weights = ys.weights.flatten().index_select(0, y) * xs.weights.flatten().index_select(0, x)
    return _Entries(bins, pixels, weights, offsets)


def _spans(regions: Tensor, setting: Setting, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Begin and length of regions on the x axis (0) or y axis (1) of the map, and samples per bin: (N,) each."""
    begin, end = (regions[:, 1 + axis + 2 * i] * setting.scale - (0.5 if setting.aligned else 0.0) for i in (0, 1))
    length = end - begin
    if not setting.aligned:
        length = length.clamp(min=1)
    bins = setting.size[1 - axis]
    if setting.ratio > 0:
        return begin, length, torch.full_like(begin, setting.ratio, dtype=torch.long)
    return begin, length, (length / bins).ceil().nan_to_num(0).clamp(0, 2**31).long()


def _axis(regions: Tensor, setting: Setting, axis: int, pixels: int) -> _Axis:
    begin, length, counts = _spans(regions, setting, axis)
    bins = setting.size[1 - axis]
    step = (length / bins)[:, None, None]
    inner = torch.arange(int(counts.max()), dtype=begin.dtype) + 0.5
    divisor = counts.clamp(min=1)[:, None, None]
    position = begin[:, None, None] + torch.arange(bins)[:, None] * step + inner * step / divisor
    low, high, weight, inside = neighbours(position, pixels)
    weight = torch.stack([1 - weight, weight], 3) * (inside.to(weight.dtype) / divisor)[..., None]
    return _Axis(torch.stack([low, high], 3).flatten(2).int(), weight.flatten(2), 2 * counts)


def neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two pixels around each position on one axis, the weight of the second, and whether the position is on the map."""
    inside = (position >= -1) & (position <= size)
    position = position.nan_to_num(0).clamp(0, size)
    low = position.long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    weight = torch.where(low >= size - 1, torch.zeros_like(position), position - low)
    return low, high, weight, inside
