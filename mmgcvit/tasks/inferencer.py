"""Base of the predictors with inferencers of mmdet and mmseg, and checks of the checkpoint that these load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn, no_grad

from mmgcvit import compat
from mmgcvit.checkpoint.complete import class_names, compare_classes, require_complete
from mmgcvit.checkpoint.loading import accept_bare_network
from mmgcvit.checkpoint.sources import through_reader
from mmgcvit.datasets.problems import data_sets, dataset_class
from mmgcvit.errors import UsageError
from mmgcvit.registry import building
from mmgcvit.runtime.drawing import Colour
from mmgcvit.tasks.base import NetworkInput, PredictionOptions, TrainedModel
from mmgcvit.tasks.sources import PipelineReader, Source


class CheckedWeights:
    """Base class, before mmdet's or mmseg's inferencer, that refuses a checkpoint which does not belong to the config.

    Attributes:
        source: name of the checkpoint, for errors; to be set by subclasses.
        has_names: whether the checkpoint has class names. Without them, mmdet uses those of COCO, and mmseg those of
            Cityscapes.

    Raises:
        UsageError: the model cannot be built.
        CheckpointError: the checkpoint lacks a part of the model, has tensors of other shapes, NaN or infinite values,
            or has the classes of the config in another order.
    """

    source = ""
    has_names = False

    def _init_model(self, *args: Any, **kwargs: Any) -> nn.Module:
        with building("model"):
            return super()._init_model(*args, **kwargs)  # type: ignore[misc]  # of the inferencer

    def _load_weights_to_model(self, model: nn.Module, checkpoint: dict | None, cfg: Any) -> None:
        content = checkpoint or {}
        accept_bare_network(model)  # so that the error about a bare backbone names the missing heads
        require_complete(model, content, self.source)
        trained, given = class_names(content), config_meta(cfg).get("classes") or ()
        # Predictions are named by the checkpoint. A config for other data has other classes.
        if not isinstance(given, str) and len(given) == len(trained):
            compare_classes(trained, given, self.source)
        self.has_names = bool(trained)
        super()._load_weights_to_model(model, checkpoint, cfg)  # type: ignore[misc]  # of the inferencer


class InferencerPredictor(ABC):
    """Base of the predictors that are based on mmdet's or mmseg's inferencer.

    Args:
        cfg: the config, modified in place.
        checkpoint: file or URL.
        options: those of :func:`mmgcvit.apis.predict`.
        inferencer: class of the inferencer.
    """

    def __init__(self, cfg: Config, checkpoint: str, options: PredictionOptions, inferencer: Any) -> None:
        class Inferencer(CheckedWeights, inferencer):
            """The inferencer with a check of the weights."""

            source = checkpoint

        self.reader = PipelineReader(cfg.test_dataloader.dataset.pipeline, cfg.model)
        self.inferencer: Any = Inferencer(cfg, through_reader(checkpoint), device=options.device)
        self.inferencer.show_progress = False  # not all inferencers have an argument for it
        self.classes, self.palette = self.meta(cfg, checkpoint)
        if options.tta:
            self.inferencer.model = MODELS.build({**cfg.tta_model, "module": self.inferencer.model})
        self.batch_size = options.batch_size
        self.results: list[dict] = []

    @abstractmethod
    def meta(self, cfg: Config, checkpoint: str) -> tuple[tuple[str, ...], tuple[Colour, ...]]:
        """Return the names of the classes, as many as the model has, and their colours."""

    @property
    def trained(self) -> TrainedModel:
        """The model, with the colours of its drawings."""
        return TrainedModel(self.inferencer.model, self.classes, self.palette)

    @no_grad()
    def network_input(self, source: Source) -> NetworkInput:
        """Return an image as the network gets it."""
        batch = next(iter(self.inferencer.preprocess([source.pixels], batch_size=1)))
        batch = batch if isinstance(batch, Mapping) else batch[1]  # mmdet's inferencer yields the original images, too
        batch = self.inferencer.model.data_preprocessor(batch, False)
        meta = batch["data_samples"][0].metainfo
        if meta.get("flip"):
            raise UsageError("the test pipeline of the config flips images; allowed: a pipeline without flips")
        x, y = meta.get("scale_factor", (1.0, 1.0))[:2]
        image, (height, width) = batch["inputs"], source.pixels.shape[:2]
        size = min(image.shape[2], round(height * y)), min(image.shape[3], round(width * x))
        return NetworkInput(image, size, (float(x), float(y)), samples=batch["data_samples"])


def config_meta(cfg: Config) -> Mapping[str, Any]:
    """Class names and colours of a config's test data: those in the config, else those of its data set class."""
    dataset = next(data_sets((cfg.get("test_dataloader") or {}).get("dataset")), None)
    if dataset is None:
        return {}
    return compat.dataset_metainfo(dataset_class(dataset), dataset.get("metainfo") or {})
