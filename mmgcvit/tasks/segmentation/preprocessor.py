"""Preprocessor of segmentors for any number of channels."""

from __future__ import annotations

from mmseg.models import SegDataPreProcessor as MMSegDataPreProcessor

from mmgcvit.registry import MODELS
from mmgcvit.tasks.preprocessing import AnyChannels


@MODELS.register_module()
class SegDataPreProcessor(AnyChannels, MMSegDataPreProcessor):
    """mmseg's SegDataPreProcessor for images with any number of channels."""
