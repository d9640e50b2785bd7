"""Metrics of an exported file and of its model on the validation data of the config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmgcvit.engine.evaluation import build_loader, image_path
from mmgcvit.engine.evaluation import evaluate as evaluate_on
from mmgcvit.errors import MMGCViTError, UsageError
from mmgcvit.runtime.predictor import Predictor
from mmgcvit.tasks.classification.dataset import ClassificationDataset
from mmgcvit.utils.text import worker_message

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
        UsageError: the config has no validation data, they are not there, its samples do not name their image files, an
            image cannot be decoded, or the metrics cannot be computed.
    """
    if not model.cfg.get("val_dataloader") or not model.cfg.get("val_evaluator"):
        raise UsageError("--verify val: the config has no val_dataloader and val_evaluator; pass images instead")
    predictor = Predictor(file)
    try:
        loader = build_loader(model.cfg)

        def run_file(data: dict) -> Sequence[Any]:
            return _STEPS[model.task](predictor, data, loader.dataset)

        with torch.no_grad():
            return evaluate_on(model.cfg, loader, model.model.test_step), evaluate_on(model.cfg, loader, run_file)
    except MMGCViTError as error:
        raise UsageError(f"--verify val: {worker_message(error)}") from error


def _classes(predictor: Predictor, data: dict, dataset: Any) -> Sequence[Any]:
    paths = [_file_of(dataset, int(index)) for index in data["sample_idx"]]
    if all(paths):
        return [torch.from_numpy(found.probabilities) for found in predictor(paths)]
    # The images are in tar files or the like: those of the pipeline have the size of the file's input.
    count = predictor.info.shape[0] or len(data["inputs"])
    found = []
    for start in range(0, len(data["inputs"]), count):
        images = data["inputs"][start : start + count]
        missing = images[-1:].expand(count - len(images), *images.shape[1:])  # fills a fixed batch
        outputs = predictor.session(torch.cat([images, missing]).numpy())["probabilities"]
        found.append(torch.from_numpy(outputs[: len(images)]))
    return list(torch.cat(found))


def _file_of(dataset: Any, index: int) -> Path | None:
    """Image file of a sample of a classification data set; None if it has none, or is inside a wrapper."""
    return image_path(dataset, index) if isinstance(dataset, ClassificationDataset) else None


def _label_maps(predictor: Predictor, data: dict, dataset: Any) -> Sequence[Any]:
    from mmengine.structures import PixelData

    for sample in data["data_samples"]:
        (found,) = predictor(_file_of_sample(sample))
        sample.pred_sem_seg = PixelData(data=torch.from_numpy(found.labels.astype("int64"))[None])
    return data["data_samples"]


def _detections(predictor: Predictor, data: dict, dataset: Any) -> Sequence[Any]:
    from mmengine.structures import InstanceData

    for sample in data["data_samples"]:
        (found,) = predictor(_file_of_sample(sample))
        instances = InstanceData(
            bboxes=torch.from_numpy(found.boxes), scores=torch.from_numpy(found.scores),
            labels=torch.from_numpy(found.labels),
        )  # fmt: skip
        if found.masks is not None:
            instances.masks = torch.from_numpy(found.masks)
        sample.pred_instances = instances
    return data["data_samples"]


def _file_of_sample(sample: Any) -> str:
    """Image file of a sample of a detector or segmentor.

    Raises:
        UsageError: the pipeline does not tell it.
    """
    if not sample.get("img_path"):
        raise UsageError(
            "the samples of val_dataloader have no img_path; add 'img_path' to meta_keys of PackDetInputs or "
            "PackSegInputs in its pipeline"
        )
    return sample.img_path


_STEPS: dict[str, Callable[[Predictor, dict, Any], Sequence[Any]]] = {
    "classification": _classes,
    "segmentation": _label_maps,
    "detection": _detections,
}
