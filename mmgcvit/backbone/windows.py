"""Padding, and conversion between feature maps and packed windows, for every ``pad`` mode.

A stage *packs* its map (B, H, W, C) once: the tokens of all windows are concatenated into one tensor (rows, C).
Per-token operations (norms, linear layers, MLP, residuals) then run once, however many window sizes there are. Only
attention handles each region separately, as a view (B x windows, tokens, C).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.utils.capture import cached, is_dynamic

PAD_MODES = ("input", "stage", "window")


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, H, W, C) on the right and at the bottom until ``multiple`` divides H and W."""
    bottom, right = (round_up(side, multiple) - side for side in x.shape[1:3])
    if is_dynamic(bottom, right) or bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is not below a positive length."""
    return (
        (length - 1) // multiple + 1
    ) * multiple  # the form of a convolution's output size, which exporters simplify


def to_windows(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Divide maps into windows: (B, gh * h, gw * w, C) -> (B * gh * gw, h * w, C) for grid (gh, gw) and size (h, w)."""
    (batch, _, _, channels), (gh, gw), (h, w) = x.shape, grid, size
    # [B, gh * h, gw * w, C] -> [B, gh, h, gw, w, C] -> [B, gh, gw, h, w, C] -> [B * gh * gw, h * w, C]
    x = x.reshape(batch, gh, h, gw, w, channels).transpose(2, 3)
    return x.reshape(batch * gh * gw, h * w, channels)


def from_windows(windows: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverse of :func:`to_windows`: (B * gh * gw, h * w, C) -> (B, gh * h, gw * w, C)."""
    (count, _, channels), (gh, gw), (h, w) = windows.shape, grid, size
    batch = count // (gh * gw)
    # [B * gh * gw, h * w, C] -> [B, gh, gw, h, w, C] -> [B, gh, h, gw, w, C] -> [B, gh * h, gw * w, C]
    x = windows.reshape(batch, gh, gw, h, w, channels).transpose(2, 3)
    return x.reshape(batch, gh * h, gw * w, channels)


@dataclass(frozen=True)
class Region:
    """A rectangle of a map that is divided into windows of one size.

    Args:
        top: first row of the map, in tokens.
        left: first column of the map, in tokens.
        grid_h: number of windows from top to bottom.
        grid_w: number of windows from left to right.
        height: height of a window, in tokens.
        width: width of a window, in tokens.
        window: side of a full window, in tokens. A smaller window was cut off by an edge of the map.
    """

    top: int
    left: int
    grid_h: int
    grid_w: int
    height: int
    width: int
    window: int

    @property
    def is_padded(self) -> bool:
        """Whether the edge of the map cuts these windows off, so that attention pads them to the full window."""
        return self.height < self.window or self.width < self.window

    @property
    def num_windows(self) -> int:
        """Number of windows per image."""
        return self.grid_h * self.grid_w

    @property
    def num_rows(self) -> int:
        """Rows of a window in the packed tensor: its tokens, and one row that represents all of its padding."""
        tokens = self.height * self.width
        return tokens + 1 if self.is_padded else tokens

    def cut(self, x: Tensor) -> Tensor:
        """Extract this rectangle as windows: (B, H, W, C) -> (B * num_windows, height * width, C)."""
        bottom, right = self.top + self.grid_h * self.height, self.left + self.grid_w * self.width
        x = x[:, self.top : bottom, self.left : right]
        return to_windows(x, (self.grid_h, self.grid_w), (self.height, self.width))

    def uncut(self, windows: Tensor) -> Tensor:
        """Inverse of :meth:`cut`: (B * num_windows, height * width, C) -> (B, grid_h * height, grid_w * width, C)."""
        return from_windows(windows, (self.grid_h, self.grid_w), (self.height, self.width))


def split_into_regions(height: int, width: int, window: int) -> tuple[Region, ...]:
    """Split a map into at most four regions, from left to right and from top to bottom.

    The region of full windows comes first. If the map size is not a multiple of the window size, the right edge, the
    bottom edge and the corner are regions of smaller windows.

    Args:
        height: H of the map, in tokens.
        width: W of the map, in tokens.
        window: side of a window, in tokens.
    """
    return tuple(
        Region(top, left, grid_h, grid_w, h, w, window)
        for top, grid_h, h in _spans(height, window)
        for left, grid_w, w in _spans(width, window)
    )


def _spans(length: int, window: int) -> list[tuple[int, int, int]]:
    """(first token, number of windows, tokens per window) along one axis, for the full windows and the remainder."""
    full, rest = divmod(length, window)
    spans = [(0, full, window)] if full else []
    return spans + ([(full * window, 1, rest)] if rest else [])


def merge_regions(parts: Sequence[Tensor], regions: Sequence[Region]) -> Tensor:
    """Merge the windows of all regions, (B * num_windows, height * width, C) each, into a map (B, H, W, C)."""
    bands: dict[int, list[Tensor]] = {}
    for region, windows in zip(regions, parts, strict=True):
        bands.setdefault(region.top, []).append(region.uncut(windows))
    return _concatenate([_concatenate(band, dim=2) for band in bands.values()], dim=1)


def _concatenate(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


@dataclass(frozen=True)
class Span:
    """Consecutive windows of one region inside a packed tensor.

    Args:
        index: index of the region in its layout.
        region: the region itself.
        start: index of the first row in the packed tensor.
        first: index of the first window, counted over all images of the batch.
        count: number of windows.
        rows_per_window: rows of each window in the packed tensor (:attr:`Region.num_rows`).
        is_whole: whether these are all windows of the region.
    """

    index: int
    region: Region
    start: int
    first: int
    count: int
    rows_per_window: int
    is_whole: bool = True

    @property
    def num_rows(self) -> int:
        """Number of rows in the packed tensor."""
        return self.count * self.rows_per_window


@dataclass(frozen=True)
class Pack:
    """Layout of one packed tensor (rows, C).

    Args:
        spans: its windows, region by region.
        padding_rows: indices of the rows that represent padding, int64; None if no window is padded.
        token_mask: (rows, 1), 1 for a token and 0 for padding; None if no window is padded, or with ``padding_rows``.
    """

    spans: tuple[Span, ...]
    padding_rows: Tensor | None = None
    token_mask: Tensor | None = None
    is_padded: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_padded", self.padding_rows is not None or self.token_mask is not None)

    def clear_padding(self, x: Tensor, in_place: bool = False) -> Tensor:
        """Set the rows of x that represent padding to zero: (rows, C) -> (rows, C)."""
        if self.padding_rows is not None:
            return (x.index_fill_ if in_place else x.index_fill)(0, self.padding_rows, 0)
        return x if self.token_mask is None else x * self.token_mask.to(x.dtype)


@cached
def _pack_indices(batch: int, height: int, width: int, window: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token index of each packed row, and row index of each token, int32.

    A padding row has the token index of the first token of its window.
    """
    regions = split_into_regions(height, width, window)
    tokens = torch.arange(batch * height * width, dtype=torch.int32, device=device).reshape(batch, height, width, 1)
    windows = [region.cut(tokens) for region in regions]
    windows = [torch.cat([t, t[:, :1]], 1) if r.is_padded else t for t, r in zip(windows, regions, strict=True)]
    packed = torch.cat([t.flatten() for t in windows])
    rows = torch.arange(packed.shape[0], dtype=torch.int32, device=device).split(
        [t.shape[0] * t.shape[1] for t in windows]
    )
    rows = [row.reshape(t.shape)[:, : r.height * r.width] for row, t, r in zip(rows, windows, regions, strict=True)]
    return packed, merge_regions(rows, regions).flatten()


@cached
def _padding_rows(spans: tuple[Span, ...], device: torch.device) -> Tensor | None:
    """Index of the last row of each padded window."""
    rows = [
        torch.arange(s.count, device=device) * s.region.num_rows + s.start + s.region.num_rows - 1
        for s in spans
        if s.region.is_padded
    ]
    return torch.cat(rows) if rows else None


@cached
def _corner(window: int, height: int, width: int, device: torch.device) -> Tensor:
    """Indices of the tokens in the top left corner of a full window, and the first again for the padding row."""
    tokens = torch.arange(window * window, device=device).reshape(window, window)[:height, :width].flatten()
    return torch.cat([tokens, tokens[:1]])


@cached
def _image_of_row(spans: tuple[Span, ...], device: torch.device) -> Tensor:
    """Index in the batch of the image that each row of a pack belongs to."""
    images = []
    for s in spans:
        windows = torch.arange(s.first, s.first + s.count, device=device)
        images.append((windows // s.region.num_windows).repeat_interleave(s.region.num_rows))
    return _concatenate(images, 0)


@cached
def window_layout(
    shape: Sequence[int], window: int, device: torch.device, max_elements: int | None = None
) -> WindowLayout:
    """Return the layout of a map, cached for each shape. For the arguments see :class:`WindowLayout`."""
    return WindowLayout(shape, window, device, max_elements)


class WindowLayout:
    """Packing of the map of a stage into windows.

    On an accelerator, all windows form one pack. On a CPU, a pack is about as large as the caches, so that the
    intermediate results of a block stay in them: the map as a whole, or windows of one region.

    Args:
        shape: (B, H, W, C) of the map.
        window: side of the windows, in tokens.
        device: device of the map.
        max_elements: preferred number of elements of a pack, which may have 1.5 times as many; None for a single pack.
    """

    def __init__(
        self, shape: Sequence[int], window: int, device: torch.device, max_elements: int | None = None
    ) -> None:
        self.batch, self.height, self.width, self.channels = shape
        self.window, self.device = window, device
        self.regions = split_into_regions(self.height, self.width, window)
        self.packs = tuple(Pack(spans, _padding_rows(spans, device)) for spans in self._spans(max_elements))
        # Windows of each region by pack.
        self.counts = tuple(
            [span.count for pack in self.packs for span in pack.spans if span.index == index]
            for index in range(len(self.regions))
        )
        self.is_padded = tuple(region.is_padded for region in self.regions)
        self.sizes = tuple((region.height, region.width) for region in self.regions)
        self.is_indexed = max_elements is None and len(self.regions) > 1

    def _spans(self, max_elements: int | None) -> Iterator[tuple[Span, ...]]:
        """Distribute all windows over packs: a single pack for a small map, else packs of windows of one region."""
        whole, start = [], 0
        for index, region in enumerate(self.regions):
            whole.append(Span(index, region, start, 0, self.batch * region.num_windows, region.num_rows))
            start += whole[-1].num_rows
        rows = start if max_elements is None else max_elements / self.channels
        if start < 1.5 * rows:
            yield tuple(whole)
            return
        for span in whole:
            packs = min(max(1, round(span.num_rows / rows)), span.count)
            bounds = [span.count * i // packs for i in range(packs + 1)]
            for first, last in pairwise(bounds):
                yield (replace(span, start=0, first=first, count=last - first, is_whole=packs == 1),)

    def pack(self, x: Tensor) -> list[Tensor]:
        """Pack a map: (B, H, W, C) -> (rows, C) for each pack."""
        if self.is_indexed:
            return [x.flatten(0, 2).index_select(0, self._indices()[0])]
        packs: list[Tensor] = []
        for region, is_padded, counts in zip(self.regions, self.is_padded, self.counts, strict=True):
            windows = region.cut(x)
            if is_padded:
                windows = F.pad(windows, (0, 0, 0, 1))
            for part in windows.split(counts):
                packs.append(part.flatten(0, 1))
        return packs if len(packs) == len(self.packs) else [torch.cat(packs)]

    def unpack(self, packs: list[Tensor], height: int, width: int) -> Tensor:
        """Inverse of :meth:`pack`, cropped: (rows, C) for each pack -> (B, height, width, C).

        Empties the list, so that the memory of the packs is free early.
        """
        if self.is_indexed:
            x = packs.pop().index_select(0, self._indices()[1])
            return x.view(self.batch, self.height, self.width, x.shape[1])[:, :height, :width]
        if len(packs) == len(self.regions) == 1:
            region = self.regions[0]
            x = region.uncut(packs.pop().unflatten(0, (*self.counts[0], -1))[:, : region.height * region.width])
            return x[:, :height, :width]
        parts: list[list[Tensor]] = [[] for _ in self.regions]
        for x, pack in zip(packs, self.packs, strict=True):
            for span, rows in zip(pack.spans, x.split([span.num_rows for span in pack.spans]), strict=True):
                parts[span.index].append(rows.unflatten(0, (span.count, -1)))
        del x, rows
        packs.clear()
        windows = []
        for part, (h, w) in zip(parts, self.sizes, strict=True):
            windows.append(_concatenate(part, 0)[:, : h * w])
            part.clear()
        return merge_regions(windows, self.regions)[:, :height, :width]

    def expand_query(self, query: Tensor) -> list[Tensor]:
        """Expand the global query to the windows of each region.

        Args:
            query: (B, heads, window * window, d).

        Returns:
            (B * num_windows, heads, rows per window, d) per region; (1, ...) for a single image, as a broadcast
            dimension. Smaller windows get the top left corner of the query.
        """
        queries = []
        for region, is_padded in zip(self.regions, self.is_padded, strict=True):
            q = query
            if is_padded:
                q = q.index_select(2, _corner(self.window, region.height, region.width, q.device))
            if self.batch > 1 and region.num_windows > 1:
                q = q[:, None].expand(-1, region.num_windows, -1, -1, -1).flatten(0, 1)
            queries.append(q)
        return queries

    def per_row(self, values: Tensor) -> list[Tensor]:
        """Give each row its image's value: (..., B) -> (..., rows) for each pack."""
        return [values.index_select(-1, _image_of_row(pack.spans, values.device)) for pack in self.packs]

    def _indices(self) -> tuple[Tensor, Tensor]:
        return _pack_indices(self.batch, self.height, self.width, self.window, self.device)
