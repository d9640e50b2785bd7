"""mmdet's DINO as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmgcvit.export.attention import Sizes, attend, attend_self, centers, encode
from mmgcvit.export.boxes import clip, unsupported_kinds
from mmgcvit.export.graph import ExportGraph
from mmgcvit.export.operators import features, probability, take


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
        memory, sizes = encode(model.encoder.layers, model.positional_encoding, model.level_embed, maps)
        query, boxes = self.decode(memory, sizes)
        return self.select(query, boxes, images.shape[-2:])

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
            scores, indices = probability(logits).flatten(1).topk(count)
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
