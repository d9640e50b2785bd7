"""Window attention, local and global, with its relative position bias."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gather_bias(table: Tensor, window: int) -> Tensor:
    """Relative position bias of all pairs of tokens: ((2w-1)^2, heads) -> (heads, w^2, w^2).

    Entry [h, (i, j), (k, l)] is ``table[(i - k + w - 1) * (2w - 1) + (j - l + w - 1), h]``, the order of Swin and of
    all GC ViT checkpoints. The table's rows are a grid of offsets over which the bias is a sliding view, so that no
    index tensor has to be kept, moved between devices or saved.
    """
    side = 2 * window - 1
    grid = table.unflatten(0, (side, side))
    # grid[a, b, h] -> [i, j, h, k', l'] = grid[i + k', j + l', h]; offsets are i - k + w - 1, hence k' = w - 1 - k.
    pairs = grid.unfold(0, window, 1).unfold(1, window, 1).flip(3, 4)
    return pairs.permute(2, 0, 1, 3, 4).reshape(-1, window**2, window**2)


def table_window(table: Tensor) -> int:
    """Side w of the windows that a bias table ((2w-1)^2, heads) is for; 0 where its rows are of no such number."""
    side = math.isqrt(len(table))
    return (side + 1) // 2 if side * side == len(table) and side % 2 else 0


def resize_bias_table(table: Tensor, window: int) -> Tensor:
    """Bicubic resize of a bias table to another window: ((2v-1)^2, heads) -> ((2w-1)^2, heads), as the authors do.

    Raises:
        ValueError: the table's rows are not a square of an odd number.
    """
    rows, heads = table.shape
    if not table_window(table):
        raise ValueError(f"a relative position bias table of {rows} rows fits no window; allowed: (2w-1)^2 rows")
    old, new = 2 * table_window(table) - 1, 2 * window - 1
    grid = table.detach().float().T.reshape(1, heads, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.reshape(heads, new * new).T.to(table.dtype)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows (paper, section 3.1), plus the projection behind it.

    Local attention draws query, key and value from the window. Global attention draws key and value from it, and
    takes the query of the whole picture from :class:`~mmgcvit.backbone.layers.GlobalQuery`.

    The rows of ``qkv`` and ``kv`` are ordered (head, q/k/v, head_dim): all that one head needs lies together, and
    pictures and heads are one axis to the attention without a copy.

    Args:
        channels: C.
        num_heads: heads; divides C.
        window: side of the windows, in tokens.
        is_global: whether the query comes from outside.
        qkv_bias: whether ``qkv`` / ``kv`` has a bias.
        attn_drop_rate: dropout on the attention weights.
        drop_rate: dropout behind the projection.
    """

    def __init__(self, channels: int, num_heads: int, window: int, is_global: bool, qkv_bias: bool = True,
                 attn_drop_rate: float = 0.0, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.window, self.is_global = num_heads, window, is_global
        self.attn_drop_rate, self.drop_rate = attn_drop_rate, drop_rate
        if is_global:
            self.kv = nn.Linear(channels, 2 * channels, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, global_query: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            x: (windows, tokens, pictures, C), as :class:`~mmgcvit.backbone.windows.WindowGrid` lays them out.
            global_query: (B, heads, tokens, C // heads), for global attention.

        Returns:
            Tensor of x's shape.
        """
        windows, tokens, pictures, channels = x.shape
        head_dim = channels // self.num_heads
        rows = pictures * self.num_heads  # what the attention takes for its heads
        projection = self.kv if self.is_global else self.qkv
        # (windows, tokens, pictures, heads * (2 or 3) * d) -> (windows, tokens, rows, 2 or 3, d) -> each
        # (windows, rows, tokens, d)
        parts = projection(x).reshape(windows, tokens, rows, -1, head_dim).transpose(1, 2).unbind(3)
        if self.is_global:
            k, v = parts
            # (B, heads, tokens, d) -> (windows, rows, tokens, d): stride 0 over the windows. Where a map is a single
            # window, `windows` counts pictures and the query has one for each.
            q = global_query.to(k.dtype).reshape(-1, rows, tokens, head_dim).expand(windows, -1, -1, -1)
        else:
            q, k, v = parts
        bias = gather_bias(self.relative_position_bias_table, self.window).to(q.dtype)
        if pictures > 1:
            bias = bias.repeat(pictures, 1, 1)
        x = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias[None], dropout_p=self.attn_drop_rate if self.training else 0.0)
        # (windows, rows, tokens, d) -> (windows, tokens, pictures, C)
        x = x.transpose(1, 2).reshape(windows, tokens, pictures, channels)
        return F.dropout(self.proj(x), self.drop_rate, self.training)
