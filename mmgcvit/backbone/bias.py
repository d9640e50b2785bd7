"""Relative position bias tables: inferring their window size, and resizing them to another one."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def table_window(table: Tensor) -> int:
    """Window side w of a bias table of shape ((2w-1)^2, heads); 0 if no window size gives this number of rows."""
    side = math.isqrt(len(table))
    return (side + 1) // 2 if side * side == len(table) and side % 2 else 0


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Resize a bias table to another window size, bicubically like the authors: ((2v-1)^2, heads) -> ((2w-1)^2, heads).

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
