"""TAO's DINO in plain torch, written from the description of its layout, over any backbone.

It has TAO's parameter names. Only what predictions need is here: no denoising, no losses.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 256
HEADS = 8


class Attention(nn.Module):
    """Multi-scale deformable attention, one level and one point at a time by ``grid_sample``."""

    def __init__(self, levels: int, points: int) -> None:
        super().__init__()
        self.levels, self.points = levels, points
        self.sampling_offsets = nn.Linear(WIDTH, HEADS * levels * points * 2)
        self.attention_weights = nn.Linear(WIDTH, HEADS * levels * points)
        self.value_proj = nn.Linear(WIDTH, WIDTH)
        self.output_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, query: Tensor, boxes: Tensor, memory: Tensor, padding: Tensor, shapes: list) -> Tensor:
        """Attend from queries (B, Q, C) at points or boxes (B, Q, L, 2 or 4) to maps (B, N, C)."""
        batch, count, _ = query.shape
        values = self.value_proj(memory).masked_fill(padding[..., None], 0.0)
        offsets = self.sampling_offsets(query).view(batch, count, HEADS, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, count, HEADS, -1).softmax(-1)
        weights = weights.view(batch, count, HEADS, self.levels, self.points)
        total = query.new_zeros(batch, count, HEADS, WIDTH // HEADS)
        for level, (value, (height, width)) in enumerate(
            zip(values.split([h * w for h, w in shapes], 1), shapes, strict=True)
        ):
            grid = value.view(batch, height, width, HEADS, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
            place = boxes[:, :, None, level]
            for point in range(self.points):
                move = offsets[:, :, :, level, point]
                if boxes.shape[-1] == 4:
                    where = place[..., :2] + move / self.points * place[..., 2:] / 2
                else:
                    where = place + move / torch.tensor([width, height])
                at = (2 * where - 1).transpose(1, 2).flatten(0, 1)[:, :, None]
                found = F.grid_sample(grid, at, align_corners=False)[..., 0]
                found = found.view(batch, HEADS, -1, count).permute(0, 3, 1, 2)
                total = total + found * weights[:, :, :, level, point, None]
        return self.output_proj(total.flatten(2))


class EncoderLayer(nn.Module):
    def __init__(self, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = Attention(levels, points)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor, position: Tensor, places: Tensor, padding: Tensor, shapes: list) -> Tensor:
        """Map (B, N, C) to the same shape."""
        x = self.norm1(x + self.self_attn(x + position, places, x, padding, shapes))
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class DecoderLayer(nn.Module):
    def __init__(self, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.cross_attn = Attention(levels, points)
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.linear1, self.linear2 = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(
        self, x: Tensor, position: Tensor, boxes: Tensor, memory: Tensor, padding: Tensor, shapes: list
    ) -> Tensor:
        """Map (B, Q, C) to the same shape."""
        query = (x + position).transpose(0, 1)
        x = self.norm2(x + self.self_attn(query, query, x.transpose(0, 1))[0].transpose(0, 1))
        x = self.norm1(x + self.cross_attn(x + position, boxes, memory, padding, shapes))
        return self.norm3(x + self.linear2(self.linear1(x).relu()))


class MLP(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers with ReLU between them."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class Transformer(nn.Module):
    def __init__(
        self, levels: int, layers: tuple[int, int], points: tuple[int, int], hidden: int, queries: int
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(levels, WIDTH))
        self.tgt_embed = nn.Embedding(queries, WIDTH)
        self.enc_output, self.enc_output_norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.layers = nn.ModuleList(EncoderLayer(levels, points[0], hidden) for _ in range(layers[0]))
        self.decoder.layers = nn.ModuleList(DecoderLayer(levels, points[1], hidden) for _ in range(layers[1]))
        self.decoder.norm = nn.LayerNorm(WIDTH)
        self.decoder.ref_point_head = MLP(2 * WIDTH, WIDTH, WIDTH)


class TaoDetector(nn.Module):
    """TAO's DINO.

    Args:
        backbone: returns the maps.
        channels: of these maps.
        levels: with the maps of further convolutions.
        classes: with the background.
        queries: number of queries.
        layers: of the encoder and of the decoder.
        points: of attention in the encoder and in the decoder.
        hidden: channels of the feed-forward layers.
        shared: whether all layers of the decoder share their heads.
    """

    limit = 1e-5  # of boxes between the layers of the decoder; 1e-3 in mmdet

    def __init__(
        self,
        backbone: nn.Module,
        channels: tuple[int, ...],
        levels: int = 4,
        classes: int = 5,
        queries: int = 12,
        layers: tuple[int, int] = (2, 3),
        points: tuple[int, int] = (4, 2),
        hidden: int = 48,
        shared: bool = False,
    ) -> None:
        super().__init__()
        inner, body = nn.Module(), nn.Module()
        body.body = backbone
        inner.backbone = nn.ModuleList([body])
        kernels = [(c, 1) for c in channels] + [(channels[-1], 3)] + [(WIDTH, 3)] * levels
        inner.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, WIDTH, k, 1 if k == 1 else 2, k // 2), nn.GroupNorm(32, WIDTH))
            for c, k in kernels[:levels]
        )
        inner.label_enc = nn.Embedding(classes + 1, WIDTH)
        inner.transformer = Transformer(levels, layers, points, hidden, queries)
        scores = [nn.Linear(WIDTH, classes) for _ in range(layers[1] + 1)]
        boxes = [MLP(WIDTH, WIDTH, WIDTH, 4) for _ in range(layers[1] + 1)]
        inner.class_embed = nn.ModuleList(scores[:1] * layers[1] if shared else scores[:-1])
        inner.bbox_embed = nn.ModuleList(boxes[:1] * layers[1] if shared else boxes[:-1])
        inner.transformer.decoder.class_embed = inner.class_embed
        inner.transformer.decoder.bbox_embed = inner.bbox_embed
        inner.transformer.enc_out_class_embed = scores[-1]
        inner.transformer.enc_out_bbox_embed = boxes[-1]
        self.model = nn.Module()
        self.model.model = inner

    def forward(self, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Predict from normalised images (B, 3, H, W), of which the first (h, w) pixels are not padding.

        Returns:
            Scores before the sigmoid (layers, B, Q, classes), and boxes (layers, B, Q, 4) as centre, width, height.
        """
        inner = self.model.model
        padded = torch.ones(len(images), 1, *images.shape[2:])
        for mask, (height, width) in zip(padded, sizes, strict=True):
            mask[:, :height, :width] = 0
        features = list(inner.backbone[0].body(images))
        maps = []
        for i, project in enumerate(inner.input_proj):
            source = features[i] if i < len(features) else features[-1] if i == len(features) else maps[-1]
            maps.append(project(source))
        masks = [F.interpolate(padded, size=x.shape[2:])[:, 0].bool() for x in maps]
        return self._transform(inner, maps, masks)

    def _transform(self, inner: nn.Module, maps: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        transformer = inner.transformer
        shapes = [tuple(x.shape[2:]) for x in maps]
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        padding = torch.cat([mask.flatten(1) for mask in masks], 1)
        position = torch.cat(
            [positions(mask) + embed for mask, embed in zip(masks, transformer.level_embed, strict=True)], 1
        )
        # share of each map that is not padding (B, L, 2), x before y
        valid = torch.stack(
            [torch.stack([(~mask)[:, 0].float().mean(1), (~mask)[:, :, 0].float().mean(1)], -1) for mask in masks], 1
        )
        centres = []
        for (height, width), ratio in zip(shapes, valid.unbind(1), strict=True):
            y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            centres.append(torch.stack([x / width, y / height], -1).view(1, -1, 2) / ratio[:, None])
        places = torch.cat(centres, 1)
        for layer in transformer.encoder.layers:
            memory = layer(memory, position, places[:, :, None] * valid[:, None], padding, shapes)

        sides = torch.cat([torch.full((h * w,), 0.05 * 2**i) for i, (h, w) in enumerate(shapes)])
        anchors = torch.cat([places, sides[None, :, None].expand(len(memory), -1, 2)], -1)
        out = ((anchors <= 0.01) | (anchors >= 0.99)).any(-1) | padding
        anchors = (anchors / (1 - anchors)).log().masked_fill(out[..., None], float("inf"))
        proposed = transformer.enc_output_norm(transformer.enc_output(memory.masked_fill(out[..., None], 0.0)))
        best = transformer.enc_out_class_embed(proposed).amax(-1).topk(transformer.tgt_embed.num_embeddings, 1).indices
        boxes = transformer.enc_out_bbox_embed(proposed) + anchors
        boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()

        query = transformer.tgt_embed.weight.expand(len(memory), -1, -1)
        scores, found = [], []
        for layer, classify, regress in zip(
            transformer.decoder.layers, inner.class_embed, inner.bbox_embed, strict=True
        ):
            scaled = boxes[:, :, None] * valid.repeat(1, 1, 2)[:, None]
            place = transformer.decoder.ref_point_head(encode(scaled[:, :, 0]))
            query = layer(query, place, scaled, memory, padding, shapes)
            normed = transformer.decoder.norm(query)
            scores.append(classify(normed))
            found.append((regress(normed) + unsigmoid(boxes)).sigmoid())
            boxes = (regress(query) + unsigmoid(boxes, self.limit)).sigmoid()
        return torch.stack(scores), torch.stack(found)


def unsigmoid(x: Tensor, limit: float = 1e-5) -> Tensor:
    """Inverse of the sigmoid for numbers from ``limit`` to 1 - ``limit``; others are clipped."""
    return (x.clamp(0, 1).clamp(min=limit) / (1 - x.clamp(0, 1)).clamp(min=limit)).log()


def waves(x: Tensor, features: int, temperature: float) -> Tensor:
    """Sines and cosines (..., features) of numbers (...), one after the other by frequency."""
    angles = x[..., None] / temperature ** (2 * torch.arange(features // 2) / features)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def positions(mask: Tensor) -> Tensor:
    """Positional encoding (B, H * W, C) of maps with the padding (B, H, W)."""
    encoded = []
    for axis in (1, 2):
        count = (~mask).cumsum(axis, dtype=torch.float32)
        share = count / (count.select(axis, -1).unsqueeze(axis) + 1e-6)
        encoded.append(waves(share * 2 * math.pi, WIDTH // 2, 20))
    return torch.cat(encoded, -1).flatten(1, 2)


def encode(boxes: Tensor) -> Tensor:
    """Encoding (..., 512) of boxes (..., 4): y, x, width, height."""
    x, y, width, height = (waves(part * 2 * math.pi, 128, 10000) for part in boxes.unbind(-1))
    return torch.cat([y, x, width, height], -1)
