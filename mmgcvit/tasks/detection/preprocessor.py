"""Preprocessor of detectors for any number of channels."""

from __future__ import annotations

from mmdet.models import DetDataPreprocessor as MMDetDataPreprocessor

from mmgcvit.registry import MODELS
from mmgcvit.tasks.preprocessing import AnyChannels


@MODELS.register_module()
class DetDataPreprocessor(AnyChannels, MMDetDataPreprocessor):
    """mmdet's DetDataPreprocessor for images with any number of channels."""
