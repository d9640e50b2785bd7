"""mmseg's Mask2Former as a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.export.boxes import unsupported_kinds
from mmgcvit.export.encoder_decoder import SegmentationGraph
from mmgcvit.export.queries import attend, centers


class PixelDecoder(nn.Module):
    """mmdet's MSDeformAttnPixelDecoder, with the sizes of the maps as numbers instead of tensors.

    Args:
        decoder: the original, whose modules are used.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the features of the masks (B, C, h, w), and those of the levels, lowest resolution first."""
        decoder = self.decoder
        levels = list(reversed(maps[-decoder.num_encoder_levels :]))
        sizes = [(x.shape[-2], x.shape[-1]) for x in levels]
        positions = [
            decoder.postional_encoding(None, input=x) + embedding.view(1, -1, 1, 1)
            for x, embedding in zip(levels, decoder.level_encoding.weight, strict=True)
        ]
        position = torch.cat([x.flatten(2).transpose(1, 2) for x in positions], dim=1)
        projected = [conv(x) for conv, x in zip(decoder.input_convs, levels, strict=True)]
        query = torch.cat([x.flatten(2).transpose(1, 2) for x in projected], dim=1)
        points = torch.cat([centers(size, query.device) for size in sizes])
        points = points[None, :, None].expand(query.shape[0], -1, len(sizes), -1)
        for layer in decoder.encoder.layers:
            query = layer.norms[0](attend(layer.self_attn, query, position, query, points, sizes))
            query = layer.norms[1](layer.ffn(query))
        outputs = [
            part.transpose(1, 2).unflatten(-1, size)
            for part, size in zip(query.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
        ]
        for level in reversed(range(decoder.num_input_levels - decoder.num_encoder_levels)):
            x = decoder.lateral_convs[level](maps[level])
            x = x + F.interpolate(outputs[-1], x.shape[-2:], mode="bilinear", align_corners=False)
            outputs.append(decoder.output_convs[level](x))
        return decoder.mask_feature(outputs[-1]), outputs[: decoder.num_outs]


class Mask2FormerGraph(SegmentationGraph):
    """Preprocessing, Mask2Former, and the class of each pixel.

    Args:
        model: an EncoderDecoder of mmseg with a Mask2FormerHead.
        channels: channels of the images.
    """

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        head = self.model.decode_head
        head.pixel_decoder = PixelDecoder(head.pixel_decoder)

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return why a segmentor cannot be exported."""
        head = model.decode_head
        decoder = head.pixel_decoder
        reason = SegmentationGraph.unsupported(model) or unsupported_kinds(
            [
                ("model.decode_head.pixel_decoder", decoder, ("MSDeformAttnPixelDecoder",)),
                (
                    "model.decode_head.pixel_decoder.positional_encoding",
                    getattr(decoder, "postional_encoding", None),
                    ("SinePositionalEncoding",),
                ),
            ]
        )
        for layer in [] if reason else decoder.encoder.layers:
            reason = reason or unsupported_kinds(
                [("pixel_decoder: attention", layer.self_attn, ("MultiScaleDeformableAttention",))]
            )
        return reason

    def logits(self, x: Tensor) -> Tensor:
        """Return the scores of the classes, (B, classes, H, W)."""
        classes, masks = self.model.decode_head(self.model.extract_feat(x), [])
        masks = F.interpolate(masks[-1], x.shape[-2:], mode="bilinear", align_corners=False).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes[-1].softmax(-1)[..., :-1], masks)
