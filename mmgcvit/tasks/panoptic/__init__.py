"""Panoptic segmentation, with mmdet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from torch import nn

from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import ExportError, UsageError
from mmgcvit.tasks.base import CamTarget, DatasetCheck, NetworkInput, PredictionOptions, Predictor, Split, TrainedModel
from mmgcvit.tasks.detection import Detection

if TYPE_CHECKING:
    from mmgcvit.export.graph import ExportGraph
    from mmgcvit.report.base import TaskReport


class Panoptic(Detection):
    """mmdet's panoptic segmentors, and its data sets in COCO's panoptic format."""

    name = "panoptic segmentation"
    description = "a panoptic segmentor (panoptic_fusion_head)"
    model_parts = ("panoptic_fusion_head",)
    metrics = ("PanopticMetric", "CocoPanopticMetric", "CocoMetric")
    objects = "segments"
    has_scores = False
    exports = False

    def has_model(self, model: Mapping[str, Any] | nn.Module) -> bool:
        """Whether a model has a fusion head, and is not set to predict instances only, as a Mask2Former may be."""
        test_cfg = model.get("test_cfg") if isinstance(model, Mapping) else getattr(model, "test_cfg", None)
        return super().has_model(model) and (test_cfg or {}).get("panoptic_on", True)

    def has_dataset(self, dataset: Mapping[str, Any]) -> bool:
        """Whether the data set reads COCO's panoptic files."""
        from mmgcvit.tasks.panoptic.annotations import is_panoptic

        return is_panoptic(dataset)

    def check_config(self, model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
        """Compare heads, data sets and metrics as for detectors; also find metrics that need panopticapi."""
        from mmgcvit.tasks.panoptic.check import without_panopticapi

        yield from super().check_config(model, splits)
        yield from without_panopticapi(metric for split in splits for metric in split.metrics)

    def set_default_tta(self, cfg: Config) -> None:
        """Refuse: segments of several views cannot be merged."""
        raise UsageError(
            f"--tta: model.type={cfg.model.get('type')!r} is a panoptic segmentor, and segments of several views "
            "cannot be merged; allowed: without --tta"
        )

    def predictor(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> Predictor:
        """Build the predictor, based on mmdet's inferencer."""
        from mmgcvit.tasks.panoptic.predictor import PanopticSegmentor

        return PanopticSegmentor(cfg, checkpoint, options)

    def check_before_run(
        self,
        dataset: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        evaluator: Any,
        others: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Check the annotations, the classes, the names and sizes of the files, and some PNGs."""
        from mmgcvit.tasks.panoptic.check import check_before_run

        check_before_run(dataset, evaluator)

    def check_dataset(self, check: DatasetCheck) -> DatasetReport:
        """Read the annotations, and decode every image and PNG."""
        from mmgcvit.tasks.panoptic.check import check_panoptic

        return check_panoptic(check)

    def export_graph(self, model: Any, channels: int) -> ExportGraph:
        """Refuse: files have no panoptic maps; a Mask2Former may be set to predict instances."""
        from mmgcvit.export.instances import InstanceGraph

        if type(model).__name__ in InstanceGraph.detectors:
            return super().export_graph(model, channels)
        raise ExportError(
            f"model.type={type(model).__name__!r}: {self.description} cannot be exported, as files have no panoptic "
            "maps; allowed: models for detection, instance or semantic segmentation, and classification, and a "
            "Mask2Former with --cfg-options model.test_cfg.panoptic_on=False model.test_cfg.instance_on=True"
        )

    def report(self, model: TrainedModel) -> TaskReport:
        """Return what collects the segments of the validation images."""
        from mmgcvit.tasks.panoptic.report import PanopticReport

        return PanopticReport(model.classes, model.palette, model.model)

    def cam_target(self, trained: TrainedModel, image: NetworkInput, at: tuple[float, float] | None) -> CamTarget:
        """Refuse: a segment has no score of its own."""
        raise UsageError("class activation maps need a score, which segments of panoptic models do not have")
