"""mmseg's segmentors as a graph: images to label maps."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.export.graph import ExportGraph
from mmgcvit.export.modules import replace_modules
from mmgcvit.export.operators import crop


class SegmentationGraph(ExportGraph):
    """Preprocessing, segmentor, logits at the size of the input, and the class of each pixel.

    Args:
        model: an EncoderDecoder of mmseg in mode 'whole'.
        channels: channels of the images.
    """

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__(model, channels)
        self.model = copy.deepcopy(model)
        replace_modules(self.model)
        self.align_corners = model.align_corners
        if model.align_corners:  # mmseg compares sizes as numbers
            self.any_size = "model.decode_head.align_corners=True"
        self.threshold = float(getattr(model.decode_head, "threshold", None) or 0)  # of heads with one output
        self.small = model.out_channels <= 256

    @staticmethod
    def unsupported(model: Any) -> str:
        """Return why a segmentor cannot be exported."""
        kinds = [kind.__name__ for kind in type(model).__mro__]
        if "EncoderDecoder" not in kinds:
            return f"model.type={kinds[0]!r}; allowed: EncoderDecoder"
        if model.test_cfg.get("mode", "whole") != "whole":
            return (
                f"model.test_cfg.mode={model.test_cfg.mode!r}; allowed: 'whole'. Add --cfg-options "
                "model.test_cfg.mode=whole, and cut large images into tiles when you run the model"
            )
        return ""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the class of each pixel, (B, H, W)."""
        height, width = images.shape[-2:]
        x = self.preprocess(images)
        logits = self.logits(x)
        logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        if self.preprocess.divisor > 1:
            logits = crop(logits, height, width)
        labels = (logits.sigmoid() > self.threshold).squeeze(1) if logits.shape[1] == 1 else logits.argmax(dim=1)
        return (labels.to(torch.uint8 if self.small else torch.int32),)

    def logits(self, x: Tensor) -> Tensor:
        """Return the output of the decode head for normalized images, (B, classes, h, w)."""
        return self.model.decode_head(self.model.extract_feat(x))
