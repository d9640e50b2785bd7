"""mmseg's Mask2Former as a graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.export.encoder_decoder import SegmentationGraph
from mmgcvit.export.masked_attention import replace_parts, unsupported_head


class Mask2FormerGraph(SegmentationGraph):
    """Preprocessing, Mask2Former, and the class of each pixel.

    Args:
        model: an EncoderDecoder of mmseg with a Mask2FormerHead.
        channels: channels of the images.
    """

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        replace_parts(self.model.decode_head)

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return why a segmentor cannot be exported."""
        return SegmentationGraph.unsupported(model) or unsupported_head("model.decode_head", model.decode_head)

    def logits(self, x: Tensor) -> Tensor:
        """Return the scores of the classes, (B, classes, H, W)."""
        classes, masks = self.model.decode_head(self.model.extract_feat(x), [])
        masks = F.interpolate(masks[-1], x.shape[-2:], mode="bilinear", align_corners=False).sigmoid()
        return torch.einsum("bqc,bqhw->bchw", classes[-1].softmax(-1)[..., :-1], masks)
