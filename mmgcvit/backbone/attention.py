"""Local and global window attention with relative position bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit import kernels
from mmgcvit.backbone.windows import Pack


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows (paper, section 3.1), followed by a projection.

    Local attention computes query, key and value from the window. Global attention computes only key and value from the
    window; the query comes from :class:`~mmgcvit.backbone.layers.GlobalQuery` and is shared by all windows of an image.

    The output channels of ``qkv`` and ``kv`` are ordered (head, q/k/v, d), so that query, key and value of all heads
    are views of one matrix product.

    Args:
        channels: number of channels C.
        num_heads: number of heads; must divide C.
        window: side of the windows, in tokens.
        is_global: global attention: the query is passed to ``forward``.
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

    def reset_parameters(self) -> None:
        """Initialise the bias table; the linear layers have their own method."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(
        self,
        x: Tensor,
        pack: Pack,
        queries: Sequence[Tensor] | None = None,
        biases: Sequence[Any] | None = None,
        ops: kernels.Kernels = kernels.REFERENCE,
        added: Tensor | None = None,
    ) -> Tensor:
        """Attend within each window.

        Args:
            x: (rows, C), the windows of ``pack``; rows that represent padding are zero.
            pack: layout of the windows in x.
            queries: global query of each region, (B * windows, heads, tokens, d); global attention only.
            biases: position bias of each region, from ``ops.position_biases``; None to compute them here.
            ops: implementations of the operations.
            added: (rows, C), added to the result; None for nothing.

        Returns:
            (rows, C); rows that represent padding are arbitrary, but finite.
        """
        qkv = ops.linear(self.kv if self.is_global else self.qkv, x)
        of_region = self._biases(pack, ops, qkv.dtype) if biases is None else dict(enumerate(biases))
        dropout = self.attn_drop_rate if self.training else 0.0
        windows = []
        for span in pack.spans:
            query = None
            if queries is not None and self.is_global:
                query = queries[span.index]
                if not span.is_whole and query.shape[0] > 1:
                    query = query[span.first : span.first + span.count]
            windows.append(kernels.Windows(span.count, span.rows_per_window, query, of_region[span.index]))
        x = ops.attention(qkv, windows, self.num_heads, dropout)
        if not self.drop_rate:
            return ops.linear(self.proj, x, added)
        return kernels.plus(F.dropout(ops.linear(self.proj, x), self.drop_rate, self.training), added)

    def _biases(self, pack: Pack, ops: kernels.Kernels, dtype: torch.dtype) -> dict[int, Any]:
        sizes = [(span.region.height, span.region.width) for span in pack.spans]
        (biases,) = ops.position_biases([self.relative_position_bias_table], sizes, self.window, dtype)
        return {span.index: bias for span, bias in zip(pack.spans, biases, strict=True)}
