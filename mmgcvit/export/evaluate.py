"""Metrics of an exported file and of its model on the validation data of the config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmgcvit.engine.evaluation import Step, build_loader
from mmgcvit.engine.evaluation import evaluate as evaluate_on
from mmgcvit.errors import ExportError, UsageError
from mmgcvit.runtime.predictor import Predictor

if TYPE_CHECKING:
    from mmgcvit.export.exporter import Exportable


def evaluate(model: Exportable, file: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Evaluate a model, and the file made from it, with the config's validation data and metrics.

    Args:
        model: the model.
        file: an ONNX or OpenVINO file.

    Returns:
        The metrics of the model and those of the file.

    Raises:
        UsageError: the config has no validation data, or its metrics cannot be computed.
    """
    if not model.cfg.get("val_dataloader") or not model.cfg.get("val_evaluator"):
        raise UsageError("--verify val: the config has no val_dataloader and val_evaluator; pass images instead")
    predictor = Predictor(file)

    def run_file(data: dict) -> Sequence[Any]:
        return _STEPS[model.task](predictor, data)

    with torch.no_grad():
        return _metrics(model, model.model.test_step), _metrics(model, run_file)


def _metrics(model: Exportable, step: Step) -> dict[str, float]:
    try:
        return evaluate_on(model.cfg, build_loader(model.cfg), step)
    except (TypeError, ValueError) as error:
        raise ExportError(f"--verify val: the metrics of the config cannot be computed: {error}") from error


def _classes(predictor: Predictor, data: dict) -> Sequence[Any]:
    count = predictor.info.shape[0] or len(data["inputs"])
    found = []
    for start in range(0, len(data["inputs"]), count):
        images = data["inputs"][start : start + count]
        missing = images[-1:].expand(count - len(images), *images.shape[1:])  # fills a fixed batch
        outputs = predictor.session(torch.cat([images, missing]).numpy())["probabilities"]
        found.append(torch.from_numpy(outputs[: len(images)]))
    return list(torch.cat(found))


def _label_maps(predictor: Predictor, data: dict) -> Sequence[Any]:
    from mmengine.structures import PixelData

    for sample in data["data_samples"]:
        (found,) = predictor(sample.img_path)
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(found.labels.astype("int64"))[None])
    return data["data_samples"]


def _detections(predictor: Predictor, data: dict) -> Sequence[Any]:
    from mmengine.structures import InstanceData

    for sample in data["data_samples"]:
        (found,) = predictor(sample.img_path)
        instances = InstanceData(
            bboxes=torch.from_numpy(found.boxes), scores=torch.from_numpy(found.scores),
            labels=torch.from_numpy(found.labels),
        )  # fmt: skip
        if found.masks is not None:
            instances.masks = torch.from_numpy(found.masks)
        sample.pred_instances = instances
    return data["data_samples"]


_STEPS: dict[str, Callable[[Predictor, dict], Sequence[Any]]] = {
    "classification": _classes,
    "segmentation": _label_maps,
    "detection": _detections,
}
