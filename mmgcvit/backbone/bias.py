"""Tables of relative position bias: which window they are for, and how they get to another one."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def table_window(table: Tensor) -> int:
    """Side w of the windows that a bias table ((2w-1)^2, heads) is for; 0 if no window has that many rows."""
    side = math.isqrt(len(table))
    return (side + 1) // 2 if side * side == len(table) and side % 2 else 0


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Bicubic resize of a bias table to another window, as the authors do: ((2v-1)^2, heads) -> ((2w-1)^2, heads).

    Raises:
        ValueError: the number of rows is not the square of an odd number.
    """
    rows, heads = table.shape
    if not table_window(table):
        raise ValueError(f"a relative position bias table of {rows} rows fits no window; allowed: (2w-1)^2 rows")
    old, new = 2 * table_window(table) - 1, 2 * window - 1
    grid = table.detach().float().T.reshape(1, heads, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.reshape(heads, new * new).T.to(table.dtype)
