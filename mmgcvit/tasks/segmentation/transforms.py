"""Check of label maps as they are loaded: those that were not decoded before the run, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from mmgcvit.datasets.problems import class_names
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import TRANSFORMS, type_name
from mmgcvit.tasks.segmentation.label_maps import IGNORED, heads
from mmgcvit.tasks.segmentation.pairs import DEEP
from mmgcvit.utils.images import any_image_size


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Check of the label map that mmseg's LoadAnnotations has just loaded.

    A value that is no class would end in an IndexError of a loss or a metric, without the name of the file, or be
    counted as nothing. Values of more than 8 bits are truncated by mmseg. Without a label map nothing is checked.

    Args:
        num_classes: allowed labels are 0 to ``num_classes - 1``, and
        ignore_index: the ignored label.

    Raises:
        AnnotationError: the label map has other values.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORED) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict) -> dict:
        """Check ``results['gt_seg_map']`` (H, W), uint8."""
        labels = results.get("gt_seg_map")
        if labels is None:
            return results
        path = results.get("seg_map_path")
        _require_8_bits(str(path))
        wrong = (labels >= self.num_classes) & (labels != self.ignore_index)
        if wrong.any():
            values = ", ".join(map(str, np.unique(labels[wrong])[:8]))
            raise AnnotationError(
                f"label map {path}: {wrong.sum()} pixels have, as loaded, a label of {values}; allowed: 0 to "
                f"{self.num_classes - 1}, and {self.ignore_index}, which is ignored"
            )
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_classes={self.num_classes}, ignore_index={self.ignore_index})"


def _require_8_bits(path: str) -> None:
    try:
        with any_image_size(), Image.open(path) as image:  # reads the header only
            if image.mode not in DEEP:
                return
            low, high = np.asarray(image.getextrema()).tolist()
    except OSError:  # a remote file, or none of Pillow's
        return
    if low < 0 or high > IGNORED:
        raise AnnotationError(
            f"label map {path}: has values from {low} to {high} ({image.mode!r}); allowed: 0 to {IGNORED}, as larger "
            "values are silently truncated to 8 bits"
        )


def add_label_checks(dataset: Mapping[str, Any], model: Mapping[str, Any] | None) -> None:
    """Add :class:`CheckLabels` after each LoadAnnotations of a config's data set, in place, if it has classes."""
    names, pipeline = class_names(dataset), dataset.get("pipeline")
    if not names or not isinstance(pipeline, list):
        return
    ignored = next((head.get("ignore_index", IGNORED) for _, head in heads(model)), IGNORED)
    check = dict(type="mmgcvit.CheckLabels", num_classes=len(names), ignore_index=ignored)
    steps = [step for step in pipeline if type_name(step) != "CheckLabels"]
    pipeline.clear()
    for step in steps:
        pipeline += [step, check] if type_name(step) == "LoadAnnotations" else [step]
