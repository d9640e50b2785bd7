"""The parts of Mask2Former's head that need to be replaced in a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.export.attention import attend_heads, encode, encode_places
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


class Positions(nn.Module):
    """mmdet's SinePositionalEncoding for maps without padding.

    Args:
        encoding: the original.
    """

    def __init__(self, encoding: Any) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, mask: Tensor) -> Tensor:
        """Return the encoding (B, C, h, w) for a mask (B, h, w) that is False everywhere."""
        batch, height, width = mask.shape
        places = encode_places(self.encoding, (height, width))
        return places.t().unflatten(-1, (height, width)).expand(batch, -1, -1, -1)


class Attention(nn.Module):
    """mmcv's MultiheadAttention, batch first, in operations that any batch size takes.

    Args:
        attention: the original.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        attn_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return (B, Q, C) for keys and values (B, N, C); the mask (B * heads, Q, N) is True where to ignore."""
        allowed = None if attn_mask is None else ~attn_mask.unflatten(0, (query.shape[0], -1))
        return attend_heads(self.attention.attn, query + query_pos, key + key_pos, value, allowed) + query


def replace_parts(head: Any) -> None:
    """Replace, in a Mask2FormerHead, what torch.export cannot capture for all sizes of images and batches."""
    for layer in head.transformer_decoder.layers:
        layer.cross_attn, layer.self_attn = Attention(layer.cross_attn), Attention(layer.self_attn)
    head.pixel_decoder = PixelDecoder(head.pixel_decoder)
    head.decoder_positional_encoding = Positions(head.decoder_positional_encoding)


def unsupported_head(name: str, head: Any) -> str:
    """Return why a Mask2FormerHead cannot be exported; '' if it can.

    Args:
        name: name in the config.
        head: the head.
    """
    decoder = head.pixel_decoder
    positions = getattr(decoder, "postional_encoding", None)  # mmdet's spelling
    allowed = ("SinePositionalEncoding",)
    reason = unsupported_kinds(
        [
            (f"{name}.pixel_decoder", decoder, ("MSDeformAttnPixelDecoder",)),
            (f"{name}.pixel_decoder.positional_encoding", positions, allowed),
            (f"{name}.positional_encoding", head.decoder_positional_encoding, allowed),
        ]
    )
    for layer in [] if reason else decoder.encoder.layers:
        reason = reason or unsupported_kinds(
            [(f"{name}.pixel_decoder: attention", layer.self_attn, ("MultiScaleDeformableAttention",))]
        )
    for layer in [] if reason else head.transformer_decoder.layers:
        for part in (layer.self_attn, layer.cross_attn):
            reason = reason or unsupported_kinds(
                [(f"{name}.transformer_decoder: attention", part, ("MultiheadAttention",))]
            )
            if not reason and not part.batch_first:
                reason = f"{name}.transformer_decoder: attention.batch_first=False; allowed: True"
    return reason
