"""Test-time augmentation of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models import DetTTAModel

from mmgcvit.registry import MODELS


@MODELS.register_module()
class BoxTTAModel(DetTTAModel):
    """mmdet's DetTTAModel with support for detectors with masks: merges the boxes and drops the masks.

    The arguments are those of DetTTAModel (``module``, ``tta_cfg``).
    """

    def test_step(self, data: Any) -> list[Any]:
        """Return one prediction per image, merged from its augmented views, without masks."""
        head = getattr(self.module, "roi_head", None)
        if head is None or not head.with_mask:
            return super().test_step(data)
        # Remove the head for this step only, as the state dict needs it. mmdet's cascade fails on masks of mirrored
        # views.
        mask_head, head.mask_head = head.mask_head, None
        try:
            return super().test_step(data)
        finally:
            head.mask_head = mask_head

    def merge_preds(self, data_samples_list: Sequence[Sequence[Any]]) -> list[Any]:
        """Merge the boxes of each image's views; drops masks, which one-stage detectors predict with their boxes."""
        for views in data_samples_list:
            for sample in views:
                sample.pred_instances.pop("masks", None)
        return super().merge_preds(data_samples_list)
