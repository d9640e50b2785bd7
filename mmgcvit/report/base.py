"""Base of the tasks' parts of a report."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.report.numbers import spread
from mmgcvit.report.page import EncodedImage, Section
from mmgcvit.runtime.drawing import Colour

GALLERY = 6  # images of each kind in a gallery
COUNTED = 20_000  # images of a data set that are counted
SIDE = 640  # longest side of an image on the page, in pixels
LARGE_SIDE = 1920  # and of its file in the folder beside the page


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
    predictor: Any
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


def infos(dataset: Any, limit: int = COUNTED) -> Iterator[tuple[Any, dict]]:
    """Yield data sets inside wrappers with what they know of their images, of at most ``limit`` of them."""
    for inner in inner_datasets(dataset):
        for index in spread(limit, len(inner)):
            yield inner, inner.get_data_info(index)


def encode_image(name: str, image: Image.Image, alt: str, label: str = "") -> EncodedImage:
    """Encode an image of a gallery as JPEG, with a text below it."""
    large = _jpeg(image, LARGE_SIDE) if max(image.size) > SIDE else None
    return EncodedImage(f"{name}.jpg", _jpeg(image, SIDE), alt, label, large)


def _jpeg(image: Image.Image, side: int) -> bytes:
    """Encode an image, reduced if its longest side is larger than ``side``."""
    if max(image.size) > side:
        scale = side / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


def enlarged(image: np.ndarray) -> Image.Image:
    """Repeat the pixels of a small image (H, W, 3), so that a browser does not blur them."""
    zoom = max(1, round(512 / max(image.shape[:2])))
    return Image.fromarray(image.repeat(zoom, axis=0).repeat(zoom, axis=1))
