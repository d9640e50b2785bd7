"""Predictor of a panoptic segmentor; writes COCO's panoptic format: a JSON file, and PNGs with the ids of segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmgcvit.registry import type_name
from mmgcvit.runtime.drawing import draw
from mmgcvit.runtime.predictions import Panoptic
from mmgcvit.runtime.results import check_label_map_names, coded_segments, label_map_name
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.tasks.detection.predictor import Detector
from mmgcvit.tasks.sources import Source, write_image
from mmgcvit.tasks.visualizer import panoptic
from mmgcvit.utils import write_json
from mmgcvit.utils.inputs import Input


class PanopticSegmentor(Detector):
    """Predictor based on mmdet's inferencer, for whole images.

    Args:
        cfg: the config, modified in place.
        checkpoint: file or URL.
        options: those of :func:`mmgcvit.apis.predict`; ``tta`` and ``tile`` do not apply.

    Raises:
        UsageError: ``tta`` or ``tile`` is used; or as of :class:`~mmgcvit.tasks.detection.predictor.Detector`.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> None:
        options.refuse(("tta", "tile"), "segments of several views or tiles cannot be merged")
        pipeline = cfg.test_dataloader.dataset.pipeline
        pipeline[:] = [step for step in pipeline if type_name(step) != "LoadPanopticAnnotations"]
        super().__init__(cfg, checkpoint, options)

    def validate_inputs(self, inputs: Sequence[Input]) -> None:
        """Check that each image has an id, if they come from a file, and that each gets a PNG of its own.

        Raises:
            UsageError: an image has no id, or several; two file names differ only in the suffix.
        """
        super().validate_inputs(inputs)
        check_label_map_names(inputs)

    def __call__(self, sources: Iterator[Source]) -> Iterator[tuple[Source, np.ndarray]]:
        """Yield each source with the prediction of mmdet (H, W): class + 1000 x number of the object."""
        while chunk := list(islice(sources, self.batch_size)):
            images = [source.pixels for source in chunk]
            found = self.inferencer(images, batch_size=self.batch_size, return_datasamples=True, no_save_vis=True)
            for source, sample in zip(chunk, found["predictions"], strict=True):
                yield source, sample.pred_panoptic_seg.sem_seg[0].cpu().numpy().astype(np.int32)

    def prediction(self, source: Source, found: np.ndarray) -> Panoptic:  # type: ignore[override]  # other results
        """Convert the segments of an image."""
        return panoptic(source.name, self.classes, found)

    def draw(self, source: Source, found: np.ndarray, _: float) -> np.ndarray:
        """Draw the segments on the image (RGB), with a legend of the classes."""
        prediction = self.prediction(source, found)
        return np.asarray(draw(source.display, prediction, self.palette, is_frame=source.frame is not None))

    def keep(self, source: Source, found: np.ndarray, folder: Path) -> int:
        """Write the PNG of an image, and add its segments to the results; returns their number."""
        prediction = self.prediction(source, found)
        png, segments = coded_segments(prediction, self.palette, self.ids.category_ids)
        name = label_map_name(source.name, source.frame).replace("labels", "panoptic", 1)
        write_image(folder / name, png)
        image = self.ids.image(source)
        self.results.append(
            dict(image_id=image["id"], file_name=name.removeprefix("panoptic/"), segments_info=segments)
        )
        return len(segments)

    def write(self, folder: Path) -> Path:
        """Write the segments of all images with their categories."""
        things = int(getattr(self.trained.model, "num_things_classes", 0))
        isthing = {key: int(i < things) for i, key in enumerate(self.ids.category_ids)}
        known = [dict(c, isthing=isthing.get(c["id"], c.get("isthing", 0))) for c in self.ids.categories]
        content = dict(images=self.ids.images, annotations=self.results, categories=known)
        write_json(folder / "predictions.json", content)
        return folder / "predictions.json"
