"""Reference implementations, in plain PyTorch, of the operations that have several implementations.

Every other implementation has the same signature as its reference, and ``tests/kernels`` compares it with the
reference: outputs, gradients, odd sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.compat import forward_ad_level, functorch_is_active, is_compiling, is_exporting
from mmgcvit.utils.capture import cached


def linear(module: nn.Linear, x: Tensor, added: Tensor | None = None) -> Tensor:
    """Apply a linear layer, and add a tensor to the result if one is given: (..., C), (..., C') -> (..., C')."""
    return plus(module(x), added)


def mlp(fc1: nn.Linear, fc2: nn.Linear, x: Tensor, added: Tensor | None = None) -> Tensor:
    """Apply two linear layers with an exact GELU between them, and add a tensor to the result if one is given.

    (..., C), (..., C') -> (..., C').
    """
    return plus(fc2(F.gelu(fc1(x))), added)


def plus(x: Tensor, added: Tensor | None) -> Tensor:
    """Sum of two tensors, the second of which may be None."""
    return x if added is None else added + x


def nchw(x: Tensor) -> Tensor:
    """Permute the dimensions of a map, (B, H, W, C) -> (B, C, H, W), with a copy: the result is contiguous."""
    return x.permute(0, 3, 1, 2).contiguous()


def convolution(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map through a permuted (channels-last) view, without a copy.

    (B, H, W, C) -> (B, H', W', C').
    """
    return module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def mbconv_tail(x: Tensor, y: Tensor, se: nn.Module, pointwise: Any) -> Tensor:
    """Compute the rest of an MBConv after its depthwise convolution: x + pointwise(SE(GELU(y))).

    Args:
        x: (B, H, W, C), input of the MBConv.
        y: (B, H, W, C), output of its depthwise convolution.
        se: squeeze-and-excitation, (B, C) mean -> (B, C) scale.
        pointwise: linear layer over the channels.

    Returns:
        (B, H, W, C).
    """
    y = F.gelu(y)
    return x + pointwise(y * se(y.mean((1, 2)))[:, None, None])


def residual(
    x: Tensor, branch: Callable[..., Tensor], gamma: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Compute x + branch() * gamma * scale.

    Args:
        x: (rows, C).
        branch: returns y, (rows, C); ``branch(x)`` would return x + y, with the sum computed in its last product.
        gamma: (C,), layer scale; None for no layer scale.
        scale: (rows, 1), drop-path scale, without a gradient; None for no drop path.
    """
    y = branch()
    if gamma is not None:
        return torch.addcmul(x, y if scale is None else y * scale, gamma)
    return x + y if scale is None else x + y * scale


def window_attention(qkv: Tensor, query: Tensor | None, bias: Any, num_heads: int, dropout: float = 0.0) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias) v in each window.

    Args:
        qkv: (windows, tokens, heads * 3 * d), query, key and value of each head in turn; if ``query`` is given, only
            key and value, (windows, tokens, heads * 2 * d).
        query: (windows, heads, tokens, d), or (1, ...) for all windows; None for local attention.
        bias: bias of one block and window size from :func:`position_biases`; here (heads, tokens, tokens).
        num_heads: number of heads.
        dropout: dropout rate of the attention weights.

    Returns:
        (windows, tokens, heads * d).
    """
    q, k, v = split_heads(qkv, query, num_heads)
    if not is_compiling() and (functorch_is_active() or forward_ad_level() >= 0):
        x = plain_attention(q, k, v, bias, dropout)
    else:
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=dropout)
    x = x.transpose(1, 2)  # [windows, heads, tokens, d] -> [windows, tokens, heads, d]
    if is_exporting():  # exporters replace the attention by one whose result has another memory layout
        x = x.clone(memory_format=torch.contiguous_format)
    return x.flatten(2)


@dataclass(frozen=True)
class Windows:
    """Windows of one size in a packed tensor.

    Args:
        count: number of windows.
        rows: rows per window.
        query: global query, see :func:`window_attention`.
        bias: position bias, see :func:`window_attention`.
    """

    count: int
    rows: int
    query: Tensor | None
    bias: Any


def attention(
    qkv: Tensor,
    windows: Sequence[Windows],
    num_heads: int,
    dropout: float = 0.0,
    attend: Callable[..., Tensor] = window_attention,
) -> Tensor:
    """Compute window attention in packed windows of several sizes.

    Args:
        qkv: (rows, heads * 3 * d), or (rows, heads * 2 * d) with queries; all windows of the first size come first.
        windows: their sizes.
        num_heads: number of heads.
        dropout: dropout rate of the attention weights.
        attend: :func:`window_attention`, or another implementation of it.

    Returns:
        (rows, heads * d).
    """
    parts = [qkv] if len(windows) == 1 else qkv.split([part.count * part.rows for part in windows])
    outputs = []
    for part, x in zip(windows, parts, strict=True):
        x = attend(x.unflatten(0, (part.count, part.rows)), part.query, part.bias, num_heads, dropout)
        outputs.append(x.flatten(0, 1))  # [windows, tokens, C] -> [rows, C]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float = 0.0) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias) v by operations that have derivatives of every kind and order.

    torch's fused attention has no second and no forward-mode derivatives.

    Args:
        q: (windows, heads, queries, d).
        k: (windows, heads, tokens, d).
        v: (windows, heads, tokens, d).
        bias: (heads, queries, tokens).
        dropout: dropout rate of the attention weights.

    Returns:
        (windows, heads, queries, d).
    """
    weights = ((q * q.shape[-1] ** -0.5) @ k.mT + bias).softmax(-1)
    return F.dropout(weights, dropout) @ v


def split_heads(qkv: Tensor, query: Tensor | None, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of query, key and value, (windows, heads, tokens, d) each; for arguments see :func:`window_attention`."""
    # [windows, tokens, heads * n * d] -> n times [windows, tokens, heads, d] -> n times [windows, heads, tokens, d]
    parts = qkv.unflatten(2, (num_heads, 3 if query is None else 2, -1)).unbind(3)
    k, v = parts[-2].transpose(1, 2), parts[-1].transpose(1, 2)
    if query is None:
        return parts[0].transpose(1, 2), k, v
    return query if query.shape[0] == k.shape[0] else query.expand(k.shape[0], -1, -1, -1), k, v


def position_biases(
    tables: Sequence[Tensor], sizes: Sequence[tuple[int, int]], window: int, dtype: torch.dtype
) -> Iterator[list[Any]]:
    """Gather the relative position bias of several blocks, for windows of several sizes, at once.

    A window smaller than ``window`` attends as if it were zero-padded to the full window, as in the authors' detection
    models. All padding tokens share one key and one value (the biases of the linear layer), so they collapse into a
    single token; the logsumexp of their position biases becomes its bias. That token is the last row of the window.

    Args:
        tables: ((2w-1)^2, heads) for each block; row (i - k + w - 1) * (2w - 1) + (j - l + w - 1) is the bias between a
            query at (i, j) and a key at (k, l), the order of Swin and of all GC ViT checkpoints.
        sizes: (height, width) of the windows of each region.
        window: w, side of a full window.
        dtype: dtype of the result.

    Yields:
        For each block, a list with one tensor (heads, tokens, tokens) per size; the tokens include the padding token.
    """
    heads = tables[0].shape[1]
    shapes = [bias_shape(size, window) for size in sizes]
    index = bias_index(tuple(sizes), window, tables[0].device)
    gathered = torch.cat([table.T for table in tables]).index_select(1, index).unflatten(0, (-1, heads))
    parts = gathered.split([queries * keys for queries, keys in shapes], 2)
    parts = [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
    yield from zip(*join_padding(parts, sizes, window, dtype), strict=True)


def join_padding(
    parts: Sequence[Tensor], sizes: Sequence[tuple[int, int]], window: int, dtype: torch.dtype
) -> Iterator[Sequence[Tensor]]:
    """Collapse the padding of each window into a single token; yields the biases of all blocks for each size.

    Args:
        parts: for each size (blocks, heads, queries, window * window), the tokens of the smaller window first.
        sizes: (height, width) of the windows.
        window: side of a full window.
        dtype: dtype of the result.
    """
    for (height, width), bias in zip(sizes, parts, strict=True):
        tokens, padding = height * width, window * window - height * width
        if padding:
            bias, outside = bias.split([tokens, padding], -1)
            bias = torch.cat([bias, outside.logsumexp(-1, keepdim=True)], -1)
        yield bias.to(dtype).unbind(0)


def bias_shape(size: tuple[int, int], window: int) -> tuple[int, int]:
    """Number of queries of a window of this size, and number of tokens of a full window."""
    tokens = size[0] * size[1]
    return tokens + (1 if tokens < window * window else 0), window * window


@cached
def bias_index(sizes: tuple[tuple[int, int], ...], window: int, device: torch.device, alignment: int = 1) -> Tensor:
    """Row of the bias table for each size, query and key, (positions,) int64.

    The keys are the tokens of the window, followed by its padding tokens; the first key is repeated up to a multiple of
    ``alignment``. The query of the padding token, whose result is never used, repeats the first query.
    """
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(window, device=device)] * 2, indexing="ij"))
    rows = (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)
    positions = torch.arange(window * window, device=device).view(window, window)
    indices = []
    for height, width in sizes:
        inside, right = positions[:height].tensor_split([width], dim=1)
        keys = torch.cat([inside.flatten(), right.flatten(), positions[height:].flatten()])
        tokens = height * width
        queries = torch.cat([keys[:tokens], keys[: int(tokens < window * window)]])
        keys = torch.cat([keys, keys[:1].expand(-(window * window) % alignment)])
        indices.append(rows[queries][:, keys].flatten())
    return torch.cat(indices)
