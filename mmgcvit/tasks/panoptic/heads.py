"""Semantic head of Panoptic FPN."""

from __future__ import annotations

from typing import Any

from mmdet.models import PanopticFPNHead as MMDetPanopticFPNHead

from mmgcvit.registry import MODELS


@MODELS.register_module()
class PanopticFPNHead(MMDetPanopticFPNHead):
    """mmdet's PanopticFPNHead, trained in the resolution of the labels.

    mmdet compares scores with the top left label of the 4 x 4 pixels that each score is for. Predictions, which are
    enlarged around the centres of these pixels, then lie 1.5 pixels too far to the right and to the bottom. Here,
    scores are enlarged before the comparison, as for a prediction. Weights are those of mmdet's head.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seg_rescale_factor = 1.0  # of the labels
