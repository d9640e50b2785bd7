"""Test-time augmentation of detectors."""

from __future__ import annotations

from typing import Any

from mmdet.models import DetTTAModel

from mmgcvit.registry import MODELS


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """mmdet's DetTTAModel that also takes detectors with masks; it merges the boxes and drops the masks.

    Args: those of DetTTAModel (``module``, ``tta_cfg``).
    """

    def test_step(self, data: Any) -> list[Any]:
        """One prediction per image, merged from its augmented views, without masks."""
        head = getattr(self.module, "roi_head", None)
        if head is None or not head.with_mask:
            return super().test_step(data)
        # Only for this step: the head belongs to the state dict. mmdet's cascade fails at masks of mirrored views.
        mask_head, head.mask_head = head.mask_head, None
        try:
            return super().test_step(data)
        finally:
            head.mask_head = mask_head
