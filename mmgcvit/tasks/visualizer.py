"""Drawings of mmdet's and mmseg's data samples, all in the look of :mod:`mmgcvit.runtime.drawing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import master_only
from mmengine.visualization import Visualizer
from PIL import Image

from mmgcvit.registry import VISUALIZERS
from mmgcvit.runtime.drawing import Colour, default_palette, draw
from mmgcvit.runtime.masks import Region
from mmgcvit.runtime.predictions import Detections, Panoptic, Segmentation
from mmgcvit.runtime.results import write_drawing

OFFSET = 1000  # mmdet's panoptic prediction of a pixel is its class + OFFSET x number of the object
GAP = 8  # pixels between truth and prediction


def palette_of(meta: Mapping[str, Any], classes: Sequence[str]) -> tuple[Colour, ...]:
    """Return the colours of classes, the same wherever they are drawn.

    They are those of the meta information, unless they were not made for these classes: CocoDataset has the colours of
    COCO whatever its classes, and mmseg makes random ones for data sets without any.

    Args:
        meta: meta information of a data set or a checkpoint.
        classes: the class names.
    """
    palette = meta.get("palette")
    if isinstance(palette, str) or palette is None or len(palette) != len(classes):
        return default_palette(classes)
    colours = np.asarray(palette).reshape(-1, 3).astype(int)
    if np.array_equal(colours, np.random.RandomState(42).randint(0, 255, size=colours.shape)):
        return default_palette(classes)
    return tuple((r, g, b) for r, g, b in colours.tolist())


def detections(name: str, size: Sequence[int], classes: Sequence[str], instances: Any) -> Detections:
    """Convert mmdet's instances; those of the ground truth have no scores, and get 1.

    Args:
        name: name of the image.
        size: its height and width.
        classes: class names.
        instances: with ``bboxes``, ``labels``, and optionally ``scores``, ``track_ids`` and ``masks``: boolean arrays,
            mmdet's mask structures, or run lengths.
    """
    height, width = size[:2]
    boxes = _array(getattr(instances.bboxes, "tensor", instances.bboxes)).astype(np.float32).reshape(-1, 4)
    labels = _array(instances.labels).astype(np.int64)
    scores = _array(instances.scores).astype(np.float32) if "scores" in instances else np.ones(len(labels), np.float32)
    regions = [_region(mask) for mask in _masks(instances.masks)] if "masks" in instances else None
    for i, region in enumerate(regions or ()):
        if boxes[i, 2] <= boxes[i, 0] or boxes[i, 3] <= boxes[i, 1]:  # a detector without boxes, such as SOLO
            boxes[i] = region.box()
    tracks = _array(instances.track_ids) if "track_ids" in instances else None
    return Detections(name, height, width, tuple(classes), boxes, scores, labels, regions, tracks)


def panoptic(name: str, classes: Sequence[str], found: np.ndarray) -> Panoptic:
    """Convert mmdet's panoptic prediction (H, W): class + 1000 x number of the object."""
    height, width = found.shape
    labels = np.minimum(found % OFFSET, len(classes)).astype(np.int32)
    segments = np.where(labels < len(classes), found + 1, 0)
    return Panoptic(name, height, width, tuple(classes), labels, segments)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _masks(masks: Any) -> list[np.ndarray]:
    if hasattr(masks, "to_ndarray"):  # mmdet's BitmapMasks and PolygonMasks
        return list(masks.to_ndarray().astype(bool))
    if isinstance(masks, list):
        from pycocotools import mask as coco_mask

        return [coco_mask.decode(mask).astype(bool) for mask in masks]
    return list(_array(masks).astype(bool))


def _region(mask: np.ndarray) -> Region:
    x1, y1, x2, y2 = Region(mask, 0, 0).box()
    return Region(mask[y1:y2, x1:x2], x1, y1)


@VISUALIZERS.register_module()
class PairVisualizer(Visualizer):
    """Draws the ground truth of a data sample on the left, its prediction on the right.

    For mmdet's and mmseg's visualization hooks, in the place of their own visualizers.
    """

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: Any = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        pred_score_thr: float = 0.3,
        out_file: str | None = None,
        step: int = 0,
        **_: Any,
    ) -> None:
        """Draw a sample, and write it to a file or to the visualization backends; for arguments see mmdet's method."""
        classes = tuple(self.dataset_meta.get("classes") or ())
        palette = palette_of(self.dataset_meta, classes)
        parts = []
        whole = "pred_panoptic_seg" in data_sample and "gt_sem_seg" in data_sample  # a class for each pixel
        for wanted, kind in ((draw_gt, "gt"), (draw_pred, "pred")):
            instances, labels = f"{kind}_instances", f"{kind}_sem_seg"
            if wanted and kind == "pred" and "pred_panoptic_seg" in data_sample:
                segments = panoptic(name, classes, _array(data_sample.pred_panoptic_seg.sem_seg)[0])
                parts.append(draw(image, segments, palette))
            elif wanted and instances in data_sample and "bboxes" in getattr(data_sample, instances) and not whole:
                found = detections(name, image.shape, classes, getattr(data_sample, instances))
                parts.append(draw(image, found, palette, pred_score_thr, with_scores=kind == "pred"))
            elif wanted and labels in data_sample:
                height, width = image.shape[:2]
                pixels = getattr(data_sample, labels)
                label_map = _array(pixels.sem_seg if "sem_seg" in pixels else pixels.data).reshape(height, width)
                parts.append(draw(image, Segmentation(name, height, width, classes, label_map), palette))
        drawn = np.asarray(_side_by_side(parts or [Image.fromarray(image)]))
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            write_drawing(Path(out_file), Image.fromarray(drawn))
        else:
            self.add_image(name, drawn, step)


def _side_by_side(parts: Sequence[Image.Image]) -> Image.Image:
    width, height = sum(part.width for part in parts) + GAP * (len(parts) - 1), max(part.height for part in parts)
    canvas, x = Image.new("RGB", (width, height), (24, 24, 24)), 0
    for part in parts:
        canvas.paste(part, (x, 0))
        x += part.width + GAP
    return canvas
