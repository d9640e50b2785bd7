"""Predictor of a classifier: the most probable classes of each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from timm.data import ImageNetInfo

from mmgcvit.checkpoint.complete import class_names, compare_classes, load_complete
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.sources import resolve_source
from mmgcvit.datasets.pipelines import loading_arguments
from mmgcvit.export.rules import input_rule
from mmgcvit.registry import building, type_name
from mmgcvit.runtime.drawing import default_palette, draw
from mmgcvit.runtime.predictions import Classification
from mmgcvit.runtime.resize import crop_offset, resized_size
from mmgcvit.runtime.results import TOP, class_result, write_classes
from mmgcvit.tasks.base import NetworkInput, PredictionOptions, TrainedModel
from mmgcvit.tasks.classification.dataset import class_list
from mmgcvit.tasks.classification.transforms import LoadPillowImage, PillowReader, swap_colours
from mmgcvit.tasks.sources import Source
from mmgcvit.utils.inputs import Input


class ClassPredictor:
    """Predictor that applies a config's model and test pipeline.

    Args:
        cfg: the config.
        checkpoint: file or URL.
        options: ``tta``, ``tile`` and ``ann_file`` do not apply.

    Raises:
        UsageError: an option does not apply, or the model cannot be built.
        CheckpointError: the checkpoint cannot be read, does not belong to the model, or has the classes of the config
            in another order.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> None:
        options.refuse(("tta", "tile", "ann_file"), "not supported for classifiers")
        init_default_scope(cfg.get("default_scope", "mmengine"))
        with building("model"):
            self.model = MODELS.build(cfg.model)
        content = read_checkpoint(resolve_source(checkpoint), "cpu")
        load_complete(self.model, content, checkpoint)
        trained = class_names(content)
        names = class_list(cfg.test_dataloader.dataset.get("classes")) or ()
        if len(names) == len(trained):
            compare_classes(trained, names, checkpoint)
        self.model.to(options.device or get_device()).eval()
        pipeline = cfg.test_dataloader.dataset.pipeline
        self.pipeline = pipeline
        self.transform = Compose([step for step in pipeline if type_name(step) != "LoadPillowImage"])
        self.reader = PillowReader(LoadPillowImage(**loading_arguments(pipeline)))
        self.batch_size = options.batch_size
        self.classes = _class_names(cfg, content, self.model.num_classes)
        self.results: list[dict] = []

    @property
    def trained(self) -> TrainedModel:
        """The model, with a colour for each class."""
        return TrainedModel(self.model, tuple(self.classes), default_palette(self.classes))

    def validate_inputs(self, inputs: Sequence[Input]) -> None:
        """Accept all inputs."""

    @torch.no_grad()
    def __call__(self, sources: Iterator[Source]) -> Iterator[tuple[Source, list[tuple[str, float]]]]:
        """Yield each source with its most probable classes and their probabilities."""
        while chunk := list(islice(sources, self.batch_size)):
            inputs = [self._transformed(source) for source in chunk]
            for source, scores in zip(chunk, self.model.test_step(dict(inputs=torch.stack(inputs))), strict=True):
                values, indices = scores.topk(min(TOP, len(scores)))
                pairs = zip(indices.tolist(), values.tolist(), strict=True)
                yield source, [(self.classes[index], value) for index, value in pairs]

    def _transformed(self, source: Source) -> torch.Tensor:
        image = Image.fromarray(swap_colours(source.pixels))
        return self.transform(dict(img=image, img_path=source.name, targets=0, sample_idx=0))["inputs"]

    @torch.no_grad()
    def network_input(self, source: Source) -> NetworkInput:
        """Return an image as the network gets it.

        Raises:
            ExportError: the test pipeline changes images in a way that cannot be traced back.
        """
        rule = input_rule(self.pipeline).resize
        size = source.pixels.shape[:2]
        height, width = resized_size(size, rule)
        top, left = (0, 0) if rule.crop is None else crop_offset((height, width), rule.crop)
        batch = self.model.data_preprocessor(dict(inputs=self._transformed(source)[None]), False)
        inputs = batch["inputs"]
        return NetworkInput(inputs, tuple(inputs.shape[2:]), (width / size[1], height / size[0]), (-left, -top))

    def prediction(self, source: Source, found: list[tuple[str, float]]) -> Classification:
        """Convert the most probable classes of an image."""
        names, values = zip(*found, strict=True)
        height, width = source.pixels.shape[:2]
        return Classification(source.name, height, width, names, np.array(values, np.float32))

    def draw(self, source: Source, found: list[tuple[str, float]], score_thr: float) -> np.ndarray:
        """Write the most probable classes below the image (RGB)."""
        return np.asarray(draw(source.display, self.prediction(source, found), ()))

    def keep(self, source: Source, found: list[tuple[str, float]], _: Path) -> int:
        """Add the classes to the results; returns 0, as there are no objects."""
        result = class_result(source.name, found)
        if source.frame is not None:
            result["frame"] = source.frame
        self.results.append(result)
        return 0

    def write(self, folder: Path) -> Path:
        """Write the classes of all images, as JSON and as a table."""
        return write_classes(folder, self.results)


def _class_names(cfg: Config, checkpoint: Any, count: int) -> list[str]:
    """Class names: from the checkpoint, else from the config, else those of ImageNet-1k, else numbers."""
    given = cfg.test_dataloader.dataset.get("classes")
    for names in (class_names(checkpoint), class_list(given) if isinstance(given, str) else given):
        if isinstance(names, (list, tuple)) and len(names) == count:
            return list(map(str, names))
    if count == 1000:
        info = ImageNetInfo("imagenet-1k")
        return [info.index_to_description(index) for index in range(count)]
    return list(map(str, range(count)))
