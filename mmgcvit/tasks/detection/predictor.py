"""Predictor of a detector, for whole images or tiles, with one or several views; writes COCO results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from mmengine.config import Config
from torch import nn

from mmgcvit.errors import AnnotationError, UsageError
from mmgcvit.runtime.drawing import Colour, draw
from mmgcvit.runtime.predictions import Detections
from mmgcvit.runtime.results import coco_result, numbered_categories, write_coco
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.tasks.detection.coco import image_file_name, read_lists
from mmgcvit.tasks.inferencer import InferencerPredictor, config_meta
from mmgcvit.tasks.sources import Source
from mmgcvit.tasks.visualizer import detections, palette_of
from mmgcvit.utils import summarize
from mmgcvit.utils.files import require_file
from mmgcvit.utils.inputs import Input, tile_starts, tile_step


class Detector(InferencerPredictor):
    """Predictor based on mmdet's inferencer, for whole images or tiles, with one or several views.

    Args:
        cfg: the config, modified in place; with ``tta``, :func:`mmgcvit.apis.use_tta` must have been applied to it.
        checkpoint: file or URL.
        options: those of :func:`mmgcvit.apis.predict`.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> None:
        from mmdet.apis import DetInferencer

        self.ids = _Ids(options.ann_file)
        self.tile = options.tile
        self.step = tile_step(options.tile, options.overlap) if options.tile else 0
        super().__init__(cfg, checkpoint, options, DetInferencer)
        self.ids.name_categories(self.classes)

    def meta(self, cfg: Config, checkpoint: str) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
        """Return the class names, and the colours that mmdet's inferencer has found."""
        classes = _class_names(self.inferencer, cfg, checkpoint)
        return classes, palette_of(self.inferencer.visualizer.dataset_meta, classes)

    def validate_inputs(self, inputs: Sequence[Input]) -> None:
        """Check that every image has an id, if the ids come from an annotation file.

        Raises:
            UsageError: an image has no id, or could have several.
        """
        self.ids.check([entry.name for entry in inputs if not entry.is_video])

    def __call__(self, sources: Iterator[Source]) -> Iterator[tuple[Source, Any]]:
        """Yield each source with its instances: boxes x1, y1, x2, y2 in pixels, scores, labels, run-length masks."""
        while chunk := list(islice(sources, 1 if self.tile else self.batch_size)):
            if self.tile:
                yield chunk[0], self._tiled(chunk[0].pixels)
                continue
            found = self._detect([source.pixels for source in chunk])
            for source, instances in zip(chunk, found, strict=True):
                if "masks" in instances:
                    instances.masks = [_run_lengths(mask, (0, 0), mask.shape) for mask in instances.masks.numpy()]
                yield source, instances

    def _detect(self, images: list[np.ndarray]) -> list[Any]:
        found = self.inferencer(images, batch_size=self.batch_size, return_datasamples=True, no_save_vis=True)
        if not all("pred_instances" in sample for sample in found["predictions"]):
            raise UsageError(
                f"model.type={type(self.inferencer.model).__name__!r} predicts no instances (panoptic segmentation); "
                "allowed: detectors and instance segmentors"
            )
        return [sample.pred_instances.cpu() for sample in found["predictions"]]

    def _tiled(self, image: np.ndarray) -> Any:
        """Detect on overlapping tiles, shift the instances to image coordinates, and merge them by NMS.

        mmdet's merge_results_by_nms needs another package for the shift, and does not shift masks.
        """
        from mmcv.ops import batched_nms
        from mmengine.structures import InstanceData
        from pycocotools import mask as coco_mask

        height, width = image.shape[:2]
        tile, step = self.tile or max(height, width), self.step
        corners = [(y, x) for y in tile_starts(height, tile, step) for x in tile_starts(width, tile, step)]
        parts = []
        for i in range(0, len(corners), self.batch_size):
            batch = corners[i : i + self.batch_size]
            found = self._detect([image[y : y + tile, x : x + tile] for y, x in batch])
            for (y, x), part in zip(batch, found, strict=True):
                part.bboxes = part.bboxes + part.bboxes.new_tensor([x, y, x, y])
                if "masks" in part:  # masks keep the size of the tile until after NMS
                    part.masks = [(_run_lengths(mask, (0, 0), mask.shape), (y, x)) for mask in part.masks.numpy()]
                parts.append(part)
        merged = InstanceData.cat(parts)
        if not len(merged):
            return merged
        _, kept = batched_nms(merged.bboxes, merged.scores, merged.labels, dict(type="nms", iou_threshold=0.5))
        merged = merged[kept]
        if "masks" in merged:
            merged.masks = [
                _run_lengths(coco_mask.decode(mask), corner, (height, width)) for mask, corner in merged.masks
            ]
        return merged

    def prediction(self, source: Source, instances: Any) -> Detections:
        """Convert the instances of an image."""
        return detections(source.name, source.pixels.shape, self.classes, instances)

    def draw(self, source: Source, instances: Any, score_thr: float) -> np.ndarray:
        """Draw the instances with at least this score on the image (RGB)."""
        found = self.prediction(source, instances[instances.scores >= score_thr])
        return np.asarray(draw(source.display, found, self.palette, score_thr))

    def keep(self, source: Source, instances: Any, _: Path) -> int:
        """Add the instances to the results and return their number."""
        found = self.ids.results(source, instances)
        self.results += found
        return len(found)

    def write(self, folder: Path) -> Path:
        """Write the results, and the images and categories with their ids."""
        return write_coco(folder, self.results, self.ids.images, self.ids.categories)


def _class_names(inferencer: Any, cfg: Config, checkpoint: str) -> tuple[str, ...]:
    """Class names from the checkpoint, else from the config, else from its data set class.

    Raises:
        UsageError: none of them has as many names as the model has classes.
    """
    saved = inferencer.model.dataset_meta["classes"] if inferencer.has_names else ()
    head: Any = getattr(inferencer.model, "roi_head", inferencer.model)
    parts = (getattr(head, name, None) for name in ("bbox_head", "mask_head", "panoptic_head"))
    head = next((part for part in parts if isinstance(part, nn.Module)), None)
    if getattr(inferencer.model, "panoptic_fusion_head", None) is not None:
        head = inferencer.model.panoptic_fusion_head  # other heads may have things only
    count = getattr(head[0] if isinstance(head, nn.ModuleList) else head, "num_classes", None)
    for classes in (saved, config_meta(cfg).get("classes", ())):
        if classes and count in (None, len(classes)) and not isinstance(classes, str):
            return tuple(classes)
    raise UsageError(
        f"checkpoint {checkpoint!r}: has no names for its {count} classes, and neither has the config; add "
        "metainfo=dict(classes=(...)) to test_dataloader.dataset of the config"
    )


class _Ids:
    """Image and category ids of the predictions."""

    def __init__(self, ann_file: str | None) -> None:
        self.file = ann_file
        self.images: list[dict] = []
        self.categories: list[dict] = []
        self.known: dict[str, Any] = {}  # ids by file name
        self.alike: dict[str, list[str]] = {}  # file names by their last part
        self.category_ids: list[int] = []
        self.next = 1
        if ann_file is not None:
            try:
                content = read_lists(require_file("annotation file", ann_file), test_mode=True)
            except AnnotationError as error:
                raise UsageError(str(error)) from error
            for image in content["images"]:
                name = image_file_name(image)
                self.known[name] = image["id"]
                self.alike.setdefault(PurePosixPath(name).name, []).append(name)
            self.categories = content["categories"]
            self.next = max((i for i in self.known.values() if isinstance(i, int)), default=0) + 1

    def name_categories(self, classes: Sequence[str]) -> None:
        if self.file is None:
            self.categories = numbered_categories(classes)
        by_name = {category["name"]: category["id"] for category in self.categories}
        missing = [name for name in classes if name not in by_name]
        if missing:
            raise UsageError(
                f"{self.file}: has no category {', '.join(map(repr, missing))} of the model's classes; it "
                f"has {', '.join(map(repr, by_name))}"
            )
        self.category_ids = [by_name[name] for name in classes]

    def check(self, names: Sequence[str]) -> None:
        if self.file is None:
            return
        found = {name: self._file_names(name) for name in names}
        for name, candidates in found.items():
            if len(candidates) > 1:
                raise UsageError(
                    f"{self.file}: two images with the file name {name!r}, which is ambiguous: "
                    f"{summarize(candidates)}; pass the folder that these names are relative to"
                )
        missing = [name for name, candidates in found.items() if not candidates]
        if missing:
            raise UsageError(
                f"{self.file}: has no image with the file name {missing[0]!r}"
                + (f", nor of {len(missing) - 1} others" if missing[1:] else "")
            )

    def _file_names(self, name: str) -> list[str]:
        """File names in the annotation file that an image may have: its own, else those with the same last part."""
        return [name] if name in self.known else self.alike.get(PurePosixPath(name).name, [])

    def image(self, source: Source) -> dict:
        """Return the entry of an image, and add it to the images; assigns its id."""
        height, width = source.pixels.shape[:2]
        names = self._file_names(source.name) if source.frame is None else []
        known = self.known[names[0]] if names else None
        file_name = names[0] if names else source.name
        image = dict(id=self.next if known is None else known, file_name=file_name, width=width, height=height)
        self.next += known is None
        if source.frame is not None:
            image["frame"] = source.frame
        self.images.append(image)
        return image

    def results(self, source: Source, instances: Any) -> list[dict]:
        """Return the COCO results of one image, and assign its id."""
        from pycocotools import mask as coco_mask

        image = self.image(source)
        found = []
        boxes, scores, labels = instances.bboxes.tolist(), instances.scores.tolist(), instances.labels.tolist()
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            result = coco_result(image["id"], self.category_ids[labels[i]], (x1, y1, x2, y2), scores[i])
            if "track_ids" in instances and instances.track_ids[i] >= 0:
                result["track_id"] = int(instances.track_ids[i])
            if "masks" in instances:
                mask = instances.masks[i]
                if x2 <= x1 or y2 <= y1:  # a detector without boxes, such as SOLO, returns zeros
                    result["bbox"] = coco_mask.toBbox(mask).tolist()
                result["segmentation"] = dict(size=list(mask["size"]), counts=mask["counts"].decode())
            found.append(result)
        return found


def _run_lengths(mask: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of a mask with its top left corner at (y, x) of an image."""
    from pycocotools import mask as coco_mask

    canvas = np.zeros(shape, np.uint8, order="F")
    y, x = corner
    canvas[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return coco_mask.encode(canvas)
