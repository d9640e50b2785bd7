"""Loading of panoptic annotations without the package panopticapi."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.structures.mask import BitmapMasks
from mmengine import fileio

from mmgcvit.errors import AnnotationError
from mmgcvit.registry import TRANSFORMS
from mmgcvit.tasks.panoptic.annotations import CLASSES, ids_of, png_size_problem


@TRANSFORMS.register_module()
class LoadPanopticAnnotations(LoadAnnotations):
    """mmdet's LoadPanopticAnnotations, which does not need panopticapi and names the file if something is wrong.

    Boxes, labels and masks are those of the things; ``gt_seg_map`` (H, W), uint8, has the class of each pixel, and 255
    where there is none. Samples without ``seg_map_path`` are left as they are, as in inference.

    Args:
        with_bbox, with_label, with_mask, with_seg: what to load.
        box_type: type of the boxes.
        backend_args: of the file client.
        imdecode_backend: accepted for mmdet's configs; Pillow decodes the PNGs.

    Raises:
        AnnotationError: the PNG cannot be read, or has another size than its image, or a segment has no pixels.
    """

    def __init__(
        self,
        with_bbox: bool = True,
        with_label: bool = True,
        with_mask: bool = True,
        with_seg: bool = True,
        box_type: str = "hbox",
        imdecode_backend: str = "cv2",
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(
            with_bbox=with_bbox,
            with_label=with_label,
            with_mask=with_mask,
            with_seg=with_seg,
            box_type=box_type,
            imdecode_backend=imdecode_backend,
            backend_args=backend_args,
        )

    def transform(self, results: dict) -> dict:
        """Load the annotations of ``results``: ``instances``, ``segments_info``, and ``seg_map_path``."""
        if self.with_bbox:
            self._load_bboxes(results)
        if self.with_label:
            self._load_labels(results)
        path = results.get("seg_map_path")
        if path is None or not (self.with_mask or self.with_seg):
            return results
        try:
            ids = ids_of(fileio.get(path, backend_args=self.backend_args))
        except (OSError, AnnotationError) as error:
            raise AnnotationError(f"segments {path}: cannot be read: {error}") from error
        shape = tuple(results.get("ori_shape") or (results["height"], results["width"]))[:2]
        if ids.shape != shape:
            raise AnnotationError(str(png_size_problem(path, ids.shape[::-1], shape[::-1])))
        masks, labels = [], np.full(shape, CLASSES, np.uint8)
        for segment in results["segments_info"]:
            mask: Any = ids == segment["id"]
            if not mask.any():
                raise AnnotationError(
                    f"segments {path}: no pixels of segment {segment['id']}; allowed: those of the annotation file"
                )
            labels[mask] = segment["category"]
            if segment.get("is_thing"):
                masks.append(mask.astype(np.uint8))
        if self.with_mask:
            results["gt_masks"] = BitmapMasks(masks, *shape)
        if self.with_seg:
            results["gt_seg_map"] = labels
        return results
