"""Window attention, local and global, with its relative position bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit import kernels
from mmgcvit.backbone.windows import Pack


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows (paper, section 3.1), and the projection after it.

    Local attention computes query, key and value from the window. Global attention computes key and value from it; its
    query is the image's own, from :class:`~mmgcvit.backbone.layers.GlobalQuery`.

    The output channels of ``qkv`` and ``kv`` are ordered (head, q/k/v, d): query, key and value of all heads are views
    of one product.

    Args:
        channels: C.
        num_heads: heads; divides C.
        window: side of the windows, in tokens.
        is_global: whether the query is given.
        qkv_bias: whether ``qkv`` / ``kv`` has a bias.
        attn_drop_rate: dropout rate of the attention weights.
        drop_rate: dropout rate after the projection.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: int,
        is_global: bool,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.is_global = num_heads, window, is_global
        self.attn_drop_rate, self.drop_rate = attn_drop_rate, drop_rate
        if is_global:
            self.kv = nn.Linear(channels, 2 * channels, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        self.proj = nn.Linear(channels, channels)

    def forward(
        self,
        x: Tensor,
        pack: Pack,
        queries: Sequence[Tensor] | None = None,
        biases: Sequence[Any] | None = None,
        ops: kernels.Kernels = kernels.REFERENCE,
    ) -> Tensor:
        """Attend within each window.

        Args:
            x: (rows, C), the windows of ``pack``; rows that stand for padding are zero.
            pack: where the windows are.
            queries: for global attention, of each region (B * windows, heads, tokens, d).
            biases: of each region, as ``ops.position_biases`` yields them; None to compute them here.
            ops: implementations of the operations.

        Returns:
            (rows, C); rows that stand for padding are arbitrary, but finite.
        """
        qkv = ops.linear(self.kv if self.is_global else self.qkv, x)
        if biases is None:
            biases = self._biases(pack, ops, qkv.dtype)
        dropout = self.attn_drop_rate if self.training else 0.0
        parts = [qkv] if len(pack.spans) == 1 else qkv.split([span.num_rows for span in pack.spans])
        outputs = []
        for span, rows in zip(pack.spans, parts, strict=True):
            query = None
            if queries is not None and self.is_global:
                query = queries[span.index]
                if query.shape[0] not in (1, span.count):  # a part of the windows
                    query = query[span.first : span.first + span.count]
            windows = rows.unflatten(0, (span.count, -1))  # [rows, channels] -> [windows, tokens, channels]
            y = ops.window_attention(windows, query, biases[span.index], self.num_heads, dropout)
            outputs.append(y.flatten(0, 1))
        x = ops.linear(self.proj, outputs[0] if len(outputs) == 1 else torch.cat(outputs))
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x

    def _biases(self, pack: Pack, ops: kernels.Kernels, dtype: torch.dtype) -> dict[int, Any]:
        sizes = [(span.region.height, span.region.width) for span in pack.spans]
        (biases,) = ops.position_biases([self.relative_position_bias_table], sizes, self.window, dtype)
        return {span.index: bias for span, bias in zip(pack.spans, biases, strict=True)}
