"""Operations of the network for captured graphs (compile, export, trace), which must hold for images of any size.

torch's own operations make a graph depend on whether sizes are odd, divisible or equal, and whether a view is
contiguous. The operations here do not: they consist of gathers and matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.backbone.windows import Pack, Region, Span, WindowLayout, round_up
from mmgcvit.utils.capture import is_dynamic, is_eager


def max_pool(x: Tensor) -> Tensor:
    """3x3 max-pool with stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C)."""
    if not is_dynamic(*x.shape[1:3]):
        return F.max_pool2d(x.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
    for axis in (1, 2):
        last = x.shape[axis] - 1
        center = 2 * torch.arange(last // 2 + 1, device=x.device)
        # Outside the map, the nearest position repeats one that is in the window anyway.
        taps = (center, (center - 1).clamp(min=0), (center + 1).clamp(max=last))
        x = reduce(torch.maximum, [x.index_select(axis, tap) for tap in taps])
    return x


def resize(x: Tensor, side: int, mode: str) -> Tensor:
    """Resize maps with half-pixel centers and without antialiasing, like ``F.interpolate``, by a matrix per axis.

    ONNX Runtime runs this, unlike a bicubic resize of channels-last maps.

    Args:
        x: (B, H, W, C).
        side: height and width of the result.
        mode: 'bicubic' or 'bilinear'.
    """
    rows, columns = (_resize_matrix(length, side, mode, x) for length in x.shape[1:3])
    x = F.linear(x.permute(0, 2, 3, 1), rows)  # [B, W, C, side]
    x = F.linear(x.permute(0, 3, 2, 1), columns)  # [B, side, C, side]
    return x.transpose(2, 3)


def _resize_matrix(length: int, side: int, mode: str, like: Tensor) -> Tensor:
    """Matrix (side, length) that resizes an axis, with the device and dtype of a tensor."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    source = (torch.arange(side, device=like.device, dtype=dtype) + 0.5) * length / side - 0.5
    if mode == "bilinear":
        source = source.clamp(min=0)
    first = source.floor()
    t = source - first
    if mode == "bilinear":
        weights = {0: 1 - t, 1: t}
    else:  # cubic convolution with a = -0.75
        near, far = (lambda d: (1.25 * d - 2.25) * d**2 + 1), (lambda d: ((-0.75 * d + 3.75) * d - 6) * d + 3)
        weights = {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}
    positions = torch.arange(length, device=like.device, dtype=dtype)
    matrix = torch.zeros_like(positions)
    for tap, weight in weights.items():
        index = (first + tap).clamp(min=0).minimum(positions[-1])  # the edge is repeated
        matrix = matrix + weight[:, None] * (index[:, None] == positions)
    return matrix.to(like.dtype)


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """Cut maps off on the right and at the bottom: (B, H, W, C) -> (B, height, width, C)."""
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    return x.index_select(1, rows).index_select(2, columns)  # a view would be contiguous or not, depending on the size


class PaddedLayout(WindowLayout):
    """Packing by the same operations for every map size, for captured graphs (compile, export, trace).

    The map is zero-padded to full windows, and padding tokens are computed like all others. Nothing depends on whether
    there is padding, so one graph serves all sizes. In eager mode this is the layout for blocks that are compiled one
    by one.

    Args:
        shape: (B, H, W, C) of the map.
        window: side of the windows, in tokens.
        device: device of the map.
    """

    def __init__(self, shape: Sequence[int], window: int, device: torch.device) -> None:
        self.batch, self.height, self.width, self.channels = shape
        self.window, self.device = window, device
        grid_h, grid_w = round_up(self.height, window) // window, round_up(self.width, window) // window
        self.regions = (Region(0, 0, grid_h, grid_w, window, window, window),)
        self.sizes = ((window, window),)
        # Position (b, i, j) in the padded map of each packed row.
        rows = torch.arange(self.batch * grid_h * grid_w * window * window, device=device)
        rows, x = _divmod(rows, window)
        rows, y = _divmod(rows, window)
        rows, column = _divmod(rows, grid_w)
        b, row = _divmod(rows, grid_h)
        i, j = row * window + y, column * window + x
        self.tokens = (b * self.height + i.clamp(max=self.height - 1)) * self.width + j.clamp(max=self.width - 1)
        mask = None
        if is_eager() or is_dynamic(self.height, self.width) or self.height % window or self.width % window:
            mask = ((i < self.height) & (j < self.width))[:, None]
        self.packs = (
            Pack((Span(0, self.regions[0], 0, 0, self.batch * grid_h * grid_w, window * window),), token_mask=mask),
        )

    def pack(self, x: Tensor) -> list[Tensor]:
        """Pack a map: (B, H, W, C) -> a single (rows, C)."""
        return [x.flatten(0, 2).index_select(0, self.tokens)]

    def unpack(self, packs: list[Tensor], height: int, width: int) -> Tensor:
        """Inverse of :meth:`pack`."""
        window, region = self.window, self.regions[0]
        b, i, j = (torch.arange(n, device=self.device) for n in (self.batch, height, width))
        rows = (b[:, None] * region.grid_h + i // window)[:, :, None] * region.grid_w + j // window
        rows = (rows * window + (i % window)[:, None]) * window + j % window
        # TorchScript's ONNX exporter would write the traced sizes of an unflatten into the file.
        return packs[0].index_select(0, rows.flatten()).reshape(self.batch, height, width, self.channels)

    def expand_query(self, query: Tensor) -> list[Tensor]:
        """Expand the global query: (B, heads, window * window, d) -> (B * windows, heads, window * window, d)."""
        return [query.index_select(0, self._image_of(self.regions[0].num_windows))]

    def per_row(self, values: Tensor) -> list[Tensor]:
        """Give each row its image's value: (..., B) -> (..., rows)."""
        return [values.index_select(-1, self._image_of(self.regions[0].num_windows * self.regions[0].num_rows))]

    def _image_of(self, count: int) -> Tensor:
        """Index of the image of each item, if each image has this many."""
        return torch.arange(self.batch * count, device=self.device) // count


def _divmod(x: Tensor, divisor: int) -> tuple[Tensor, Tensor]:
    quotient = x // divisor
    return quotient, x - quotient * divisor  # the ONNX exporter has no % with a dynamic size
