"""Predictor of a segmentor, for whole images or by sliding window: label maps and the area of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS

from mmgcvit.checkpoint.sources import through_reader
from mmgcvit.errors import UsageError
from mmgcvit.registry import type_name
from mmgcvit.runtime.drawing import Colour, draw
from mmgcvit.runtime.predictions import Segmentation
from mmgcvit.runtime.results import areas_of, check_label_map_names, label_map_name, write_areas
from mmgcvit.tasks.base import NetworkInput, TrainedModel
from mmgcvit.tasks.inferencer import CheckedWeights, config_meta, network_input
from mmgcvit.tasks.sources import PipelineReader, Source, write_image
from mmgcvit.tasks.visualizer import palette_of
from mmgcvit.utils.inputs import Input, tile_step


class Segmentor:
    """Predictor based on mmseg's inferencer, for whole images or a sliding window, with one or several views.

    Args:
        cfg: the config, modified in place; with ``tta``, :func:`mmgcvit.apis.use_tta` must have been applied to it.
        checkpoint, device, tta, tile, overlap, batch_size, ann_file: see :func:`mmgcvit.apis.predict`.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None = None,
        tta: bool = False,
        tile: int | None = None,
        overlap: float = 0.25,
        batch_size: int = 1,
        ann_file: str | None = None,
    ) -> None:
        from mmseg.apis import MMSegInferencer

        if ann_file is not None:
            raise UsageError(f"--ann-file {ann_file!r}: a segmentor's predictions have no ids; omit it")
        if tta:
            for (
                transform
            ) in cfg.test_dataloader.dataset.pipeline:  # mmseg's inferencer removes only top-level transforms
                if "transforms" in transform:
                    transform["transforms"] = [
                        kept
                        for step in transform["transforms"]
                        if (kept := [t for t in step if type_name(t) != "LoadAnnotations"])
                    ]
        if tile is not None:
            step = tile_step(tile, overlap)
            cfg.model.test_cfg = dict(mode="slide", crop_size=(tile, tile), stride=(step, step))

        class Inferencer(CheckedWeights, MMSegInferencer):
            """mmseg's inferencer with a check of the weights."""

            source = checkpoint

        self.reader = PipelineReader(cfg.test_dataloader.dataset.pipeline, cfg.model)
        self.inferencer = Inferencer(cfg, through_reader(checkpoint), device=device)
        self.inferencer.show_progress = False  # only OneDL's inferencer has an argument for it
        self.classes, self.palette = _meta(self.inferencer, cfg, checkpoint)
        if tta:
            self.inferencer.model = MODELS.build({**cfg.tta_model, "module": self.inferencer.model})
        self.batch_size = batch_size
        self.results: list[dict] = []

    @property
    def trained(self) -> TrainedModel:
        """The model, with the colours of its drawings."""
        return TrainedModel(self.inferencer.model, self.classes, self.palette)

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

    def network_input(self, source: Source) -> NetworkInput:
        """Return an image as the network gets it."""
        return network_input(self.inferencer, source.pixels)

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


def _meta(inferencer: Any, cfg: Config, checkpoint: str) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
    """Class names and colours: from the checkpoint, else from the config, else from its data set class.

    Raises:
        UsageError: none of them has as many names as the model has classes, or the config's file of names does not
            exist.
    """
    count = inferencer.model.decode_head.num_classes
    found = [inferencer.model.dataset_meta if inferencer.has_names else {}, config_meta(cfg)]
    for meta in found:
        classes = meta.get("classes") or ()
        if isinstance(classes, str):
            raise UsageError(
                f"test_dataloader.dataset.metainfo.classes={classes!r}; allowed: names, or a file with one "
                "name per line; no such file"
            )
        if len(classes) == count:
            return tuple(classes), palette_of(meta, classes)
    raise UsageError(
        f"checkpoint {checkpoint!r}: has no names for its {count} classes, and neither has the config; add "
        "metainfo=dict(classes=(...)) to test_dataloader.dataset of the config"
    )
