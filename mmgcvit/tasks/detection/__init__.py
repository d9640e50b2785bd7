"""Detection and instance segmentation, with mmdet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from torch import Tensor

from mmgcvit.datasets.problems import Problem, refuse
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
    pair_visualizer,
)

if TYPE_CHECKING:
    from mmgcvit.export.graph import ExportGraph
    from mmgcvit.report.base import TaskReport
from mmgcvit.utils.paths import SHIPPED_CONFIGS

SCALES = (0.8, 1.0, 1.2)  # multiples of the test pipeline's scale for test-time augmentation


class Detection(Task):
    """mmdet's detectors."""

    name = "detection"
    description = "a detector (roi_head, bbox_head, rpn_head, mask_head or panoptic_head)"
    model_parts: tuple[str, ...] = ("roi_head", "bbox_head", "rpn_head", "mask_head", "panoptic_head")
    objects = "detections"
    visualization_hook = "DetVisualizationHook"
    metrics: tuple[str, ...] = (
        "CocoMetric", "VOCMetric", "LVISMetric", "CocoOccludedSeparatedMetric",
        "CityScapesMetric", "OpenImagesMetric", "CrowdHumanMetric", "DumpProposals", "DumpDetResults")  # fmt: skip

    def has_dataset(self, dataset: Mapping[str, Any]) -> bool:
        """Whether the data set reads COCO JSON files."""
        from mmgcvit.tasks.detection.annotations import coco_like

        return coco_like(dataset)

    def check_config(self, model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
        """Compare heads, class weights, data sets, pipelines and metrics."""
        from mmgcvit.tasks.detection.consistency import check_config

        return check_config(model, splits)

    def result_names(
        self, metric: Mapping[str, Any], model: Mapping[str, Any], classes: Sequence[str] | None
    ) -> set[str] | None:
        """Names of the results of a CocoMetric or VOCMetric."""
        from mmgcvit.tasks.detection.consistency import detection_result_names

        return detection_result_names(metric, classes)

    def predictor(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> Predictor:
        """Build the predictor, based on mmdet's inferencer."""
        from mmgcvit.tasks.detection.predictor import Detector

        return Detector(cfg, checkpoint, options)

    def check_before_run(
        self,
        dataset: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        evaluator: Any,
        others: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Check the annotations, the classes, and the names and sizes of the images of a local COCO or VOC data set."""
        from mmgcvit.tasks.detection.annotations import check_before_run, image_problems
        from mmgcvit.tasks.detection.other import is_voc, read_other
        from mmgcvit.tasks.detection.unlabelled import why_not_written

        if reason := why_not_written(evaluator):
            raise AnnotationError(reason)
        check_before_run(dict(dataset=dataset), evaluator)
        if is_voc(dataset) and not dataset.get("backend_args"):
            found = read_other(dataset)
            refuse([*found.problems, *image_problems(found.images, dataset)])

    def check_dataset(self, check: DatasetCheck) -> DatasetReport:
        """Read the annotations and decode every image."""
        from mmgcvit.tasks.detection.check import check_boxes
        from mmgcvit.tasks.detection.unlabelled import why_not_written

        report = check_boxes(check)
        if not report.broken and (reason := why_not_written(check.evaluator)):
            report.problems.append(Problem("metric", report.source, reason, True))
        return report

    def set_default_tta(self, cfg: Config) -> None:
        """Use ``configs/detection/_base_/tta.py``, at 0.8, 1 and 1.2 times the scale of the test pipeline.

        All other transforms of the test pipeline are kept, before and after its Resize.
        """
        if "panoptic_fusion_head" in cfg.model or not (cfg.model.get("roi_head") or cfg.model.get("bbox_head")):
            raise UsageError(
                f"--tta: model.type={cfg.model.get('type')!r} predicts no boxes to be merged; allowed: detectors with "
                "a roi_head or bbox_head, or a config with tta_model and tta_pipeline"
            )
        pipeline = cfg.test_dataloader.dataset.pipeline
        places = [i for i, t in enumerate(pipeline) if type_name(t).endswith("Resize") and "scale" in t]
        if not places:
            raise UsageError(
                "--tta: test_dataloader.dataset.pipeline has no Resize with a scale, and the config no "
                "tta_pipeline; add tta_model and tta_pipeline"
            )
        base = Config.fromfile(SHIPPED_CONFIGS / "detection" / "_base_" / "tta.py")
        resize = pipeline[places[0]]
        scale = resize["scale"]
        scale = (scale, scale) if isinstance(scale, int) else scale
        views = base.tta_pipeline[-1]
        views.transforms[0] = [dict(resize, scale=tuple(round(side * factor) for side in scale)) for factor in SCALES]
        after = [t for t in pipeline[places[0] + 1 :] if type_name(t) not in ("LoadAnnotations", "PackDetInputs")]
        views.transforms[2:2] = [[transform] for transform in after]
        cfg.tta_model, cfg.tta_pipeline = base.tta_model, [*pipeline[: places[0]], views]

    def show_in(self, cfg: Config, hook: Any, folder: str) -> None:
        """Set the output folder of mmdet's hook, and draw instances as everywhere."""
        hook.test_out_dir = folder
        if type_name(cfg.get("visualizer")) == "DetLocalVisualizer":
            cfg.visualizer = pair_visualizer(cfg.visualizer)

    def forward(self, model: Any, image: Tensor) -> None:
        """Run all heads; those of a two-stage detector on the maximum number of proposals."""
        from mmgcvit.tasks.detection.flops import forward

        forward(model, image)

    def export_graph(self, model: Any, channels: int) -> ExportGraph:
        """Return the graph of a detector."""
        from mmgcvit.export.detection import detection_graph

        return detection_graph(model, channels)

    def report(self, model: TrainedModel) -> TaskReport:
        """Return the collector of the predictions for a report."""
        from mmgcvit.report.detection import DetectionReport

        return DetectionReport(model.classes, model.palette, model.model)

    def cam_target(self, trained: TrainedModel, image: NetworkInput, at: tuple[float, float] | None) -> CamTarget:
        """Return the score of one box."""
        from mmgcvit.tasks.detection.cam import box_target

        return box_target(trained, image, at)
