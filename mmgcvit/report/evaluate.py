"""One evaluation of a checkpoint on the validation data, from which all results of a report are computed."""

from __future__ import annotations

import copy
import io
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmgcvit.datasets.pipelines import use_checked_loading
from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.engine.evaluation import build_loader, evaluate
from mmgcvit.errors import UsageError
from mmgcvit.report.numbers import spread
from mmgcvit.report.page import Figure, Note, Picture, Section
from mmgcvit.runtime.drawing import Colour
from mmgcvit.tasks import Predictor, task_of
from mmgcvit.utils.text import describe

GALLERY = 6  # images of each kind in a gallery
MOSAIC = 6  # training images that are shown
COUNTED = 20_000  # images of a data set that are counted
SIDE = 640  # longest side of an image in a gallery, in pixels


@dataclass
class Model:
    """The model of a run with its validation data.

    Attributes:
        cfg: the config of the run.
        predictor: the model with its checkpoint, checked as for inference.
        loader: data loader of the validation data.
        classes: class names.
        palette: RGB colour of each class.
    """

    cfg: Config
    predictor: Predictor
    loader: Any
    classes: tuple[str, ...]
    palette: tuple[Colour, ...]

    @property
    def dataset(self) -> Any:
        """The validation data."""
        return self.loader.dataset


class TaskReport(ABC):
    """What a report says about the data and the predictions of one task.

    Args:
        classes: class names.
        palette: RGB colour of each class.
        network: the model.
    """

    def __init__(self, classes: Sequence[str], palette: Sequence[Colour], network: Any = None) -> None:
        self.classes, self.palette, self.network = tuple(classes), tuple(palette), network

    @abstractmethod
    def add(self, data: dict, outputs: Sequence[Any], dataset: Any) -> None:
        """Keep the predictions on a batch of the validation data, and the ground truth."""

    @abstractmethod
    def sections(self, model: Model) -> list[Section]:
        """Return what there is to say about the predictions."""

    @abstractmethod
    def count(self, section: Section, train: Any) -> None:
        """Add the numbers of training data and validation data to a section.

        ``train`` is the training data; None if it cannot be built.
        """

    @abstractmethod
    def draw_sample(self, sample: Any) -> tuple[Image.Image, str]:
        """Draw an image with its ground truth as the training pipeline returns them; also a text to show below it."""


def load_model(cfg: Config, checkpoint: str, device: str | None = None) -> Model:
    """Load a checkpoint into the model of a config.

    Args:
        cfg: the config. It is not changed.
        checkpoint: file or URL.
        device: by default a GPU if there is one.

    Raises:
        UsageError: the config has no validation data.
        CheckpointError: the checkpoint cannot be read, or does not belong to the model.
    """
    if not cfg.get("val_dataloader") or not cfg.get("val_evaluator"):
        raise UsageError("the config has no val_dataloader with a val_evaluator: there is nothing to evaluate on")
    used = copy.deepcopy(cfg)
    used.test_dataloader = copy.deepcopy(cfg.val_dataloader)  # predictors use the test pipeline
    init_default_scope(cfg.get("default_scope", "mmengine"))
    predictor = task_of(cfg).predictor(used, checkpoint, device=device)
    trained = predictor.trained
    return Model(cfg, predictor, build_loader(cfg), trained.classes, trained.palette)


def run_model(model: Model, report: TaskReport) -> tuple[dict[str, float], float, str]:
    """Predict on the validation data.

    Returns:
        The metrics of the config, the seconds that it took, and why the metrics could not be computed, or ''.
    """
    network = model.predictor.trained.model.eval()
    print_log(f"report: evaluating on {len(model.dataset)} images", logger="current")

    seen = 0

    def step(data: dict) -> Sequence[Any]:
        nonlocal seen
        outputs = network.test_step(data)
        report.add(data, outputs, model.dataset)
        seen += len(outputs)
        return outputs

    begin = time.perf_counter()
    metrics, failure = {}, ""
    try:
        with torch.no_grad():
            metrics = evaluate(model.cfg, model.loader, step)
    except Exception as error:  # of a metric, after all predictions: the report can do without it
        if seen < len(model.dataset):
            raise
        failure = describe(error.__cause__ or error)
    return metrics, time.perf_counter() - begin, failure


def training_data(cfg: Config) -> Any:
    """Build the training data of a config, with images loaded as in training."""
    init_default_scope(cfg.get("default_scope", "mmengine"))
    loader = copy.deepcopy(cfg.train_dataloader)
    use_checked_loading(loader)
    dataset = DATASETS.build(loader.dataset)
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    return dataset


def infos(dataset: Any, limit: int = COUNTED) -> Iterator[tuple[Any, dict]]:
    """Yield data sets inside wrappers with what they know of their images, of at most ``limit`` of them."""
    for inner in inner_datasets(dataset):
        for index in spread(limit, len(inner)):
            yield inner, inner.get_data_info(index)


def mosaic(report: TaskReport, train: Any) -> Figure | Note:
    """Draw training images after augmentation with their labels, as the network gets them."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        drawn = [report.draw_sample(train[index]) for index in spread(MOSAIC, len(train))]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    if not drawn:
        return Note("There are no training images.")
    text = "Check that the labels fit, and that augmentation has not destroyed what the model is to learn."
    pictures = [
        picture(f"train_{i}", image, label or "training image with its labels", label)
        for i, (image, label) in enumerate(drawn)
    ]
    return Figure(
        f"{len(drawn)} of {len(train):,} training images as the network gets them", pictures,
        f"After augmentation, with their labels. {text}", wide=True,
    )  # fmt: skip


def picture(name: str, image: Image.Image, alt: str, label: str = "") -> Picture:
    """Encode an image of a gallery as JPEG, with a text below it."""
    if max(image.size) > SIDE:
        scale = SIDE / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return Picture(f"{name}.jpg", file.getvalue(), alt, label)


def enlarged(image: np.ndarray) -> Image.Image:
    """Repeat the pixels of a small image (H, W, 3), so that a browser does not blur them."""
    zoom = max(1, round(512 / max(image.shape[:2])))
    return Image.fromarray(image.repeat(zoom, axis=0).repeat(zoom, axis=1))
