"""A model from a config and a checkpoint, as the web page uses it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmgcvit.apis.config import load_config
from mmgcvit.apis.inference import load_predictor
from mmgcvit.apis.tta import use_tta
from mmgcvit.app.models import AppModel
from mmgcvit.engine.evaluation import build_loader, image_paths
from mmgcvit.engine.progress import short_output
from mmgcvit.errors import ExportError, MMGCViTError, UsageError
from mmgcvit.explain import METHODS, default_methods, find_backbone, make_scene
from mmgcvit.runtime import Prediction
from mmgcvit.runtime.results import PanopticResults, Results
from mmgcvit.tasks import Predictor
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.tasks.sources import read
from mmgcvit.utils.inputs import Input

#: Names of :data:`mmgcvit.explain.METHODS` on the page.
TITLES = {
    "local": "Local attention of the clicked point",
    "global": "Attention of the global query",
    "gradcam": "Grad-CAM of the prediction",
    "hirescam": "HiResCAM of the clicked box or class",
    "eigencam": "EigenCAM",
    "features": "Features of the stages",
}


class CheckpointModel(AppModel):
    """A model from a config and a checkpoint.

    Tiles and test-time augmentation change the model. Each combination of them is built when it is first used, with the
    same weights in memory.

    Args:
        config: config file, or a config.
        checkpoint: file or URL.
        device: 'cpu', 'cuda:0', ...; by default a GPU if there is one.
        tile: side of the tiles.

    Raises:
        UsageError: the config or the checkpoint cannot be used.
    """

    def __init__(self, config: str | Config, checkpoint: str, device: str | None = None, tile: int = 640) -> None:
        self.cfg = config if isinstance(config, Config) else load_config(config)
        self.checkpoint, self.device = checkpoint, device
        self._task, self._plain = load_predictor(self.cfg, checkpoint, PredictionOptions(device))
        self._predictors: dict[tuple[int | None, bool], Predictor] = {(None, False): self._plain}
        trained = self._plain.trained
        self.name, self.task = Path(self.cfg.filename or "model").stem, self._task.name
        self.classes, self.palette = trained.classes, trained.palette
        has_views = self.task in ("detection", "segmentation")
        self.tile = tile if has_views else None
        self.has_tta = has_views and _has_tta(self.cfg)
        try:
            find_backbone(trained.model)
            found = default_methods(self._task)
        except UsageError:
            found = []
        assert set(found) <= METHODS.keys()
        self.methods = {name: title for name, title in TITLES.items() if name in found}

    def predict(self, entry: Input, tiles: bool, tta: bool) -> tuple[Any, Prediction]:
        """Predict on an image."""
        predictor = self._predictor(self.tile if tiles else None, tta and self.has_tta)
        source, found = next(iter(predictor(iter([read(entry, predictor.reader)]))))
        return source, predictor.prediction(source, found)

    def _predictor(self, tile: int | None, tta: bool) -> Predictor:
        if (tile, tta) not in self._predictors:
            _, predictor = load_predictor(self.cfg, self.checkpoint, PredictionOptions(self.device, tta, tile))
            model = predictor.trained.model
            inner = model.module if tta else model
            inner.load_state_dict(self._plain.trained.model.state_dict(), assign=True)
            self._predictors[tile, tta] = predictor
        return self._predictors[tile, tta]

    @property
    def is_panoptic(self) -> bool:
        """Whether the model predicts segments with a class for each pixel."""
        return self.task == "panoptic segmentation"

    def results(self, folder: Path) -> Results:
        """Return what writes predictions to a folder."""
        if not self.is_panoptic:
            return super().results(folder)
        things = int(getattr(self._plain.trained.model, "num_things_classes", 0))
        return PanopticResults(self.classes, folder, self.palette, things)

    def display(self, image: Any) -> np.ndarray:
        """Return a loaded image to draw on."""
        return image.display

    def explain(self, image: Any, at: tuple[float, float], method: str) -> Image.Image:
        """Make a figure of what the model sees at a pixel."""
        try:
            return METHODS[method](make_scene(self._task, self._plain, image, at))
        except ExportError as error:
            raise UsageError(str(error)) from error

    def examples(self) -> Sequence[Path]:
        """Return the images of the validation data; none if the config has no such data, or they are not there."""
        if not self.cfg.get("val_dataloader"):
            return []
        try:
            with short_output():
                return list(image_paths(build_loader(self.cfg).dataset))
        except MMGCViTError:
            return []


def _has_tta(cfg: Config) -> bool:
    try:
        use_tta(copy.deepcopy(cfg))
    except UsageError:
        return False
    return True
