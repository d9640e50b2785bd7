"""Padding, and the way from maps to windows and back: all of it is here, for every ``pad`` mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PAD_MODES = ("input", "stage", "window")


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, H, W, C) on the right and at the bottom until ``multiple`` divides H and W."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x


@dataclass(frozen=True)
class Region:
    """A rectangle of a map, made of windows that are all of one size.

    Args:
        top: first row of the map, in tokens.
        left: first column of the map, in tokens.
        rows: windows from top to bottom.
        columns: windows from left to right.
        height: of a window, in tokens.
        width: of a window, in tokens.
    """

    top: int
    left: int
    rows: int
    columns: int
    height: int
    width: int


class WindowGrid:
    """How one stage's maps are cut into windows.

    Where the window does not divide the map, the windows at the right edge and at the bottom are smaller: at most four
    ``regions`` of equal windows, from left to right, from top to bottom. Nothing in GC ViT moves windows between
    blocks, so a map is cut once per stage. What padding would have added to the smaller windows, attention knows
    (:class:`~mmgcvit.backbone.attention.WindowAttention`); it never lies in memory.

    Windows are laid out as (windows, tokens, pictures, C): whatever belongs to one window position of every picture
    lies together, so that pictures and heads merge into one axis without a copy. Attention then runs over
    ``windows`` as its batch, and the global query, which all windows of a picture share, is expanded along it with
    stride 0. A region that is a single window needs no cutting: there the pictures take the windows' place,
    (pictures, tokens, 1, C), which is a view of the map where the region is all of it.

    Args:
        height: H of the map, in tokens.
        width: W of the map, in tokens.
        window: side of a window, in tokens.
    """

    def __init__(self, height: int, width: int, window: int) -> None:
        self.regions = tuple(
            Region(top, left, rows, columns, h, w)
            for top, rows, h in _spans(height, window)
            for left, columns, w in _spans(width, window)
        )

    def cut(self, x: Tensor, region: Region) -> Tensor:
        """A region's windows: (B, H, W, C) -> (windows, tokens, pictures, C)."""
        rows, columns, h, w = region.rows, region.columns, region.height, region.width
        batch, _, _, channels = x.shape
        x = x[:, region.top : region.top + rows * h, region.left : region.left + columns * w]
        if rows * columns == 1:
            return x.reshape(batch, h * w, 1, channels)
        # (B, rows, h, columns, w, C) -> (rows, columns, h, w, B, C) -> (rows * columns, h * w, B, C)
        x = x.reshape(batch, rows, h, columns, w, channels).permute(1, 3, 2, 4, 0, 5)
        return x.reshape(-1, h * w, batch, channels)

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """Inverse of :meth:`cut`: the windows of each region, (windows, tokens, pictures, C), -> (B, H, W, C)."""
        bands: dict[int, list[Tensor]] = {}
        for region, x in zip(self.regions, parts, strict=True):
            rows, columns, h, w = region.rows, region.columns, region.height, region.width
            if rows * columns == 1:
                x = x.reshape(-1, h, w, x.shape[3])
            else:
                # (rows, columns, h, w, B, C) -> (B, rows, h, columns, w, C) -> (B, rows * h, columns * w, C)
                x = x.reshape(rows, columns, h, w, -1, x.shape[3]).permute(4, 0, 2, 1, 3, 5)
                x = x.reshape(-1, rows * h, columns * w, x.shape[5])
            bands.setdefault(region.top, []).append(x)
        return _join([_join(band, axis=2) for band in bands.values()], axis=1)


def _spans(length: int, window: int) -> list[tuple[int, int, int]]:
    """Along one axis: (first token, windows, tokens in each) of the whole windows, and of what is left."""
    whole, rest = length // window, length % window  # not divmod: the compiler does not know it
    spans = [(0, whole, window)] if whole else []
    return spans + ([(whole * window, 1, rest)] if rest else [])


def _join(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
