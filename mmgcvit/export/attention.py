"""Attention of mmdet's transformers in a graph, for any number of images and any size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = Sequence[tuple[int, int]]  # heights and widths of the feature maps


def encode(layers: Iterable[Any], encoding: Any, levels: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Sizes]:
    """Apply the encoder of a deformable transformer to maps without padding.

    Args:
        layers: mmdet's DeformableDetrTransformerEncoderLayers.
        encoding: mmdet's SinePositionalEncoding.
        levels: what is added to the positional encoding of each map, (levels, C).
        maps: (B, C, h, w) each.

    Returns:
        Features of the points of all maps, (B, points, C), and the sizes of the maps.
    """
    sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
    position = torch.cat([encode_places(encoding, size) + level for size, level in zip(sizes, levels, strict=True)])
    query = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
    points = torch.cat([centers(size, query.device) for size in sizes])
    points = points[None, :, None].expand(query.shape[0], -1, len(sizes), -1)
    for layer in layers:
        query = layer.norms[0](attend(layer.self_attn, query, position, query, points, sizes))
        query = layer.norms[1](layer.ffn(query))
    return query, sizes


def centers(size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the centers of a map's pixels, x and y from 0 to 1, (height * width, 2)."""
    height, width = size
    y, x = ((torch.arange(n, device=device, dtype=torch.float32) + 0.5) / n for n in (height, width))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)


def encode_places(encoding: Any, size: tuple[int, int]) -> Tensor:
    """Compute what mmdet's SinePositionalEncoding returns for a map without padding, (height * width, C).

    mmdet's own infers a size of a view, from which torch.export derives a wrong expression for other batch sizes.
    """
    index = torch.arange(encoding.num_feats, dtype=torch.float32)
    period = encoding.temperature ** (2 * (index // 2) / encoding.num_feats)
    axes = []
    for length in size:
        place = torch.arange(1, length + 1, dtype=torch.float32)
        if encoding.normalize:
            place = (place + encoding.offset) / (place[-1:] + encoding.eps) * encoding.scale
        phase = place[:, None] / period
        axes.append(torch.stack([phase[:, 0::2].sin(), phase[:, 1::2].cos()], dim=-1).flatten(1))
    y, x = axes
    height, width = size
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], dim=-1).flatten(0, 1)


def attend_self(module: Any, query: Tensor, position: Tensor) -> Tensor:
    """Apply mmcv's MultiheadAttention of queries to each other, in operations that any batch size takes.

    Args:
        module: the attention.
        query: (B, Q, C).
        position: positional encoding of the queries, (B, Q, C).

    Returns:
        (B, Q, C), including the residual.
    """
    moved = query + position
    return attend_heads(module.attn, moved, moved, query) + query


def attend_heads(attention: Any, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Apply torch's MultiheadAttention, batch first, in operations that any batch size takes.

    Args:
        attention: the module.
        query: (B, Q, C).
        key, value: (B, N, C).
        allowed: (B, heads, Q, N), False where a query must not attend.

    Returns:
        (B, Q, C).
    """
    weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    parts = [F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True)]
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in parts)
    found = F.scaled_dot_product_attention(q, k, v, allowed).transpose(1, 2).flatten(2)
    return attention.out_proj(found)


def attend(module: Any, query: Tensor, position: Tensor, value: Tensor, points: Tensor, sizes: Sizes) -> Tensor:
    """Apply mmcv's MultiScaleDeformableAttention, with the sizes of the maps as numbers instead of a tensor.

    Args:
        module: the attention.
        query: (B, Q, C).
        position: positional encoding of the queries, (B, Q, C).
        value: features of all levels, (B, points of all levels, C).
        points: reference points (B, Q, levels, 2), or boxes (B, Q, levels, 4) center and sides; from 0 to 1.
        sizes: heights and widths of the levels.

    Returns:
        (B, Q, C), including the residual.
    """
    batch, count, _ = query.shape
    heads, levels, samples = module.num_heads, module.num_levels, module.num_points
    moved = query + position
    offsets = module.sampling_offsets(moved).reshape(batch, count, heads, levels, samples, 2)
    weights = module.attention_weights(moved).reshape(batch, count, heads, levels * samples).softmax(-1)
    weights = weights.reshape(batch, count, heads, levels, samples)
    maps = module.value_proj(value).split([height * width for height, width in sizes], dim=1)
    total: Any = 0
    for level, (height, width) in enumerate(sizes):
        offset = offsets[:, :, :, level]  # [B, Q, heads, samples, 2]
        point = points[:, :, None, level, None]
        if points.shape[-1] == 2:
            place = point + torch.stack([offset[..., 0] / width, offset[..., 1] / height], dim=-1)
        else:
            place = point[..., :2] + offset / samples * point[..., 2:] * 0.5
        place = place.transpose(1, 2).flatten(0, 1) * 2 - 1  # [B * heads, Q, samples, 2]
        features = maps[level].transpose(1, 2).reshape(batch * heads, -1, height, width)
        found = F.grid_sample(features, place, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]  # [B * heads, 1, Q, samples]
        total = total + (found * weight).sum(-1)
    output = total.reshape(batch, -1, count).transpose(1, 2)
    return module.output_proj(output) + query
