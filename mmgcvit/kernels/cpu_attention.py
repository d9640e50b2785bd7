"""Window attention on a CPU: scores in chunks that fit the caches, and a bias that is not materialised per window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.compat import softmax_backward
from mmgcvit.kernels import reference
from mmgcvit.kernels.products import differentiable
from mmgcvit.kernels.reference import Windows

MAX_SCORES = 2**19  # elements of q k^T that are computed at a time in the backward pass of attention
MAX_BIAS = 2**22  # elements of a bias that is materialised at once; a larger one is computed a few rows at a time
MAX_COLUMNS = 2**20  # elements of the columns of a bias that are computed for several blocks at once


class Bias(NamedTuple):
    """Relative position bias of one block for windows of one size; can be materialised one row at a time.

    Args:
        columns: see :func:`bias_columns`.
        padding: see :func:`padding_bias`; None if the windows are not padded.
        dense: (heads, queries, keys), materialised from both without a gradient; None if it would be large.
    """

    columns: Tensor
    padding: Tensor | None = None
    dense: Tensor | None = None

    def groups(self, limit: int | None) -> Iterator[tuple[slice, Tensor]]:
        """Yield queries and their bias (heads, queries, keys), at most ``limit`` elements or one row of the window."""
        height, width = (self.columns.shape[2] + 1) // 2, self.columns.shape[1]
        step = height if limit is None else max(1, limit // (self.columns.shape[0] * width * height * width))
        for first in range(0, height, step):
            yield slice(first * width, min(first + step, height) * width), self.rows(first, min(first + step, height))

    def rows(self, first: int, last: int) -> Tensor:
        """Bias of the queries in rows first to last - 1 of the window: (heads, i * j, keys)."""
        height, width = (self.columns.shape[2] + 1) // 2, self.columns.shape[1]
        rows = []
        for i in range(first, last):
            rows.append(self.columns[:, :, height - 1 - i : 2 * height - 1 - i])
        bias = torch.stack(rows, 1).flatten(3, 4).flatten(1, 2)  # [heads, i, j, k, l] -> [heads, i * j, k * l]
        if self.padding is not None:
            bias = torch.cat([bias, self.padding[:, first * width : last * width].to(bias.dtype)], 2)
        return bias


def bias_columns(table: Tensor, window: int, height: int, width: int) -> Tensor:
    """Bias between the columns of a window: a table ((2w-1)^2, heads) -> (heads, j, k - i, l).

    Entry [h, j, r, l] is the bias of head h between a query in column j and a key in column l, r - (height - 1) rows
    below it. The bias of the queries in one row is a slice of length ``height`` along r, without indexing or scattered
    reads.
    """
    grid = table.T.reshape(-1, 2 * window - 1, 2 * window - 1).flip(1, 2)
    grid = grid[:, window - height : window + height - 1, window - width : window + width - 1]
    return torch.stack([grid[:, :, width - 1 - j : 2 * width - 1 - j] for j in range(width)], 1)


def padding_bias(table: Tensor, window: int, height: int, width: int) -> Tensor:
    """Bias of the padding token (:func:`mmgcvit.kernels.reference.position_biases`) of windows cut off by an edge.

    Returns:
        (heads, height * width, 1), float32 or wider.
    """
    grid = table.T.reshape(-1, 2 * window - 1, 2 * window - 1).flip(1, 2)  # [h, k - i + w - 1, l - j + w - 1]
    grid = grid.to(torch.promote_types(grid.dtype, torch.float32))

    def logsumexp(rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
        """Logsumexp over the keys in ``rows`` and ``columns`` (first, last + 1) per query: (heads, height, width)."""
        sums = grid
        for axis, (first, last), queries in ((1, rows, height), (2, columns, width)):
            # For a query in row i, these keys are first - i to last - 1 - i rows below. The last query comes first.
            part = sums.narrow(axis, first - queries + window, last - first + queries - 1)
            sums = part.unfold(axis, last - first, 1).logsumexp(-1).flip(axis)
        return sums

    parts = []
    if height < window:  # below, and in the corner
        parts.append(logsumexp((height, window), (0, window)))
    if width < window:  # on the right
        parts.append(logsumexp((0, height), (width, window)))
    return torch.stack(parts).logsumexp(0).flatten(1)[..., None]


def position_biases(
    tables: Sequence[Tensor], sizes: Sequence[tuple[int, int]], window: int, dtype: torch.dtype
) -> Iterator[list[Any]]:
    """See :func:`mmgcvit.kernels.reference.position_biases`; yields :class:`Bias`, materialised block by block."""
    heads = tables[0].shape[1]
    if len(tables) > 1 and len(tables) * heads * window**2 * (2 * window - 1) > MAX_COLUMNS:
        for table in tables:
            yield from position_biases([table], sizes, window, dtype)
        return
    # Concatenate the tables of all blocks along the heads, (rows, blocks * heads), to compute all columns at once.
    table = tables[0] if len(tables) == 1 else torch.cat(list(tables), 1)
    parts = []
    for height, width in sizes:
        columns = bias_columns(table, window, height, width).split(heads)
        padding: Sequence[Tensor | None] = [None] * len(tables)
        if height < window or width < window:
            padding = padding_bias(table, window, height, width).split(heads)
        parts.append((height, columns, padding))
    for block in range(len(tables)):
        biases = []
        for height, columns, padding in parts:
            bias = Bias(columns[block], padding[block])
            if heads * (height * columns[block].shape[1]) ** 2 <= MAX_BIAS:
                with torch.no_grad():  # the gradient flows through the other two fields
                    bias = bias._replace(dense=bias.rows(0, height).to(dtype))
            biases.append(bias)
        yield biases


def attention(qkv: Tensor, windows: Sequence[Windows], num_heads: int, dropout: float = 0.0) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.attention`; the result of the padding token is zero."""
    if not dropout and torch.is_grad_enabled():
        inputs = [x for part in windows for x in (part.query, part.bias.columns, part.bias.padding)]
        if any(x is not None and x.requires_grad for x in (qkv, *inputs)):
            sizes = [(part.count, part.rows, part.bias.dense) for part in windows]
            return WindowAttention.apply(qkv, num_heads, sizes, *inputs)
    if len(windows) == 1:
        (part,) = windows
        x = qkv.unflatten(0, (part.count, part.rows))
        return window_attention(x, part.query, part.bias, num_heads, dropout).flatten(0, 1)
    return reference.attention(qkv, windows, num_heads, dropout, window_attention)


def window_attention(qkv: Tensor, query: Tensor | None, bias: Bias, num_heads: int, dropout: float = 0.0) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.window_attention`; :func:`attention` is faster where there are gradients."""
    if dropout:
        bias = bias._replace(dense=None)  # `dense` has no gradient; dropout is applied to all queries at once
    if bias.dense is not None and bias.padding is None:
        q, k, v = reference.split_heads(qkv, query, num_heads)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.dense[None]).transpose(1, 2).flatten(2)
    return _window_attention(qkv, query, bias, num_heads, dropout)


def _window_attention(qkv: Tensor, query: Tensor | None, bias: Bias, num_heads: int, dropout: float = 0.0) -> Tensor:
    """Compute attention with torch's fused kernel, a few rows of queries at a time."""
    q, k, v = reference.split_heads(qkv, query, num_heads)
    groups = bias.groups(None if dropout else MAX_BIAS)
    if bias.dense is not None:
        groups = iter([(slice(0, bias.dense.shape[1]), bias.dense)])
    parts = []
    for queries, mask in groups:
        mask = mask.to(q.dtype)[None]
        x = F.scaled_dot_product_attention(q[:, :, queries], k, v, attn_mask=mask, dropout_p=dropout)
        parts.append(x.transpose(1, 2))  # [windows, heads, queries, d] -> [windows, queries, heads, d]
    if bias.padding is not None:
        parts.append(parts[0].new_zeros(parts[0].shape[0], 1, *parts[0].shape[2:]))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).flatten(2)


class WindowAttention(torch.autograd.Function):
    """Attention with a bias that needs a gradient.

    On a CPU, torch's fused attention does not support such a bias and falls back to an implementation that saves all of
    q k^T. Here the forward pass uses the fused kernel. The backward pass recomputes q k^T in chunks that stay in the
    caches, and sums the gradient of the bias over windows.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, num_heads: int, sizes: Sequence[tuple[int, int, Tensor | None]], *inputs: Tensor | None
    ) -> Tensor:
        """Attend in packed windows of several sizes.

        Args:
            ctx: context of the backward pass.
            qkv: see :func:`mmgcvit.kernels.reference.attention`.
            num_heads: number of heads.
            sizes: for each size, the number of windows, rows per window, and :attr:`Bias.dense`.
            *inputs: for each size, the query, :attr:`Bias.columns` and :attr:`Bias.padding`.

        Returns:
            (rows, heads * d).
        """
        ctx.save_for_backward(qkv, *inputs)
        ctx.num_heads, ctx.sizes = num_heads, [size[:2] for size in sizes]
        windows = [
            Windows(count, rows, query, Bias(columns, padding, dense))
            for (count, rows, dense), (query, columns, padding) in zip(sizes, _threes(inputs), strict=True)
        ]
        return reference.attention(qkv, windows, num_heads, attend=_window_attention)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        qkv, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            attend = partial(_plain_attention, ctx.num_heads, ctx.sizes)
            first, *others = differentiable(attend, (qkv, *inputs), gradient)
            return first, None, None, *others
        d_qkv = torch.empty_like(qkv)
        gradients: list[Tensor | None] = []
        counts = [count * rows for count, rows in ctx.sizes]
        parts = zip(*(x.split(counts) for x in (qkv, d_qkv, gradient)), strict=True)
        for part, (count, rows), (query, *bias) in zip(parts, ctx.sizes, _threes(inputs), strict=True):
            x, d_x, g = (y.unflatten(0, (count, rows)) for y in part)
            gradients += _gradients(ctx.num_heads, x, d_x, g, query, Bias(*bias))
        return d_qkv, None, None, *gradients


def _gradients(
    heads: int, qkv: Tensor, d_qkv: Tensor, gradient: Tensor, query: Tensor | None, bias: Bias
) -> tuple[Tensor | None, ...]:
    """Write the gradient of qkv of windows of one size; return those of the query and of the bias."""
    parts = 3 if query is None else 2
    acc_dtype = torch.promote_types(qkv.dtype, torch.float32)  # dtype of sums over windows
    d_query: Any = None if query is None else torch.zeros_like(query, dtype=acc_dtype)
    d_columns = torch.zeros_like(bias.columns, dtype=acc_dtype)
    d_padding: Any = None if bias.padding is None else torch.zeros_like(bias.padding, dtype=acc_dtype)
    # [windows, tokens, heads * parts * d] -> [parts, windows, heads, tokens, d]
    x, d_x = (y.unflatten(2, (heads, parts, -1)).permute(3, 0, 2, 1, 4) for y in (qkv, d_qkv))
    gradient = gradient.unflatten(2, (heads, -1)).transpose(1, 2)  # [windows, heads, tokens, d]
    is_shared = query is not None and len(query) < len(qkv)  # by all windows
    for queries, mask in bias.groups(MAX_BIAS):
        write = Tensor.add_ if queries.start else Tensor.copy_
        d_mask, mask = torch.zeros_like(mask, dtype=acc_dtype), mask.to(acc_dtype)
        chunks = math.ceil(len(qkv) / max(1, MAX_SCORES // mask.numel()))
        step = math.ceil(len(qkv) / chunks)
        # The same memory for all chunks: new memory would take longer than the arithmetic.
        squares = qkv.new_empty(3, step, *mask.shape, dtype=acc_dtype)
        rows = qkv.new_empty(5, step, *gradient.shape[1:], dtype=acc_dtype)
        if query is not None and is_shared:
            rows[0] = query
        count = 0
        for windows in _chunks(len(qkv), step):
            if count != windows.stop - windows.start:
                count = windows.stop - windows.start
                # Gradients overwrite what is not needed any more: (q, k, v, gradient, -) -> (q, k, d_q, d_k, d_v).
                given, results = rows[3 - parts : 3, :count], rows[5 - parts :, :count]
                (q, _, d_q, g, _), by_window = rows[:, :count], squares[0, :count]
                qs, ks, vs, gs, d_vs = rows[:, :count].flatten(1, 2)  # [windows * heads, tokens, d]
                is_partial = mask.shape[1] < qs.shape[1]
                qs, d_qs = qs[:, queries], torch.empty_like(qs[:, queries]) if is_partial else vs
                matrices = (qs, ks, vs, gs[:, queries]), (d_qs, gs, d_vs), squares[:, :count].flatten(1, 2)
            given.copy_(x[:, windows])  # in float32: as fast as bfloat16, and exact
            g.copy_(gradient[windows])
            if query is not None and not is_shared:
                q.copy_(query[windows])
            by_window.copy_(mask)
            _matrix_gradients(*matrices)
            d_mask += by_window[0] if count == 1 else by_window.sum(0)
            if is_partial:  # the result of the padding token was not computed
                d_q.zero_()[:, :, queries] = d_qs.unflatten(0, (count, heads))
            write(d_x[:, windows], results)
            if is_shared:
                d_query += d_q.sum(0)
            elif query is not None:
                d_query[windows] += d_q
        _add_bias_gradient(d_columns, d_padding, d_mask, queries)
    return (
        None if query is None else d_query.to(query.dtype),
        d_columns.to(bias.columns.dtype),
        None if bias.padding is None else d_padding.to(bias.padding.dtype),
    )


def _matrix_gradients(given: tuple[Tensor, ...], results: tuple[Tensor, ...], squares: Tensor) -> None:
    """Compute the gradients of softmax(q k^T / sqrt(d) + mask) v for each of n matrices, in memory that is given.

    Args:
        given: q, k, v and the gradient of the result, (n, queries or keys, d).
        results: the gradients of q, k and v are written here. That of q may be the memory of v, and that of k that of
            the result's gradient.
        squares: (3, n, queries, keys), of which the first is the mask, and is overwritten by its gradient.
    """
    (q, k, v, gradient), (d_q, d_k, d_v), (mask, weights, d_weights) = given, results, squares
    scale = q.shape[2] ** -0.5
    torch.softmax(mask.baddbmm_(q, k.mT, alpha=scale), -1, out=weights)
    torch.bmm(weights.mT, gradient, out=d_v)
    torch.bmm(gradient, v.mT, out=d_weights)
    d_scores = softmax_backward(d_weights, weights, out=mask)
    d_k.baddbmm_(d_scores.mT, q, beta=0, alpha=scale)
    d_q.baddbmm_(d_scores, k, beta=0, alpha=scale)


def _add_bias_gradient(d_columns: Tensor, d_padding: Tensor | None, d_mask: Tensor, queries: slice) -> None:
    """Add the gradient (heads, queries, keys) of rows of the bias to those of :class:`Bias`."""
    height, width = (d_columns.shape[2] + 1) // 2, d_columns.shape[1]
    if d_padding is not None:
        d_padding[:, queries] += d_mask[..., -1:]
        d_mask = d_mask[..., :-1]
    for i, row in enumerate(d_mask.unflatten(1, (-1, width)).unbind(1), queries.start // width):  # [heads, j, keys]
        d_columns[:, :, height - 1 - i : 2 * height - 1 - i] += row.unflatten(2, (height, width))


def _plain_attention(num_heads: int, sizes: Sequence[tuple[int, int]], qkv: Tensor, *inputs: Tensor) -> Tensor:
    def attend(qkv: Tensor, query: Tensor | None, bias: Bias, *_: Any) -> Tensor:
        q, k, v = reference.split_heads(qkv, query, num_heads)
        mask = bias.rows(0, (bias.columns.shape[2] + 1) // 2).to(q.dtype)
        x = reference.plain_attention(q[:, :, : mask.shape[1]], k, v, mask)
        return F.pad(x, (0, 0, 0, q.shape[2] - x.shape[2])).transpose(1, 2).flatten(2)

    windows = [
        Windows(*size, query, Bias(columns, padding))
        for size, (query, columns, padding) in zip(sizes, _threes(inputs), strict=True)
    ]
    return reference.attention(qkv, windows, num_heads, attend=attend)


def _threes(inputs: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
    return zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)


def _chunks(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
