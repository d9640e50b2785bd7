"""mmdet's DINO as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.export.boxes import clip, unsupported_kinds
from mmgcvit.export.graph import ExportGraph
from mmgcvit.export.operators import features, take

Sizes = Sequence[tuple[int, int]]  # heights and widths of the feature maps


class QueryGraph(ExportGraph):
    """Preprocessing, features, deformable transformer, and the best boxes.

    Args:
        model: a DINO of mmdet.
        channels: channels of the images.
    """

    detectors = ("DINO",)
    unpadded = "the transformer does not mask padding"

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        self.model = model

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return why a detector cannot be exported."""
        reason = unsupported_kinds([("model", model, QueryGraph.detectors)])
        if reason:
            return reason
        reason = unsupported_kinds(
            [
                ("model.bbox_head", model.bbox_head, ("DINOHead",)),
                ("model.encoder", model.encoder, ("DeformableDetrTransformerEncoder",)),
                ("model.decoder", model.decoder, ("DinoTransformerDecoder",)),
                ("model.positional_encoding", model.positional_encoding, ("SinePositionalEncoding",)),
            ]
        )
        if reason:
            return reason
        for layer in model.decoder.layers:
            reason = reason or unsupported_kinds(
                [("model.decoder: self_attn", layer.self_attn, ("MultiheadAttention",))]
            )
        for name, layers in (("encoder", model.encoder.layers), ("decoder", model.decoder.layers)):
            for layer in layers:
                attention = layer.self_attn if name == "encoder" else layer.cross_attn
                reason = reason or unsupported_kinds(
                    [(f"model.{name}: attention", attention, ("MultiScaleDeformableAttention",))]
                )
                if not attention.batch_first:
                    return f"model.{name}: attention.batch_first=False; allowed: True"
        divisor = int(getattr(model.data_preprocessor, "pad_size_divisor", 1) or 1)
        if divisor != 1:
            return (
                f"model.data_preprocessor.pad_size_divisor={divisor}: a transformer that masks padding is not "
                "supported; allowed: 1"
            )
        return reason

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes (B, K, 4), scores (B, K) and labels (B, K)."""
        model = self.model
        maps = features(model, self.preprocess(images))
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        memory = self.encode(maps, sizes)
        query, boxes = self.decode(memory, sizes)
        return self.select(query, boxes, images.shape[-2:])

    def encode(self, maps: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """Return the output of the encoder, (B, points of all levels, C)."""
        model = self.model
        encoding = model.positional_encoding
        positions = torch.cat(
            [encode_places(encoding, size) + level for size, level in zip(sizes, model.level_embed, strict=True)]
        )
        query = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        points = torch.cat([centers(size, query.device) for size in sizes])
        points = points[None, :, None].expand(query.shape[0], -1, len(sizes), -1)
        for layer in model.encoder.layers:
            query = layer.norms[0](attend(layer.self_attn, query, positions, query, points, sizes))
            query = layer.norms[1](layer.ffn(query))
        return query

    def decode(self, memory: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Return the final queries (B, Q, C), and their boxes (B, Q, 4) center x, center y, width, height, 0 to 1."""
        from mmdet.models.layers import coordinate_to_encoding, inverse_sigmoid

        model, head = self.model, self.model.bbox_head
        boxes = self.initial_boxes(memory, sizes)
        query = model.query_embedding.weight.expand(memory.shape[0], -1, -1)
        for index, layer in enumerate(model.decoder.layers):
            position = model.decoder.ref_point_head(coordinate_to_encoding(boxes, num_feats=query.shape[2]))
            query = layer.norms[0](attend_self(layer.self_attn, query, position))
            points = boxes[:, :, None].expand(-1, -1, len(sizes), -1)
            query = layer.norms[1](attend(layer.cross_attn, query, position, memory, points, sizes))
            query = layer.norms[2](layer.ffn(query))
            last = index == len(model.decoder.layers) - 1
            # The head refines the boxes of the last layer with another epsilon, from the normalized queries.
            change = head.reg_branches[index](model.decoder.norm(query) if last else query)
            boxes = (change + inverse_sigmoid(boxes, eps=1e-5 if last else 1e-3)).sigmoid()
        return model.decoder.norm(query), boxes

    def initial_boxes(self, memory: Tensor, sizes: Sizes) -> Tensor:
        """Return the boxes of the points with the best scores, (B, Q, 4)."""
        model, head = self.model, self.model.bbox_head
        proposals = []
        for level, size in enumerate(sizes):
            points = centers(size, memory.device)
            proposals.append(torch.cat([points, torch.full_like(points, 0.05 * 2.0**level)], dim=-1))
        boxes = torch.cat(proposals)[None]
        inside = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
        logits = torch.where(inside, torch.log(boxes / (1 - boxes)), torch.inf)
        memory = model.memory_trans_norm(model.memory_trans_fc(torch.where(inside, memory, 0)))
        last = len(model.decoder.layers)
        scores = head.cls_branches[last](memory).amax(-1)
        indices = scores.topk(model.num_queries, dim=1).indices
        return take(head.reg_branches[last](memory) + logits, indices).sigmoid()

    def select(self, query: Tensor, boxes: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best boxes, their scores and their labels."""
        head = self.model.bbox_head
        logits = head.cls_branches[len(self.model.decoder.layers) - 1](query)
        count = head.test_cfg.get("max_per_img", self.model.num_queries)
        if head.loss_cls.use_sigmoid:
            classes = logits.shape[-1]
            scores, indices = logits.sigmoid().flatten(1).topk(count)
            place = indices // classes
            labels = indices - place * classes
        else:
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)
            scores, place = scores.topk(count)
            labels = labels.gather(1, place)
        boxes = take(boxes, place)
        center, sides = boxes[..., :2], boxes[..., 2:]
        scale = torch.stack([torch.ones_like(scores[0, 0]) * side for side in reversed(size)]).repeat(2)
        return clip(torch.cat([center - 0.5 * sides, center + 0.5 * sides], -1) * scale, size), scores, labels


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
    """Apply mmcv's MultiheadAttention, in operations that any batch size takes.

    Args:
        module: the attention.
        query: (B, Q, C).
        position: positional encoding of the queries, (B, Q, C).

    Returns:
        (B, Q, C), including the residual.
    """
    attention = module.attn
    weights = attention.in_proj_weight.chunk(3)
    biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    moved = query + position
    parts = [F.linear(x, w, b) for x, w, b in zip((moved, moved, query), weights, biases, strict=True)]
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in parts)
    found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return attention.out_proj(found) + query


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
