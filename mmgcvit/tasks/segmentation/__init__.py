"""Semantic segmentation, with mmseg."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from torch import Tensor

from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.errors import AnnotationError
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


class Segmentation(Task):
    """mmseg's segmentors."""

    name = "segmentation"
    description = "a segmentor (decode_head)"
    model_parts = ("decode_head",)
    visualization_hook = "SegVisualizationHook"
    metrics = ("IoUMetric", "CityscapesMetric", "DepthMetric")

    def has_dataset(self, dataset: Mapping[str, Any]) -> bool:
        """Whether the data set has label maps, or is one of mmseg's."""
        from mmgcvit.tasks.segmentation.label_maps import has_label_maps, is_base_seg_dataset

        return has_label_maps(dataset) or is_base_seg_dataset(dataset)

    def check_config(self, model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
        """Compare class weights, ignored labels, padding, crops and metrics."""
        from mmgcvit.tasks.segmentation.consistency import check_config

        return check_config(model, splits)

    def result_names(
        self, metric: Mapping[str, Any], model: Mapping[str, Any], classes: Sequence[str] | None
    ) -> set[str] | None:
        """Names of the results of an IoUMetric."""
        from mmgcvit.tasks.segmentation.consistency import segmentation_result_names

        return segmentation_result_names(metric)

    def predictor(self, cfg: Config, checkpoint: str, options: PredictionOptions) -> Predictor:
        """Build the predictor, based on mmseg's inferencer."""
        from mmgcvit.tasks.segmentation.predictor import Segmentor

        return Segmentor(cfg, checkpoint, options)

    def check_before_run(
        self,
        dataset: Mapping[str, Any],
        model: Mapping[str, Any] | None,
        evaluator: Any,
        others: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Check the classes, heads and file pairs of a local data set, and the values of some label maps."""
        from mmgcvit.tasks.segmentation.label_maps import check_label_maps
        from mmgcvit.tasks.segmentation.unlabelled import HINT, formats_only, image_paths, is_unlabelled

        if dataset.get("backend_args"):
            return
        if formats_only(evaluator):
            image_paths(dataset, evaluator)
        elif evaluator and is_unlabelled(dataset):
            raise AnnotationError(f"{(dataset.get('data_prefix') or {}).get('seg_map_path')}: no label maps: {HINT}")
        else:
            check_label_maps(dataset, model, evaluator, others)

    def add_checks(self, dataset: Mapping[str, Any], model: Mapping[str, Any] | None) -> None:
        """Check every label map right after it is loaded."""
        from mmgcvit.tasks.segmentation.transforms import add_label_checks

        add_label_checks(dataset, model)

    def check_dataset(self, check: DatasetCheck) -> DatasetReport:
        """Decode every image and label map."""
        from mmgcvit.tasks.segmentation.label_maps import check_labels
        from mmgcvit.tasks.segmentation.unlabelled import check_unlabelled, formats_only, is_unlabelled

        if formats_only(check.evaluator) or (check.split == "test" and is_unlabelled(check.dataset)):
            return check_unlabelled(check)
        return check_labels(
            check.split, check.dataset, check.model, check.workers, check.advance, check.evaluator, check.others
        )

    def compare_splits(self, reports: Sequence[DatasetReport]) -> None:
        """Report classes that are missing in one of the splits."""
        from mmgcvit.tasks.segmentation.label_maps import compare_splits

        compare_splits(reports)

    def show_in(self, cfg: Config, hook: Any, folder: str) -> None:
        """Set the output folder of the visualizer, and draw every image (OpenMMLab's hook draws one in 50)."""
        hook.interval = 1
        if type_name(cfg.get("visualizer")) == "SegLocalVisualizer":
            cfg.visualizer = pair_visualizer(cfg.visualizer)
        cfg.visualizer.vis_backends = [dict(type="LocalVisBackend", img_save_dir=folder)]

    def forward(self, model: Any, image: Tensor) -> None:
        """Compute the logits resized to the image size; mmseg's tensor mode stops before the resizing."""
        shape = tuple(image.shape[2:])
        meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
        model.encode_decode(image, [meta])

    def export_graph(self, model: Any, channels: int) -> ExportGraph:
        """Return the graph of a segmentor."""
        from mmgcvit.export.segmentation import segmentation_graph

        return segmentation_graph(model, channels)

    def report(self, model: TrainedModel) -> TaskReport:
        """Return the collector of the predictions for a report."""
        from mmgcvit.report.segmentation import SegmentationReport

        return SegmentationReport(model.classes, model.palette, model.model)

    def cam_target(self, trained: TrainedModel, image: NetworkInput, at: tuple[float, float] | None) -> CamTarget:
        """Return the scores of a class, summed over the pixels that have it."""
        from mmgcvit.tasks.segmentation.cam import area_target

        return area_target(trained, image, at)
