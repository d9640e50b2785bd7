"""Predictor of a segmentor, for whole images or by sliding window: label maps and the area of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from mmengine.config import Config

from mmgcvit.errors import UsageError
from mmgcvit.registry import type_name
from mmgcvit.runtime.drawing import Colour, draw
from mmgcvit.runtime.predictions import Segmentation
from mmgcvit.runtime.results import areas_of, check_label_map_names, label_map_name, write_areas
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.tasks.inferencer import InferencerPredictor, config_meta
from mmgcvit.tasks.sources import Source, write_image
from mmgcvit.tasks.visualizer import palette_of
from mmgcvit.utils.inputs import Input, tile_step
from mmgcvit.utils.text import counted


class Segmentor(InferencerPredictor):
    """Predictor based on mmseg's inferencer, for whole images or a sliding window, with one or several views.

    Args:
        cfg: the config, modified in place; with ``tta``, :func:`mmgcvit.apis.use_tta` must have been applied to it.
        checkpoint: file or URL.
        options: those of :func:`mmgcvit.apis.predict`; ``ann_file`` does not apply.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> None:
        from mmseg.apis import MMSegInferencer

        options.refuse(("ann_file",), "a segmentor's predictions have no ids")
        if options.tta:
            # mmseg's inferencer removes LoadAnnotations at the top level only.
            for transform in cfg.test_dataloader.dataset.pipeline:
                if "transforms" in transform:
                    transform["transforms"] = [
                        kept
                        for step in transform["transforms"]
                        if (kept := [t for t in step if type_name(t) != "LoadAnnotations"])
                    ]
        if (tile := options.tile) is not None:
            step = tile_step(tile, options.overlap)
            cfg.model.test_cfg = dict(mode="slide", crop_size=(tile, tile), stride=(step, step))
        super().__init__(cfg, checkpoint, options, MMSegInferencer)

    def meta(self, cfg: Config, checkpoint: str) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
        """Return class names and colours: from the checkpoint, else from the config, else from its data set class.

        Raises:
            UsageError: none of them has as many names as the model has classes, or the config's file of names does not
                exist.
        """
        count = self.inferencer.model.decode_head.num_classes
        for meta in (self.inferencer.model.dataset_meta if self.inferencer.has_names else {}, config_meta(cfg)):
            classes = meta.get("classes") or ()
            if isinstance(classes, str):
                raise UsageError(
                    f"test_dataloader.dataset.metainfo.classes={classes!r}; allowed: names, or a file with one "
                    "name per line; no such file"
                )
            if len(classes) == count:
                return tuple(classes), palette_of(meta, classes)
        raise UsageError(
            f"checkpoint {checkpoint!r}: has no names for its {counted(count, 'class')}, and neither has the config; "
            "add metainfo=dict(classes=(...)) to test_dataloader.dataset of the config"
        )

    def validate_inputs(self, inputs: Sequence[Input]) -> None:
        """Check that each image, and each frame of a video, gets a label map file of its own.

        Raises:
            UsageError: two file names differ only in the suffix, or a video and a folder have the same name.
        """
        check_label_map_names(inputs)

    def __call__(self, sources: Iterator[Source]) -> Iterator[tuple[Source, np.ndarray]]:
        """Yield each source with its label map (H, W), uint8, in the size of the source."""
        while chunk := list(islice(sources, self.batch_size)):
            maps: dict[int, np.ndarray] = {}
            for shape in dict.fromkeys(
                source.pixels.shape for source in chunk
            ):  # all images of a batch have the same shape
                same = [i for i, source in enumerate(chunk) if source.pixels.shape == shape]
                found = self.inferencer([chunk[i].pixels for i in same], batch_size=len(same), return_datasamples=True)
                for i, sample in zip(same, found if isinstance(found, list) else [found], strict=True):
                    maps[i] = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)
            for i, source in enumerate(chunk):
                yield source, maps[i]

    def prediction(self, source: Source, labels: np.ndarray) -> Segmentation:
        """Convert the label map of an image."""
        height, width = labels.shape
        return Segmentation(source.name, height, width, self.classes, labels)

    def draw(self, source: Source, labels: np.ndarray, _: float) -> np.ndarray:
        """Draw the label map on the image (RGB), with a legend of the classes."""
        found = self.prediction(source, labels)
        return np.asarray(draw(source.display, found, self.palette, is_frame=source.frame is not None))

    def keep(self, source: Source, labels: np.ndarray, folder: Path) -> int:
        """Write the label map and add its areas to the results; returns 0, as there are no objects."""
        name = label_map_name(source.name, source.frame)
        write_image(folder / name, labels)
        image = areas_of(source.name, name, labels, self.classes)
        if source.frame is not None:
            image["frame"] = source.frame
        self.results.append(image)
        return 0

    def write(self, folder: Path) -> Path:
        """Write the class of each label value, and the areas."""
        return write_areas(folder, self.results, self.classes)
