"""Interface of a task, used by training, testing, inference and the checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from mmengine.config import Config
from torch import Tensor, nn

from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import UsageError
from mmgcvit.runtime.predictions import Prediction
from mmgcvit.tasks.sources import Reader, Source
from mmgcvit.utils.inputs import Input

if TYPE_CHECKING:
    from mmgcvit.export.graph import ExportGraph
    from mmgcvit.report.base import TaskReport


@dataclass(frozen=True)
class TrainedModel:
    """A model with its weights, and the names and colours of its classes."""

    model: Any
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB


@dataclass(frozen=True)
class PredictionOptions:
    """Options of :func:`mmgcvit.apis.predict` that predictors are built with."""

    device: str | None = None
    tta: bool = False
    tile: int | None = None
    overlap: float = 0.25
    batch_size: int = 1
    ann_file: str | None = None

    def refuse(self, names: Sequence[str], reason: str) -> None:
        """Raise a UsageError with the reason if one of these options is given."""
        for name in names:
            if (value := getattr(self, name)) not in (None, False):
                flag = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value!r}")
                raise UsageError(f"{flag}: {reason}; omit it")


@dataclass(frozen=True)
class NetworkInput:
    """An image as the network gets it, and where its pixels are in it.

    Attributes:
        image: (1, C, H, W), normalized and padded.
        scale: factor of the resizing, horizontal and vertical.
        offset: pixel (x, y) of the input at which the resized image begins; negative if it is cropped.
        size: height and width of the part that the image fills, from the top left; the rest is padding.
        samples: mmdet's or mmseg's data samples with the meta information of the image; none for a classifier.
    """

    image: Tensor
    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    samples: Sequence[Any] = ()

    def place_of(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place (x, y) of the original image is in the input, both in pixels."""
        return x * self.scale[0] + self.offset[0], y * self.scale[1] + self.offset[1]


@dataclass(frozen=True)
class CamTarget:
    """What a class activation map explains: one number of a prediction.

    Attributes:
        forward: image (1, C, H, W) -> a sequence, or a tensor, with the output for it.
        score: output -> the number, a tensor without axes.
        title: what the number is, for people.
        box: x1, y1, x2, y2 in the original image, of a detector's target.
    """

    forward: Callable[[Tensor], Any]
    score: Callable[[Any], Tensor]
    title: str
    box: tuple[float, ...] | None = None


class Predictor(Protocol):
    """A model that predicts on images and video frames, draws its predictions and writes them to files."""

    @property
    def trained(self) -> TrainedModel:
        """The model that predicts."""

    @property
    def results(self) -> list[dict]:
        """The predictions so far, as they will be written to the file."""

    @property
    def reader(self) -> Reader:
        """Reads images as the test pipeline does."""

    def validate_inputs(self, inputs: Sequence[Input]) -> None:
        """Raise a UsageError if the predictions of these images and videos cannot be written."""

    def __call__(self, sources: Iterator[Source]) -> Iterator[tuple[Source, Any]]:
        """Yield each source with its prediction."""

    def network_input(self, source: Source) -> NetworkInput:
        """Return an image as the network gets it, resized and normalized as in a test."""

    def prediction(self, source: Source, found: Any) -> Prediction:
        """Convert a prediction on an image to the form that exported models have, too."""

    def draw(self, source: Source, found: Any, score_thr: float) -> np.ndarray:
        """Return the image (H, W, 3), RGB, with a prediction drawn on it."""

    def keep(self, source: Source, found: Any, folder: Path) -> int:
        """Add a prediction to the results; returns the number of objects in it."""

    def write(self, folder: Path) -> Path:
        """Write the results; returns the file."""


@dataclass
class DatasetCheck:
    """One data set of a config to be checked by :func:`mmgcvit.datasets.check.check_data`."""

    split: str  # 'train', 'val' or 'test'
    dataset: Mapping[str, Any]
    model: Mapping[str, Any] | None  # the model of the config
    evaluator: Any  # the metric or metrics for this split, if any
    workers: int  # processes that decode files
    advance: Callable[[int], None]  # called after each image with the total number of images
    earlier: Sequence[DatasetReport] = field(default_factory=list)  # reports of the data sets before this one
    others: Sequence[Mapping[str, Any]] = ()  # the other data sets of the same split


@dataclass
class Split:
    """What a config says about one split, for :meth:`Task.check_config`."""

    name: str  # 'train', 'val' or 'test'
    loader: Mapping[str, Any]
    datasets: Sequence[Mapping[str, Any]]  # those inside wrappers, too
    metrics: Sequence[tuple[str, Mapping[str, Any]]]  # with their names in the config


class Task(ABC):
    """One task: its models, data sets, predictions and drawings.

    A subclass imports mmcv, mmdet and mmseg only inside its methods.
    """

    name: str
    #: Description of the task's models, for messages.
    description: str
    #: A model of the task has at least one of these, as a key in the config or as an attribute once built.
    model_parts: tuple[str, ...] = ()
    #: Class name of the hook that draws predictions during a test; '' if there is none.
    visualization_hook: str = ""
    #: Class names of the metrics for the task's data sets.
    metrics: tuple[str, ...] = ()
    #: What is counted in predictions, for messages; '' if nothing is.
    objects: str = ""
    #: Whether predictions have scores, which class activation maps explain.
    has_scores: bool = True
    #: Whether models can be exported.
    exports: bool = True

    def has_model(self, model: Mapping[str, Any] | nn.Module) -> bool:
        """Whether a config's model, or a built model, belongs to this task."""
        return any(part in model if isinstance(model, Mapping) else hasattr(model, part) for part in self.model_parts)

    @abstractmethod
    def has_dataset(self, dataset: Mapping[str, Any]) -> bool:
        """Whether a config's data set belongs to this task."""

    @abstractmethod
    def predictor(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> Predictor:
        """Build the predictor."""

    def check_config(self, model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
        """Yield the parts of a config that contradict each other: heads, losses, data sets, metrics."""
        yield from ()

    def result_names(
        self, metric: Mapping[str, Any], model: Mapping[str, Any], classes: Sequence[str] | None
    ) -> set[str] | None:
        """Names of the results of a metric, such as 'coco/bbox_mAP'; None if they are not known.

        Args:
            metric: in a config.
            model: the model of the config; empty if there is none.
            classes: the classes of the data set; None if they are not known.
        """
        return None

    def check_before_run(  # noqa: B027
        self,
        dataset: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        evaluator: Any,
        others: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Raise an AnnotationError if a run with this data set would fail; must take seconds, not minutes.

        ``others`` are the other data sets of the same split.
        """

    def add_checks(self, dataset: Mapping[str, Any], model: Mapping[str, Any] | None) -> None:  # noqa: B027
        """Add transforms that check the annotations while they are loaded to a config's data set, in place."""

    @abstractmethod
    def check_dataset(self, check: DatasetCheck) -> DatasetReport:
        """Check every image and annotation of a data set."""

    def compare_splits(self, reports: Sequence[DatasetReport]) -> None:  # noqa: B027
        """Add the problems found by comparing a config's data sets to their reports."""

    def set_default_tta(self, cfg: Config) -> None:
        """Add ``tta_model`` and ``tta_pipeline`` to a config without them."""
        raise UsageError(
            f"--tta: model.type={cfg.model.get('type')!r} needs a tta_model and a tta_pipeline, which the config does "
            "not have; allowed: a config with both, or without --tta"
        )

    def show_in(self, cfg: Config, hook: Any, folder: str) -> None:
        """Configure the :attr:`visualization_hook` to write every image of a test to this folder."""
        raise NotImplementedError

    def set_table(self, cfg: Config, path: str) -> bool:
        """Configure a test to write its predictions to a CSV file; returns False if no metric of the config can."""
        return False

    @abstractmethod
    def export_graph(self, model: Any, channels: int) -> ExportGraph:
        """Return a built model as one graph, from images to predictions.

        Raises:
            ExportError: the model cannot be exported.
        """

    @abstractmethod
    def report(self, model: TrainedModel) -> TaskReport:
        """Return what collects the predictions of a model for a report of its run."""

    @abstractmethod
    def cam_target(self, trained: TrainedModel, image: NetworkInput, at: tuple[float, float] | None) -> CamTarget:
        """Return what a class activation map explains: one number of a prediction.

        Args:
            trained: the model.
            image: the input.
            at: place (x, y) in the original image; None for the most certain, or largest, part of the prediction.

        Raises:
            UsageError: nothing is predicted, or nothing at this place.
        """

    def forward(self, model: Any, image: Tensor) -> None:
        """Run a forward pass in which every head does the maximum work possible at test time."""
        model(image, [], mode="tensor")


def pair_visualizer(visualizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a :class:`~mmgcvit.tasks.visualizer.PairVisualizer` in the place of mmdet's or mmseg's."""
    kept = {key: visualizer[key] for key in ("name", "vis_backends") if key in visualizer}
    return dict(type="mmgcvit.PairVisualizer", **kept)
