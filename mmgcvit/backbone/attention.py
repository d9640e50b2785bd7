"""Window attention, local and global, with its relative position bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmgcvit.backbone.bias import resize_bias_table, table_window  # noqa: F401
from mmgcvit.backbone.eager import eager_on_cpu
from mmgcvit.backbone.linear import linear

# Elements of a product of queries and keys that are worked on at a time on a CPU, so that they stay in its caches.
SCORES = 2**19
# Elements of a picture's bias that is laid out at once; of a larger one (windows of 48 tokens a side), some rows.
BIAS = 2**22


def bias_columns(table: Tensor, window: int, height: int, width: int) -> Tensor:
    """The bias between a window's columns: a table ((2w-1)^2, heads) -> (heads, j, k - i, l).

    Entry [h, j, r, l] is the bias of head h between a query in column j and a key in column l, r - (height - 1) rows
    below it. A slice of ``height`` along r holds all that a query in one row needs (:func:`bias_rows`).

    Args:
        table: row (i - k + w - 1) * (2w - 1) + (j - l + w - 1) is for a query in (i, j) and a key in (k, l), the order
            of Swin and of all GC ViT checkpoints.
        window: w, the side of the windows that the table is for, in tokens.
        height: of the windows that the bias is for, at most w.
        width: of the windows that the bias is for, at most w.
    """
    grid = table.T.reshape(-1, 2 * window - 1, 2 * window - 1).flip(1, 2)
    grid = grid[:, window - height : window + height - 1, window - width : window + width - 1]
    return torch.stack([grid[:, :, width - 1 - j : 2 * width - 1 - j] for j in range(width)], dim=1)


def bias_rows(columns: Tensor, first: int, last: int) -> Tensor:
    """The bias of the queries in rows first to last - 1: (heads, j, k - i, l) -> (heads, i * j, k * l)."""
    height = (columns.shape[2] + 1) // 2
    rows = [columns[:, :, height - 1 - i : 2 * height - 1 - i] for i in range(first, last)]
    # (heads, i, j, k, l) -> (heads, i * j, k * l)
    return torch.stack(rows, dim=1).flatten(3, 4).flatten(1, 2)


def gather_bias(table: Tensor, window: int) -> Tensor:
    """Relative position bias of all pairs of tokens of a window: ((2w-1)^2, heads) -> (heads, w^2, w^2)."""
    return bias_rows(bias_columns(table, window, window, window), 0, window)


def padding_bias(table: Tensor, window: int, height: int, width: int) -> Tensor:
    """The bias towards all tokens with which a smaller window would be padded, as if they were one.

    To attention, zero tokens differ in nothing but their place. So together they are one key, whose bias is the
    logarithm of the sum of the exponentials of theirs.

    Args:
        table: ((2w-1)^2, heads).
        window: w.
        height: of the smaller window.
        width: of the smaller window.

    Returns:
        (heads, height * width, 1), float32 or wider.
    """
    grid = table.T.reshape(-1, 2 * window - 1, 2 * window - 1).flip(1, 2)  # [h, k - i + w - 1, l - j + w - 1]
    grid = grid.to(torch.promote_types(grid.dtype, torch.float32))

    def total(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Over the keys in ``rows`` and ``columns`` (first, last + 1), for each query: (heads, height, width)."""
        sums = grid
        for axis, (first, last), queries in ((1, rows, height), (2, columns, width)):
            # A query in row i finds these keys first - i to last - 1 - i rows below it. The last query comes first.
            part = sums.narrow(axis, first - queries + window, last - first + queries - 1)
            sums = part.unfold(axis, last - first, 1).logsumexp(-1).flip(axis)
        return sums

    parts = []
    if height < window:  # below, and in the corner
        parts.append(total((height, window), (0, window)))
    if width < window:  # beside
        parts.append(total((0, height), (width, window)))
    return torch.stack(parts).logsumexp(0).flatten(1)[..., None]


class Bias(NamedTuple):
    """What :func:`attend` adds to the products of queries and keys, for windows of one size.

    Args:
        columns: what :func:`bias_columns` returns.
        outside: what :func:`padding_bias` returns; None where the windows are not padded.
        whole: (rows, queries, keys), laid out of both, without a gradient; None where each call is to do so.
    """

    columns: Tensor
    outside: Tensor | None = None
    whole: Tensor | None = None

    def groups(self, rows: int, dtype: torch.dtype, limit: int | None) -> Iterator[tuple[int, int, Tensor]]:
        """(first row of queries, last + 1, their bias (rows, queries, keys)).

        Of at most ``limit`` elements, or of one row of queries; None for all of them at once.
        """
        heads, width, height = *self.columns.shape[:2], (self.columns.shape[2] + 1) // 2
        if self.whole is not None:
            yield 0, height, self.whole.to(dtype)
            return
        step = height if limit is None else max(1, limit // (rows * width * height * width))
        for first in range(0, height, step):
            last = min(first + step, height)
            bias = bias_rows(self.columns, first, last)
            if self.outside is not None:
                bias = torch.cat([bias, self.outside[:, first * width : last * width]], dim=2)
            # One for each picture: (heads, queries, keys) -> (pictures * heads, queries, keys)
            yield first, last, bias.to(dtype).repeat(rows // heads, 1, 1) if rows > heads else bias.to(dtype)


class _Attention(torch.autograd.Function):
    """Attention with a gradient for its bias, on a CPU.

    There torch's fused attention gives none, and falls back to one that keeps all products of queries and keys. Here
    the forward pass is the fused one; the backward pass makes the products anew, so few at a time that they stay in
    the caches, and adds up the bias's gradient over windows and pictures.
    """

    @staticmethod
    def forward(
        ctx: Any, parts: Tensor, query: Tensor | None, columns: Tensor, outside: Tensor | None, whole: Tensor | None
    ) -> Tensor:
        """See :func:`attend`."""
        ctx.save_for_backward(parts, query, columns, outside)
        return _fused(parts, query, Bias(columns, outside, whole), limit=BIAS)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's arguments."""
        parts, query, columns, outside = ctx.saved_tensors
        windows, tokens, rows, head_dim = gradient.shape
        heads, width = columns.shape[:2]
        scale = head_dim**-0.5
        d_parts = torch.empty_like(parts)
        d_parts[:, tokens:] = 0  # the padding asks for nothing
        wide = torch.promote_types(parts.dtype, torch.float32)  # of what is added up over windows
        d_query = None if query is None else torch.zeros_like(query, dtype=wide)
        d_columns = torch.zeros_like(columns, dtype=wide)
        d_outside = None if outside is None else torch.zeros_like(outside, dtype=wide)
        q, k, v = _split(parts, query, tokens)
        d_q, d_k, d_v = _split(d_parts, d_query, tokens)
        gradient = gradient.transpose(1, 2)  # (windows, rows, tokens, d)
        for first, last, bias in Bias(columns, outside).groups(rows, q.dtype, BIAS):
            queries = slice(first * width, last * width)
            put = Tensor.add_ if first else Tensor.copy_
            d_bias = columns.new_zeros(bias.shape, dtype=wide)
            step = max(1, SCORES // bias.numel())
            for start in range(0, windows, step):
                some = slice(start, min(start + step, windows))
                shape = (some.stop - start, rows)
                # (windows, rows, tokens, d) -> (windows * rows, tokens, d), copied
                qs = (q[some, :, queries] * scale).flatten(0, 1)
                ks, vs, gs = k[some].flatten(0, 1), v[some].flatten(0, 1), gradient[some, :, queries].flatten(0, 1)
                scores = qs @ ks.mT
                scores.unflatten(0, shape).add_(bias)
                weights = scores.softmax(-1)
                put(d_v[some], (weights.mT @ gs).unflatten(0, shape))
                # of the products, before the softmax: (windows * rows, queries, keys)
                d_scores = torch._softmax_backward_data(gs @ vs.mT, weights, -1, weights.dtype)
                d_bias += d_scores.unflatten(0, shape).sum(0, dtype=wide)
                put(d_k[some], (d_scores.mT @ qs).unflatten(0, shape))
                d_qs = (d_scores @ ks).mul_(scale).unflatten(0, shape)
                if query is None or query.shape[0] == windows:
                    d_q[some, :, queries] = d_qs
                else:
                    d_query[0, :, queries] += d_qs.sum(0, dtype=wide)
            # (rows, queries, keys) -> (heads, i, j, keys)
            d_bias = d_bias.unflatten(0, (-1, heads)).sum(0).unflatten(1, (last - first, width))
            if outside is not None:
                d_outside.unflatten(1, (-1, width))[:, first:last] += d_bias[..., -1:]
                d_bias = d_bias[..., :-1]
            height = (columns.shape[2] + 1) // 2
            for i in range(first, last):
                below = slice(height - 1 - i, 2 * height - 1 - i)
                d_columns[:, :, below] += d_bias[:, i - first].unflatten(2, (height, -1))
        return (
            d_parts,
            None if query is None else d_query.to(query.dtype),
            d_columns.to(columns.dtype),
            None if outside is None else d_outside.to(outside.dtype),
            None,
        )


def _split(parts: Tensor, query: Tensor | None, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of query, key and value: (windows, rows, tokens, d) each, key and value with the padding's token."""
    parts = parts.transpose(1, 2)
    if query is None:
        q, k, v = parts.unbind(3)
        return q[:, :, :tokens], k, v
    k, v = parts.unbind(3)
    return query.expand(parts.shape[0], -1, -1, -1), k, v


def _fused(parts: Tensor, query: Tensor | None, bias: Bias, dropout: float = 0.0, limit: int | None = None) -> Tensor:
    """:func:`attend` by torch's fused attention."""
    width, height = bias.columns.shape[1], (bias.columns.shape[2] + 1) // 2
    q, k, v = _split(parts, query, height * width)
    x = [
        F.scaled_dot_product_attention(
            q[:, :, first * width : last * width], k, v, attn_mask=group[None], dropout_p=dropout
        )
        for first, last, group in bias.groups(q.shape[1], q.dtype, limit)
    ]
    return (x[0] if len(x) == 1 else torch.cat(x, dim=2)).transpose(1, 2)


def attend(parts: Tensor, query: Tensor | None, bias: Bias, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v in each window.

    Args:
        parts: (windows, tokens, rows, 3, d), the rows being pictures x heads: query, key and value; or 2, key and
            value. Where the windows are padded, there is one more token, which stands for the padding.
        query: (1 or windows, rows, tokens, d) where ``parts`` has none.
        bias: for these windows.
        dropout: rate on the weights.

    Returns:
        (windows, tokens, rows, d).
    """
    if dropout or not eager_on_cpu(parts):
        return _fused(parts, query, bias._replace(whole=None), dropout)
    if torch.is_grad_enabled() and bias.columns.requires_grad:
        return _Attention.apply(parts, query, *bias)
    return _fused(parts, query, bias, limit=BIAS)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows (paper, section 3.1), plus the projection behind it.

    Local attention draws query, key and value from the window. Global attention draws key and value from it, and
    takes the query of the whole picture from :class:`~mmgcvit.backbone.layers.GlobalQuery`.

    A window smaller than ``window`` is one that an edge of the map cuts off. It attends as if it were padded with zero
    tokens behind the norm, as the authors' detection models do, but all of these are one token here: they have the same
    key and value, and what their places differ in goes into that token's bias (:func:`padding_bias`).

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

    def bias(self, height: int, width: int, pictures: int = 1) -> Bias:
        """What :func:`attend` needs for windows of this size, which lie beside those of so many pictures."""
        table = self.relative_position_bias_table
        padded = height < self.window or width < self.window
        bias = Bias(
            bias_columns(table, self.window, height, width),
            padding_bias(table, self.window, height, width) if padded else None,
        )
        if eager_on_cpu(table) and self.num_heads * pictures * (height * width) ** 2 <= BIAS:
            with torch.no_grad():  # once for all calls; the gradient goes through the other two
                ((_, _, whole),) = bias.groups(self.num_heads * pictures, table.dtype, None)
            bias = bias._replace(whole=whole)
        return bias

    def forward(
        self, x: Tensor, global_query: Tensor | None, size: tuple[int, int], shared: list[Bias] | None = None
    ) -> Tensor:
        """Attend within each window.

        Args:
            x: (windows, tokens, pictures, C), as :class:`~mmgcvit.backbone.windows.WindowGrid` lays them out.
            global_query: (B, heads, tokens, C // heads), for global attention.
            size: height and width of these windows; tokens is their product.
            shared: where several calls are for windows of one size beside equally many pictures, an empty list: the
                first call leaves its bias there. (It is computed in here, not by the caller, because weights may be
                there only while this module is called, as with sharding and offloading.)

        Returns:
            Tensor of x's shape.
        """
        windows, tokens, pictures, channels = x.shape
        head_dim = channels // self.num_heads
        rows = pictures * self.num_heads  # what the attention takes for its heads
        bias = shared[0] if shared else self.bias(*size, pictures)
        if shared is not None and not shared:
            shared.append(bias)
        if bias.outside is not None:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))  # the padding's token
        # (windows, tokens, pictures, heads * (2 or 3) * d) -> (windows, tokens, rows, 2 or 3, d)
        parts = linear(self.kv if self.is_global else self.qkv, x)
        parts = parts.reshape(windows, x.shape[1], rows, 2 if self.is_global else 3, head_dim)
        if self.is_global:
            # (B, heads, tokens, d) -> (1, rows, tokens, d). Where a region is a single window, `windows` counts
            # pictures and the query has one for each.
            global_query = global_query.to(parts.dtype).reshape(-1, rows, tokens, head_dim)
        x = attend(
            parts, global_query if self.is_global else None, bias, dropout=self.attn_drop_rate if self.training else 0.0
        )
        # (windows, tokens, rows, d) -> (windows, tokens, pictures, C)
        x = linear(self.proj, x.reshape(windows, tokens, pictures, channels))
        return F.dropout(x, self.drop_rate, self.training)
