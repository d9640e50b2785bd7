"""Test-time augmentation of detectors."""

from __future__ import annotations

from typing import Any

from mmdet.models import DetTTAModel
from mmengine.registry import MODELS


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """mmdet's DetTTAModel for detectors with masks too, whose masks are left out: it merges boxes alone.

    Args: those of DetTTAModel (``module``, ``tta_cfg``).
    """

    def test_step(self, data: Any) -> list[Any]:
        """One prediction for each image, from those of its augmented views; without masks."""
        head = getattr(self.module, "roi_head", None)
        if head is None or not head.with_mask:
            return super().test_step(data)
        # Not for good: the detector's state dict has the head, and mmdet's cascade fails at masks of mirrored views.
        mask_head, head.mask_head = head.mask_head, None
        try:
            return super().test_step(data)
        finally:
            head.mask_head = mask_head
