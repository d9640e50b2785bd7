"""Models as the web page uses them: image file in, prediction out; and a model from an exported file."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.errors import UsageError
from mmgcvit.runtime import Prediction, Predictor
from mmgcvit.runtime.drawing import Colour
from mmgcvit.runtime.results import RESULTS, Results
from mmgcvit.utils.images import to_display
from mmgcvit.utils.inputs import Input


class AppModel(ABC):
    """A model with what the page can do with it.

    Attributes:
        name: heading of the page.
        task: 'detection', 'segmentation', 'classification' or 'panoptic segmentation'.
        classes: class names.
        palette: RGB colour of each class.
        tile: side of the tiles that larger images can be cut into, in pixels; None if they cannot.
        has_tta: whether there is test-time augmentation.
        methods: what a click can show: names for people by key of :data:`mmgcvit.explain.METHODS`.
    """

    name: str
    task: str
    classes: Sequence[str]
    palette: Sequence[Colour]
    tile: int | None
    has_tta: bool
    methods: Mapping[str, str] = {}

    @abstractmethod
    def predict(self, entry: Input, tiles: bool, tta: bool) -> tuple[Any, Prediction]:
        """Predict on an image; returns it as the model loads it, and the prediction.

        Raises:
            UsageError: the image cannot be decoded, or does not suit the model.
        """

    @abstractmethod
    def display(self, image: Any) -> np.ndarray:
        """Return a loaded image to draw on, (H, W, 3) uint8, RGB."""

    def results(self, folder: Path) -> Results:
        """Return what writes predictions to a folder."""
        return RESULTS[self.task](self.classes, folder)

    def examples(self) -> Sequence[Path]:
        """Return images to try."""
        return []

    def explain(self, image: Any, at: tuple[float, float], method: str) -> Image.Image:
        """Make a figure of what the model sees at a pixel (x, y) of a loaded image.

        Raises:
            UsageError: there is nothing to show at this pixel, or the model has no ``methods``.
        """
        raise UsageError(f"{self.name}: cannot be explained; allowed: a config with a GC ViT, and its checkpoint")


class ExportedModel(AppModel):
    """A model from a file of ``mmgcvit export``, without torch; nothing can be explained.

    Args:
        file: ONNX or OpenVINO file.
        tile: side of the tiles.

    Raises:
        UsageError: the file cannot be opened.
    """

    has_tta = False

    def __init__(self, file: str, tile: int) -> None:
        self.predictor = Predictor(file)
        info = self.predictor.info
        self.name, self.task, self.classes, self.palette = Path(file).name, info.task, info.classes, info.palette
        self.tiled = copy.copy(self.predictor)  # with the same session
        self.tile = tile
        try:
            self.tiled.use_tiles(tile)
        except UsageError:
            self.tile = None

    def predict(self, entry: Input, tiles: bool, tta: bool) -> tuple[Any, Prediction]:
        """Predict on an image."""
        predictor = self.tiled if tiles and self.tile else self.predictor
        return next(predictor.run(iter([predictor.load.file(entry)])))

    def display(self, image: Any) -> np.ndarray:
        """Return a loaded image to draw on."""
        return to_display(image.pixels)
