"""What a class activation map of a segmentor explains."""

from __future__ import annotations

import torch
from torch import Tensor

from mmgcvit.tasks.base import CamTarget, NetworkInput, TrainedModel


def area_target(trained: TrainedModel, image: NetworkInput, at: tuple[float, float] | None) -> CamTarget:
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
