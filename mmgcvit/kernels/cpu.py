"""Implementations for CPUs in eager mode: cache-friendly chunks, and the fastest matrix products.

``docs/performance.md`` lists the speed-up of each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.compat import autocast_is_enabled, onednn_is_enabled, softmax_backward
from mmgcvit.kernels import eager, reference

MAX_PACK = 2**18  # elements of a map that a block processes at a time
MAX_SCORES = 2**19  # elements of q k^T that are computed at a time in the backward pass of attention
MAX_BIAS = 2**22  # elements of a bias that is materialised at once; a larger one is computed a few rows at a time
MAX_COLUMNS = 2**20  # elements of the columns of a bias that are computed for several blocks at once
MIN_ONEDNN = 2**15  # oneDNN pays off from this size; torch never uses it for convolutions of 20480 or fewer elements


def _differentiable(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], gradient: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` that are differentiable themselves, for ``create_graph=True``."""
    needed = [x for x in inputs if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(function(*inputs), needed, gradient, create_graph=True))
    return [None if x is None or not x.requires_grad else next(found) for x in inputs]


# ---------------------------------------------------------------------------------------------------- linear layers


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies matrices faster than the library that torch uses on this processor.

    That library is MKL, which uses only half the vector width of AMD processors with AVX-512. The decision depends on
    the processor's name, not on a measurement, so that results do not differ between runs.
    """
    info = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and info.exists()
        and "AuthenticAMD" in info.read_text()
    )


def fits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can compute the product of x and a weight: both float32, not small, no autocast."""
    both_float = x.dtype == weight.dtype == torch.float32
    return both_float and x.numel() > MIN_ONEDNN and onednn_is_enabled() and not autocast_is_enabled("cpu")


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # A convolution over an image one pixel wide. The dilation of a 1x1 kernel has no effect on the result, but makes
    # torch choose oneDNN even with a single thread.
    image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x @ weight.T + bias without a gradient: (..., C), (C', C), (C',) -> (..., C')."""
    if onednn_is_faster() and fits_onednn(x, weight):
        return _onednn_product(x, weight, bias)
    return F.linear(x, weight, bias)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of a weight, the sum of the outer products of all rows: (..., C'), (..., C) -> (C', C)."""
    rows = x.numel() // x.shape[-1]
    even = rows // 4 * 4  # other numbers of pixels are slow
    gradient, x = gradient.reshape(rows, -1), x.reshape(rows, -1)
    weight = gradient.new_empty(gradient.shape[1], x.shape[1])
    if not (onednn_is_faster() and fits_onednn(x[:even], weight)):
        return gradient.T @ x
    weight = torch.ops.aten.convolution_backward(
        _as_image(gradient[:even]), _as_image(x[:even]), weight[:, :, None, None],
        None, [1, 1], [0, 0], [2, 2], False, [0, 0], 1, [False, True, False],
    )[1][:, :, 0, 0]  # fmt: skip
    return weight if even == rows else torch.addmm(weight, gradient[even:].T, x[even:])


def _as_image(x: Tensor) -> Tensor:
    """(..., C) -> (1, C, rows, 1), channels last in memory."""
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


class OneDNNLinear(torch.autograd.Function):
    """Linear layer computed by oneDNN, optionally after a GELU that is recomputed in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        """Apply the layer: (..., C), (C', C), (C',) -> (..., C')."""
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        return product(F.gelu(x) if gelu else x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of those arguments of forward that need one."""
        x, weight = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        if torch.is_grad_enabled():
            d_x, d_weight = _differentiable(
                lambda x, w: F.linear(F.gelu(x) if ctx.gelu else x, w), (x, weight), gradient
            )
            return d_x, d_weight, gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None, None
        gradient = gradient.contiguous()
        if ctx.needs_input_grad[0]:
            d_x = product(gradient, weight.T)
            if ctx.gelu:
                d_x = torch.ops.aten.gelu_backward(d_x, x)
        if ctx.needs_input_grad[1]:
            d_weight = weight_gradient(gradient, F.gelu(x) if ctx.gelu else x)
        if ctx.needs_input_grad[2]:
            d_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return d_x, d_weight, d_bias, None


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.linear`; ``module`` must be unmodified."""
    if not fits_onednn(x, module.weight):
        return module(x)
    if not torch.is_grad_enabled():
        return _onednn_product(x, module.weight, module.bias)
    return OneDNNLinear.apply(x, module.weight, module.bias, False)


def gelu_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.gelu_linear`; ``module`` must be unmodified."""
    if not fits_onednn(x, module.weight):
        return eager.gelu_linear(module, x)
    if not torch.is_grad_enabled():
        return _onednn_product(F.gelu(x), module.weight, module.bias)
    return OneDNNLinear.apply(x, module.weight, module.bias, True)


# ------------------------------------------------------------------------------------------------- tail of an MBConv


def mbconv_tail(x: Tensor, y: Tensor, se: Any, pointwise: Any) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.mbconv_tail`; all modules must be unmodified, ``y`` may be overwritten.

    If the map is larger than the weight, it is computed a few rows at a time: allocating memory for each of the six
    intermediate maps would take longer than computing them.
    """
    height, width, channels = y.shape[1:]
    is_small = height * width <= channels or y.dtype.itemsize <= 2 or x.dtype != y.dtype
    has_bias = pointwise.bias is not None or se.fc1.bias is not None or se.fc2.bias is not None
    if is_small or has_bias:
        return reference.mbconv_tail(x, y, se, pointwise)
    weights = pointwise.weight, se.fc1.weight, se.fc2.weight
    x, y = x.contiguous(), y.contiguous()  # no copy, unless torch was built without oneDNN
    if torch.is_grad_enabled():
        return MBConvTail.apply(x, y, *weights)
    return _mbconv_tail(x, y, weights, out=y)[0]


def _scaled_weight(mean: Tensor, pointwise: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    """Weight of the pointwise layer, scaled by squeeze-and-excitation for each image: (B, 1, C) -> (B, C', C)."""
    return pointwise * F.linear(F.gelu(F.linear(mean, fc1)), fc2).sigmoid()


def _mbconv_tail(x: Tensor, y: Tensor, weights: Sequence[Tensor], out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result, written to ``out`` (which may be y itself), and the mean of GELU(y), (B, 1, C)."""
    in_place, step = out is y, max(1, MAX_PACK // y.shape[-1])  # rows that fit in the caches
    activate = torch.ops.aten.gelu_ if in_place else F.gelu
    x, y, result = x.flatten(1, 2), y.flatten(1, 2), out.flatten(1, 2)  # [B, H * W, C]
    means = []
    for image in y:
        total = y.new_zeros(y.shape[2])
        for rows in image.split(step):
            total += activate(rows).sum(0)
        means.append(total)
    mean = torch.stack(means)[:, None] / y.shape[1]
    for i, weight in enumerate(_scaled_weight(mean, *weights)):
        for rows, added, target in zip(y[i].split(step), x[i].split(step), result[i].split(step), strict=True):
            torch.add(added, product(rows if in_place else F.gelu(rows), weight), out=target)
    return out, mean


def _plain_tail(y: Tensor, *weights: Tensor) -> Tensor:
    y = F.gelu(y)
    return y @ _scaled_weight(y.mean((1, 2))[:, None], *weights)[:, None].mT


class MBConvTail(torch.autograd.Function):
    """Tail of an MBConv that saves only x and y for the backward pass, and recomputes the activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *weights: Tensor) -> Tensor:
        """Apply the tail to x and y, (B, H, W, C); for ``weights`` see :func:`_scaled_weight`."""
        out, mean = _mbconv_tail(x, y, weights, out=torch.empty_like(x))
        ctx.save_for_backward(y, mean, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments; that of x equals that of the output."""
        y, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradient, *_differentiable(_plain_tail, (y, *inputs[1:]), gradient)
        gradient = gradient.contiguous()
        # Use copies, so that hooks on the weights are not called here.
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            scaled = _scaled_weight(*inputs)
        step = max(1, MAX_PACK // y.shape[-1])
        d_y = torch.empty_like(y)
        y, grad, result = y.flatten(1, 2), gradient.flatten(1, 2), d_y.flatten(1, 2)
        d_scaled = torch.zeros_like(scaled)
        for i, total in enumerate(d_scaled):
            for rows, g in zip(y[i].split(step), grad[i].split(step), strict=True):
                total += weight_gradient(g, F.gelu(rows))
        d_mean, *d_weights = torch.autograd.grad(scaled, inputs, d_scaled)
        d_mean = d_mean / y.shape[1]
        for i, (weight, d) in enumerate(zip(scaled.detach(), d_mean, strict=True)):
            for rows, g, target in zip(y[i].split(step), grad[i].split(step), result[i].split(step), strict=True):
                torch.ops.aten.gelu_backward.grad_input(product(g, weight.T, d[0]), rows, grad_input=target)
        return gradient, d_y, *d_weights


# --------------------------------------------------------------------------------------------------------- attention


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


def window_attention(qkv: Tensor, query: Tensor | None, bias: Bias, num_heads: int, dropout: float = 0.0) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.window_attention`; the result of the padding token is zero."""
    if dropout:
        bias = bias._replace(dense=None)  # `dense` has no gradient; dropout is applied to all queries at once
    elif torch.is_grad_enabled() and (qkv.requires_grad or bias.columns.requires_grad):
        return WindowAttention.apply(qkv, query, *bias, num_heads)
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
        ctx: Any,
        qkv: Tensor,
        query: Tensor | None,
        columns: Tensor,
        padding: Tensor | None,
        dense: Tensor | None,
        num_heads: int,
    ) -> Tensor:
        """See :func:`window_attention`; the fields of the bias are separate arguments."""
        ctx.save_for_backward(qkv, query, columns, padding)
        ctx.num_heads = num_heads
        return _window_attention(qkv, query, Bias(columns, padding, dense), num_heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        qkv, query, columns, padding = ctx.saved_tensors
        if torch.is_grad_enabled():
            attend = partial(_plain_window_attention, ctx.num_heads)
            return *_differentiable(attend, (qkv, query, columns, padding), gradient), None, None
        bias = Bias(columns, padding)
        heads, width, height = ctx.num_heads, columns.shape[1], (columns.shape[2] + 1) // 2
        tokens = height * width
        d_qkv = torch.empty_like(qkv)
        q, k, v = reference.split_heads(qkv, query, heads)
        scale = q.shape[-1] ** -0.5
        acc_dtype = torch.promote_types(qkv.dtype, torch.float32)  # dtype of sums over windows
        d_query: Any = None if query is None else torch.zeros_like(query, dtype=acc_dtype)
        d_columns = torch.zeros_like(columns, dtype=acc_dtype)
        d_padding: Any = None if padding is None else torch.zeros_like(padding, dtype=acc_dtype)
        d_q, d_k, d_v = reference.split_heads(d_qkv, d_query, heads)
        if query is None:
            d_q[:, :, tokens:] = 0  # the padding token's own result was not computed
        gradient = gradient.unflatten(2, (heads, -1)).transpose(1, 2)  # [windows, heads, tokens, d]
        for queries, mask in bias.groups(MAX_BIAS):
            first, last = queries.start // width, queries.stop // width
            write = Tensor.add_ if first else Tensor.copy_
            d_mask = columns.new_zeros(mask.shape, dtype=acc_dtype)
            for windows in _chunks(len(qkv), max(1, MAX_SCORES // mask.numel())):
                shape = (windows.stop - windows.start, heads)
                # [windows, heads, tokens, d] -> [windows * heads, tokens, d], copied
                qs = (q[windows, :, queries] * scale).flatten(0, 1)
                ks, vs = k[windows].flatten(0, 1), v[windows].flatten(0, 1)
                gs = gradient[windows, :, queries].flatten(0, 1)
                scores = qs @ ks.mT
                scores.unflatten(0, shape).add_(mask.to(scores.dtype))
                weights = scores.softmax(-1)
                write(d_v[windows], (weights.mT @ gs).unflatten(0, shape))
                d_scores = softmax_backward(gs @ vs.mT, weights)  # [windows * heads, queries, keys]
                d_mask += d_scores.unflatten(0, shape).sum(0, dtype=acc_dtype)
                write(d_k[windows], (d_scores.mT @ qs).unflatten(0, shape))
                d_qs = (d_scores @ ks).mul_(scale).unflatten(0, shape)
                if query is None:
                    d_q[windows, :, queries] = d_qs
                elif query.shape[0] == len(qkv):
                    d_query[windows, :, queries] = d_qs.to(acc_dtype)
                else:
                    d_query[0, :, queries] += d_qs.sum(0, dtype=acc_dtype)
            if padding is not None:
                d_padding[:, queries] += d_mask[..., -1:]
                d_mask = d_mask[..., :-1]
            d_mask = d_mask.unflatten(1, (last - first, width))  # [heads, i, j, keys]
            for i in range(first, last):
                below = slice(height - 1 - i, 2 * height - 1 - i)
                d_columns[:, :, below] += d_mask[:, i - first].unflatten(2, (height, width))
        return (
            d_qkv,
            None if query is None else d_query.to(query.dtype),
            d_columns.to(columns.dtype),
            None if padding is None else d_padding.to(padding.dtype),
            None,
            None,
        )


def _plain_window_attention(
    num_heads: int, qkv: Tensor, query: Tensor | None, columns: Tensor, padding: Tensor | None
) -> Tensor:
    q, k, v = reference.split_heads(qkv, query, num_heads)
    bias = Bias(columns, padding).rows(0, (columns.shape[2] + 1) // 2).to(q.dtype)
    x = reference.plain_attention(q[:, :, : bias.shape[1]], k, v, bias)
    return F.pad(x, (0, 0, 0, q.shape[2] - x.shape[2])).transpose(1, 2).flatten(2)


def _chunks(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
