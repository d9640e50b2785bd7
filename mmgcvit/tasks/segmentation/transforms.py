"""Checks of label maps as they are loaded: those that were not decoded before the run, too."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from mmgcvit.datasets.images import incomplete
from mmgcvit.datasets.problems import class_names
from mmgcvit.errors import AnnotationError, CorruptImageError
from mmgcvit.registry import TRANSFORMS, type_name
from mmgcvit.tasks.segmentation.label_maps import IGNORED, heads
from mmgcvit.tasks.segmentation.pairs import DEEP, size_problem
from mmgcvit.utils.images import any_image_size, check_pixels
from mmgcvit.utils.text import counted


@TRANSFORMS.register_module()
class CheckLabelFile(BaseTransform):
    """Check of the file of a label map that mmseg's LoadAnnotations will load, before it is decoded.

    mmseg does not name a file that it cannot decode, decodes images of any size, and truncates values of more than 8
    bits. Remote files, and samples without a label map, are not checked.

    Raises:
        AnnotationError: the file is not there, is empty or cut off, has too many pixels
            (:func:`~mmgcvit.utils.images.max_pixels`), or values of more than 8 bits.
    """

    def transform(self, results: dict) -> dict:
        """Check ``results['seg_map_path']``."""
        path = results.get("seg_map_path")
        if path is None or "://" in str(path):
            return results
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for its other end
                raise OSError("not a file")
            content = Path(path).read_bytes()
            if not content:
                raise CorruptImageError("the file is empty")
            check_pixels(content)
            reason = incomplete(content)
        except OSError as error:
            raise AnnotationError(f"label map {path}: cannot be read: {error}") from error
        if reason:
            raise AnnotationError(f"label map {path}: {reason}")
        _require_8_bits(str(path), content)
        return results


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Check of the label map that mmseg's LoadAnnotations has just loaded.

    A value that is no class would end in an IndexError of a loss or a metric, without the name of the file, or be
    counted as nothing. Without a label map nothing is checked.

    Args:
        num_classes: allowed labels are 0 to ``num_classes - 1``, and
        ignore_index: the ignored label.

    Raises:
        AnnotationError: the label map has other values, or another size than its image.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORED) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict) -> dict:
        """Check ``results['gt_seg_map']`` (H, W), uint8."""
        labels = results.get("gt_seg_map")
        if labels is None:
            return results
        path = results.get("seg_map_path")
        shape = results.get("ori_shape")
        if shape is not None and labels.shape[:2] != tuple(shape[:2]):
            raise AnnotationError(str(size_problem(f"label map {path}", labels.shape[1::-1], shape[1::-1])))
        wrong = (labels >= self.num_classes) & (labels != self.ignore_index)
        if wrong.any():
            values = ", ".join(map(str, np.unique(labels[wrong])[:8]))
            raise AnnotationError(
                f"label map {path}: {counted(wrong.sum(), 'pixel has', 'pixels have')}, as loaded, a label of "
                f"{values}; allowed: 0 to {self.num_classes - 1}, and {self.ignore_index}, which is ignored"
            )
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_classes={self.num_classes}, ignore_index={self.ignore_index})"


def _require_8_bits(path: str, content: bytes) -> None:
    try:
        with any_image_size(), Image.open(io.BytesIO(content)) as image:  # reads the header only
            if image.mode not in DEEP:
                return
            low, high = np.asarray(image.getextrema()).tolist()
    except OSError:  # none of Pillow's
        return
    if low < 0 or high > IGNORED:
        raise AnnotationError(
            f"label map {path}: has values from {low} to {high} ({image.mode!r}); allowed: 0 to {IGNORED}, as larger "
            "values are silently truncated to 8 bits"
        )


def add_label_checks(dataset: Mapping[str, Any], model: Mapping[str, Any] | None) -> None:
    """Add :class:`CheckLabelFile` before and :class:`CheckLabels` after each LoadAnnotations of a data set, in place.

    Without class names, the labels are not checked.
    """
    names, pipeline = class_names(dataset), dataset.get("pipeline")
    if not isinstance(pipeline, list):
        return
    ignored = next((head.get("ignore_index", IGNORED) for _, head in heads(model)), IGNORED)
    before: list = [dict(type="mmgcvit.CheckLabelFile")]
    after = [dict(type="mmgcvit.CheckLabels", num_classes=len(names), ignore_index=ignored)] if names else []
    steps = [step for step in pipeline if type_name(step) not in ("CheckLabelFile", "CheckLabels")]
    pipeline.clear()
    for step in steps:
        pipeline += [*before, step, *after] if type_name(step) == "LoadAnnotations" else [step]
