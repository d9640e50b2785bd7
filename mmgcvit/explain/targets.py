"""What a class activation map explains: the number of a prediction whose gradient it follows, for each task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmgcvit.errors import UsageError
from mmgcvit.tasks.base import NetworkInput, TrainedModel

Point = tuple[float, float]  # x, y in pixels of the original image


@dataclass(frozen=True)
class CamTarget:
    """One number of a prediction.

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


def class_target(trained: TrainedModel, image: NetworkInput, _: Point | None) -> CamTarget:
    """Return the score of a classifier's most probable class, before the softmax."""
    with torch.no_grad():
        probabilities = trained.model(image.image, mode="predict")[0]
    label = int(probabilities.argmax())
    title = f"{trained.classes[label]} {probabilities[label]:.2f}"
    return CamTarget(lambda x: trained.model(x, mode="tensor"), lambda logits: logits[label], title)


def area_target(trained: TrainedModel, image: NetworkInput, at: Point | None) -> CamTarget:
    """Return the scores of a class, summed over the pixels for which a segmentor predicts it.

    The class is that of the pixel ``at``, or else the one with the most pixels, apart from one named 'background'. The
    image is predicted as a whole, also by a model that uses a sliding window in tests.
    """
    model, meta = trained.model, [sample.metainfo for sample in image.samples]

    def forward(x: Tensor) -> Tensor:
        logits = model.encode_decode(x, meta)[:, :, : image.size[0], : image.size[1]]
        # a head with one channel: the second class where it is above the threshold
        return logits if logits.shape[1] > 1 else torch.cat([-logits, logits], 1)

    with torch.no_grad():
        logits = forward(image.image)[0]
    labels = logits.argmax(0)
    if len(logits) == 2 and model.decode_head.out_channels == 1:
        labels = (logits[1].sigmoid() > model.decode_head.threshold).long()
    if at is None:
        counts = torch.bincount(labels.flatten(), minlength=len(trained.classes)).tolist()
        label = max(range(len(counts)), key=lambda i: (counts[i] > 0 and trained.classes[i] != "background", counts[i]))
    else:
        x, y = image.place_of(*at)
        label = int(labels[min(int(y), labels.shape[0] - 1), min(int(x), labels.shape[1] - 1)])
    mask = labels == label
    title = f"{trained.classes[label]}, {100 * mask.float().mean():.1f} % of the pixels"
    return CamTarget(forward, lambda scores: (scores[label] * mask).sum(), title)


def box_target(trained: TrainedModel, image: NetworkInput, at: Point | None) -> CamTarget:
    """Return the score of one box of a detector: the highest one, or the highest one around ``at``.

    Raises:
        UsageError: there is no box, or none around this point; or the model predicts no instances.
    """

    def forward(x: Tensor) -> list[Any]:
        found = trained.model.predict(x, copy.deepcopy(list(image.samples)), rescale=True)
        if not all("pred_instances" in sample for sample in found):
            raise UsageError(f"model {type(trained.model).__name__}: predicts no instances; allowed: detectors")
        return [sample.pred_instances for sample in found]

    with torch.no_grad():
        found = forward(image.image)[0]
    inside = torch.ones_like(found.scores, dtype=torch.bool)
    if at is not None:
        x1, y1, x2, y2 = found.bboxes.unbind(1)
        inside = (x1 <= at[0]) & (at[0] < x2) & (y1 <= at[1]) & (at[1] < y2)
    if not inside.any():
        where = "" if at is None else f" at x={at[0]:g}, y={at[1]:g}"
        raise UsageError(f"no box is detected{where}; allowed: images, and points, with a box")
    index = int(torch.where(inside, found.scores, -1).argmax())
    box, label, score = found.bboxes[index], int(found.labels[index]), float(found.scores[index])

    def score_of(instances: Any) -> Tensor:
        # The order of equal scores may differ, so the box is found again by its place.
        distances = (instances.bboxes.detach() - box).abs().sum(1) + 1e6 * (instances.labels != label)
        value = instances.scores[int(distances.argmin())]
        # The gradient of log(p / (1 - p)), which does not vanish for a score close to 1.
        return value / (value * (1 - value)).detach().clamp(min=1e-12)

    return CamTarget(forward, score_of, f"{trained.classes[label]} {score:.2f}", tuple(box.tolist()))
