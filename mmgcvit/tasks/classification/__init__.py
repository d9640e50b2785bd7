"""Image classification, with timm's data pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from torch import nn

from mmgcvit.datasets.problems import Problem, metrics_of
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import AnnotationError, UsageError
from mmgcvit.registry import type_name
from mmgcvit.tasks.base import (
    CamTarget,
    DatasetCheck,
    NetworkInput,
    PredictionOptions,
    Predictor,
    Split,
    Task,
    TrainedModel,
)

if TYPE_CHECKING:
    from mmgcvit.export.graph import ExportGraph
    from mmgcvit.report.base import TaskReport


class Classification(Task):
    """The package's own classifiers."""

    name = "classification"
    description = "a classifier (GCViTClassifier, mmgcvit.DistilledClassifier)"
    metrics = ("TopKAccuracy",)

    def has_model(self, model: Mapping[str, Any] | nn.Module) -> bool:
        """Whether the model is a GCViTClassifier, with or without a teacher."""
        if isinstance(model, Mapping):
            return type_name(model) in ("GCViTClassifier", "DistilledClassifier")
        return any(kind.__name__ == "GCViTClassifier" for kind in type(model).__mro__)

    def has_dataset(self, dataset: Mapping[str, Any]) -> bool:
        """Whether the data set is a ClassificationDataset."""
        return type_name(dataset) == "ClassificationDataset"

    def check_config(self, model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
        """Compare head, class weights, data sets and batch size."""
        from mmgcvit.tasks.classification.consistency import check_config

        return check_config(model, splits)

    def result_names(
        self, metric: Mapping[str, Any], model: Mapping[str, Any], classes: Sequence[str] | None
    ) -> set[str] | None:
        """Names of the results of a TopKAccuracy."""
        from mmgcvit.tasks.classification.consistency import topk_result_names

        return topk_result_names(metric, model)

    def predictor(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> Predictor:
        """Build the predictor: the model with its test pipeline."""
        from mmgcvit.tasks.classification.predictor import ClassPredictor

        return ClassPredictor(cfg, checkpoint, options)

    def check_before_run(
        self,
        dataset: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        evaluator: Any,
        others: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Check that images are loaded with as many channels as the backbone takes."""
        from mmgcvit.tasks.classification.check import wrong_channels

        wrong = wrong_channels(dataset, model)
        if wrong:
            raise AnnotationError(f"model.backbone: {wrong}")

    def check_dataset(self, check: DatasetCheck) -> DatasetReport:
        """Decode every image, and compare the classes with those of the training data and the head."""
        from mmgcvit.tasks.classification.check import check_classes

        return check_classes(check)

    def set_default_tta(self, cfg: Config) -> None:
        """Raise a UsageError: classifiers have no test-time augmentation."""
        raise UsageError("--tta: not supported for classifiers; omit it")

    def set_table(self, cfg: Config, path: str) -> bool:
        """Set the output file of the first TopKAccuracy."""
        for metric in metrics_of(cfg.get("test_evaluator")):
            if type_name(metric) == "TopKAccuracy":
                metric.out_csv = path
                return True
        return False

    def export_graph(self, model: Any, channels: int) -> ExportGraph:
        """Return the graph of a classifier."""
        from mmgcvit.export.classification import ClassificationGraph

        return ClassificationGraph(model, channels)

    def report(self, model: TrainedModel) -> TaskReport:
        """Return the collector of the predictions for a report."""
        from mmgcvit.report.classification import ClassificationReport

        return ClassificationReport(model.classes, model.palette, model.model)

    def cam_target(self, trained: TrainedModel, image: NetworkInput, at: tuple[float, float] | None) -> CamTarget:
        """Return the score of the most probable class; a classifier predicts nothing at a place."""
        from mmgcvit.tasks.classification.cam import class_target

        return class_target(trained, image, at)
