"""What a student learns from its teacher: its probabilities, or its features."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.backbone.checks import check_number, check_stages
from mmgcvit.errors import UsageError


class LogitsLoss(nn.Module):
    """Kullback-Leibler divergence from the teacher's probabilities to the student's (Hinton et al., 2015).

    Both are softened: logits are divided by the temperature. The loss is multiplied by its square, so that the size of
    the gradients does not depend on it.

    Args:
        weight: factor of the loss.
        temperature: above 1, the probabilities of unlikely classes count more.

    Raises:
        ValueError: an argument is not above 0.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__()
        self.weight = check_number("logits: weight", weight, "a number > 0", positive=True)
        self.temperature = check_number("logits: temperature", temperature, "a number > 0", positive=True)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the mean over the images of logits (B, classes)."""
        soft_student, soft_teacher = (
            F.log_softmax(logits.float() / self.temperature, dim=1) for logits in (student, teacher)
        )
        divergence = F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True)
        return self.weight * self.temperature**2 * divergence


class FeatureLoss(nn.Module):
    """Mean squared difference between maps of the student and of the teacher.

    A 1 x 1 convolution, the adapter, maps the student's channels to the teacher's. At each place, the channels of both
    are standardised: mean 0, variance 1. A difference of 0 means equal features, and 2 unrelated ones. The teacher's
    map is resized to the size of the student's.

    Args:
        in_channels: channels of each map of the student.
        out_channels: channels of each map of the teacher.
        weight: factor of the loss.

    Raises:
        ValueError: the weight is not above 0.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int], weight: float = 1.0) -> None:
        super().__init__()
        self.weight = check_number("features: weight", weight, "a number > 0", positive=True)
        self.adapters = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(in_channels, out_channels, strict=True))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compute the mean over maps and places.

        Args:
            student: (B, C, H, W) of each stage.
            teacher: (B, C', H', W') of each layer.
        """
        losses = []
        for adapter, own, taught in zip(self.adapters, student, teacher, strict=True):
            taught = taught.float()
            if taught.shape[-2:] != own.shape[-2:]:
                taught = F.interpolate(taught, own.shape[-2:], mode="bilinear", antialias=True)
            losses.append(F.mse_loss(standardise(adapter(own).float()), standardise(taught)))
        return self.weight * sum(losses[1:], losses[0]) / len(losses)


def standardise(maps: Tensor) -> Tensor:
    """Standardise the channels of (B, C, H, W) at each place; returns (B, H, W, C)."""
    return F.layer_norm(maps.permute(0, 2, 3, 1), maps.shape[1:2])


def matched_layers(stages: Sequence[int], layers: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
    """Check the stages of a student and the layers of a teacher that are compared.

    Raises:
        UsageError: there is not one layer for each stage, or the last stage is not 3.
    """
    stages = check_stages("features: stages", stages)
    if stages[-1] != 3 or len(layers) != len(stages):
        raise UsageError(
            f"features: stages={stages} with layers={tuple(layers)}; allowed: stages that end with 3, and a layer of "
            "the teacher for each of them"
        )
    return stages, list(layers)
