"""The pixel decoder of Mask2Former in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.export.attention import encode
from mmgcvit.export.boxes import unsupported_kinds


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
        projected = [conv(x) for conv, x in zip(decoder.input_convs, levels, strict=True)]
        query, sizes = encode(
            decoder.encoder.layers, decoder.postional_encoding, decoder.level_encoding.weight, projected
        )
        outputs = [
            part.transpose(1, 2).unflatten(-1, size)
            for part, size in zip(query.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
        ]
        for level in reversed(range(decoder.num_input_levels - decoder.num_encoder_levels)):
            x = decoder.lateral_convs[level](maps[level])
            x = x + F.interpolate(outputs[-1], x.shape[-2:], mode="bilinear", align_corners=False)
            outputs.append(decoder.output_convs[level](x))
        return decoder.mask_feature(outputs[-1]), outputs[: decoder.num_outs]


def unsupported_decoder(name: str, decoder: Any) -> str:
    """Return why a pixel decoder cannot be exported; '' if it can.

    Args:
        name: name in the config.
        decoder: the decoder.
    """
    positions = getattr(decoder, "postional_encoding", None)  # mmdet's spelling
    reason = unsupported_kinds(
        [
            (name, decoder, ("MSDeformAttnPixelDecoder",)),
            (f"{name}.positional_encoding", positions, ("SinePositionalEncoding",)),
        ]
    )
    for layer in [] if reason else decoder.encoder.layers:
        reason = reason or unsupported_kinds(
            [(f"{name}: attention", layer.self_attn, ("MultiScaleDeformableAttention",))]
        )
    return reason
