"""The operations of the network that have more than one implementation, in plain PyTorch.

Every other implementation has the signature of its reference here, and ``tests/kernels`` holds it to the reference:
outputs, gradients, odd sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.utils.capture import cached


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer: (..., C) -> (..., C')."""
    return module(x)


def gelu_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Apply an exact GELU and a linear layer: (..., C) -> (..., C')."""
    return module(F.gelu(x))


def mbconv_tail(x: Tensor, y: Tensor, se: nn.Module, pointwise: nn.Module) -> Tensor:
    """What follows the depthwise convolution of an MBConv: x + pointwise(SE(GELU(y))).

    Args:
        x: (B, H, W, C), input of the MBConv.
        y: (B, H, W, C), output of its depthwise convolution.
        se: squeeze-and-excitation, (B, C) mean -> (B, C) scale.
        pointwise: linear layer on the channels.

    Returns:
        (B, H, W, C).
    """
    y = F.gelu(y)
    return x + pointwise(y * se(y.mean((1, 2)))[:, None, None])


def residual(x: Tensor, y: Tensor, gamma: Tensor | None, scale: Tensor | None) -> Tensor:
    """x + y * gamma * scale.

    Args:
        x: (rows, C).
        y: (rows, C).
        gamma: (C,), layer scale; None for none.
        scale: (rows, 1), drop path; has no gradient; None for none.
    """
    if gamma is not None:
        return torch.addcmul(x, y if scale is None else y * scale, gamma)
    return x + y if scale is None else x + y * scale


def window_attention(qkv: Tensor, query: Tensor | None, bias: Any, num_heads: int, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v in each window.

    Args:
        qkv: (windows, tokens, heads * 3 * d), query, key and value of each head in turn; or key and value only,
            (windows, tokens, heads * 2 * d), where ``query`` is given.
        query: (windows, heads, tokens, d), or (1, ...) for all windows; None for local attention.
        bias: of one block and window size, as :func:`position_biases` yields it; here (heads, tokens, tokens).
        num_heads: heads.
        dropout: dropout rate of the attention weights.

    Returns:
        (windows, tokens, heads * d).
    """
    q, k, v = split_heads(qkv, query, num_heads)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=dropout)
    return x.transpose(1, 2).flatten(2)  # [windows, heads, tokens, d] -> [windows, tokens, heads * d]


def split_heads(qkv: Tensor, query: Tensor | None, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of query, key and value, (windows, heads, tokens, d) each; arguments as of :func:`window_attention`."""
    # [windows, tokens, heads * n * d] -> n times [windows, tokens, heads, d] -> n times [windows, heads, tokens, d]
    parts = qkv.unflatten(2, (num_heads, 3 if query is None else 2, -1)).unbind(3)
    k, v = parts[-2].transpose(1, 2), parts[-1].transpose(1, 2)
    return parts[0].transpose(1, 2) if query is None else query.expand(k.shape[0], -1, -1, -1), k, v


def position_biases(
    tables: Sequence[Tensor], sizes: Sequence[tuple[int, int]], window: int, dtype: torch.dtype
) -> Iterator[list[Any]]:
    """Relative position bias of several blocks, for windows of several sizes, gathered at once.

    A window smaller than ``window`` attends as if it were zero-padded to the full window, as in the authors' detection
    models. All padding tokens share one key and one value (the biases of the linear layer), so they collapse into a
    single token; the logsumexp of their position biases becomes its bias. That token is the last row of the window.

    Args:
        tables: ((2w-1)^2, heads) of each block; row (i - k + w - 1) * (2w - 1) + (j - l + w - 1) is the bias between a
            query at (i, j) and a key at (k, l), the order of Swin and of all GC ViT checkpoints.
        sizes: (height, width) of the windows of each region.
        window: w, side of a full window.
        dtype: of the result.

    Yields:
        For each block a list with, for each size, (heads, tokens, tokens), padding token included.
    """
    heads = tables[0].shape[1]
    index = bias_index(tuple(sizes), window, tables[0].device)
    gathered = torch.cat([table.T for table in tables]).index_select(1, index)  # [blocks * heads, positions]
    yield from zip(*assemble_biases(gathered.unflatten(0, (-1, heads)), sizes, window, dtype), strict=True)


def assemble_biases(
    gathered: Tensor, sizes: Sequence[tuple[int, int]], window: int, dtype: torch.dtype
) -> Iterator[tuple[Tensor, ...]]:
    """Biases of each size, one for each block, from the gathered entries of their tables (blocks, heads, positions)."""
    counts = [num_positions(size, window) for size in sizes]
    parts = gathered.split(counts, 2) if len(counts) > 1 else [gathered]
    for (height, width), bias in zip(sizes, parts, strict=True):
        tokens = height * width
        if tokens < window * window:
            bias = bias.unflatten(2, (tokens + 1, -1))  # keys: the tokens, then their padding
            bias, padding = bias.split([tokens, window * window - tokens], -1)
            bias = torch.cat([bias, padding.logsumexp(-1, keepdim=True)], -1)
        else:
            bias = bias.unflatten(2, (tokens, -1))
        yield bias.to(dtype).unbind(0)


def num_positions(size: tuple[int, int], window: int) -> int:
    """Entries of a table that belong to windows of a size."""
    tokens = size[0] * size[1]
    return (tokens + (tokens < window * window)) * window * window


@cached
def bias_index(sizes: tuple[tuple[int, int], ...], window: int, device: torch.device) -> Tensor:
    """Rows of a bias table for each size, query and key, (positions,) int64.

    The keys are the tokens of the window first, then those of its padding. The query of the padding token, whose result
    is never used, repeats the first query.
    """
    y, x = (t.flatten() for t in torch.meshgrid(*[torch.arange(window, device=device)] * 2, indexing="ij"))
    rows = (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)
    indices = []
    for height, width in sizes:
        keys = ((y >= height) | (x >= width)).to(torch.uint8).argsort(stable=True)
        tokens = height * width
        queries = torch.cat([keys[:tokens], keys[: int(tokens < window * window)]])
        indices.append(rows[queries][:, keys].flatten())
    return torch.cat(indices)
