"""Predictions of OpenMMLab's own code, to compare an exported file with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from mmgcvit.export.exporter import Exportable

Outputs = dict[str, np.ndarray]


def predict(model: Exportable, images: np.ndarray) -> list[Outputs]:
    """Predict as a test does, without resizing.

    Args:
        model: the model.
        images: (B, C, H, W) as the exported file takes them, RGB if there are three channels.

    Returns:
        For each image the outputs of the file, without unused places; masks are boolean and have the size of the image.
    """
    with torch.no_grad():
        return _PREDICT[model.task](model, images)


def _classes(model: Exportable, images: np.ndarray) -> list[Outputs]:
    found = model.model.test_step(dict(inputs=torch.from_numpy(images)))
    return [{"probabilities": scores.numpy()} for scores in found]


def _label_maps(model: Exportable, images: np.ndarray) -> list[Outputs]:
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(metainfo=_meta(images)) for _ in images]
    found = model.model.test_step(dict(inputs=_as_loaded(model, images), data_samples=samples))
    return [{"labels": sample.pred_sem_seg.data[0].numpy()} for sample in found]


def _detections(model: Exportable, images: np.ndarray) -> list[Outputs]:
    from mmdet.structures import DetDataSample

    samples = [DetDataSample(metainfo=_meta(images)) for _ in images]
    found = model.model.test_step(dict(inputs=_as_loaded(model, images), data_samples=samples))
    outputs = []
    for sample in found:
        instances = sample.pred_instances
        values = {
            "boxes": instances.bboxes.numpy(),
            "scores": instances.scores.numpy(),
            "labels": instances.labels.numpy(),
        }
        if "masks" in instances:
            values["masks"] = instances.masks.numpy().astype(bool)
        outputs.append(values)
    return outputs


_PREDICT = {"classification": _classes, "segmentation": _label_maps, "detection": _detections}


def _meta(images: np.ndarray) -> dict:
    size = images.shape[2:]
    return dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))


def _as_loaded(model: Exportable, images: np.ndarray) -> list[torch.Tensor]:
    """Return images as the config's loader loads them."""
    if model.graph.preprocess.bgr and images.shape[1] >= 3:
        images = np.concatenate([images[:, 2::-1], images[:, 3:]], axis=1)
    return [torch.from_numpy(np.ascontiguousarray(image)) for image in images]
