"""What a class activation map of a detector explains."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mmgcvit.errors import UsageError
from mmgcvit.tasks.base import CamTarget, NetworkInput, TrainedModel


def box_target(trained: TrainedModel, image: NetworkInput, at: tuple[float, float] | None) -> CamTarget:
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
        advice = "choose another image" if at is None or not len(inside) else "choose a point inside a detected box"
        raise UsageError(f"no box is detected{where}; {advice}")
    index = int(torch.where(inside, found.scores, -1).argmax())
    box, label, score = found.bboxes[index], int(found.labels[index]), float(found.scores[index])

    def score_of(instances: Any) -> Tensor:
        # The order of equal scores may differ, so the box is found again by its place.
        distances = (instances.bboxes.detach() - box).abs().sum(1) + 1e6 * (instances.labels != label)
        value = instances.scores[int(distances.argmin())]
        # The gradient of log(p / (1 - p)), which does not vanish for a score close to 1.
        return value / (value * (1 - value)).detach().clamp(min=1e-12)

    return CamTarget(forward, score_of, f"{trained.classes[label]} {score:.2f}", tuple(box.tolist()))
