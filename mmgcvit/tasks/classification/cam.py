"""What a class activation map of a classifier explains."""

from __future__ import annotations

import torch

from mmgcvit.tasks.base import CamTarget, NetworkInput, TrainedModel


def class_target(trained: TrainedModel, image: NetworkInput, _: tuple[float, float] | None) -> CamTarget:
    """Return the score of a classifier's most probable class, before the softmax."""
    with torch.no_grad():
        probabilities = trained.model(image.image, mode="predict")[0]
    label = int(probabilities.argmax())
    title = f"{trained.classes[label]} {probabilities[label]:.2f}"
    return CamTarget(lambda x: trained.model(x, mode="tensor"), lambda logits: logits[label], title)
