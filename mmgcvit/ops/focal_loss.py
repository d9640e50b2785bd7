"""Focal loss (https://arxiv.org/abs/1708.02002) over sigmoids or a softmax, and its gradients.

Rows are samples, columns classes. mmcv has these operators for GPUs only, and so has mmdet's use of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmgcvit.ops.nms import at_least_float32

#: Logarithms are taken of this at least, the smallest normal number of float32.
SMALLEST = torch.finfo(torch.float32).tiny


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=SMALLEST).log()


def _class_weight(weight: Tensor, target: Tensor) -> Tensor | float:
    """Weight of each sample's class, (N,); 1 without weights, and for labels that are none of the classes."""
    if not weight.numel():
        return 1.0
    is_class = (target >= 0) & (target < len(weight))
    return weight[target.where(is_class, 0)].where(is_class, 1)


def _is_target(scores: Tensor, target: Tensor) -> Tensor:
    """Where a column is the class of its row: (N, C), (N,) -> (N, C)."""
    return target[:, None] == torch.arange(scores.shape[1], device=scores.device)


def _per_row(weight: Tensor | float) -> Tensor | float:
    return weight[:, None] if isinstance(weight, Tensor) else weight


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each score, written to ``output``: (N, C) -> (N, C).

    Args:
        input: scores before the sigmoid.
        target: class of each row, (N,); a number that is no column is the background.
        weight: weight of each class, (C,), or empty.
        output: the result.
        gamma: exponent that lowers the loss of easy samples.
        alpha: weight of the positive class.
    """
    (scores,) = at_least_float32(input)
    p = scores.sigmoid()
    positive = -alpha * (1 - p) ** gamma * _log(p)
    negative = -(1 - alpha) * p**gamma * _log(1 - p)
    loss = torch.where(_is_target(scores, target), positive, negative)
    output.copy_(loss * _per_row(_class_weight(weight, target)))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each loss by its score, written to ``grad_input``; arguments as in the forward pass."""
    (scores,) = at_least_float32(input)
    p = scores.sigmoid()
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p))
    negative = -(1 - alpha) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p)
    slope = torch.where(_is_target(scores, target), positive, negative)
    grad_input.copy_(slope * _per_row(_class_weight(weight, target)))


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each sample, written to ``output``: (N, C) -> (N,).

    Args:
        softmax: probabilities.
        target: class of each row, (N,); a negative one is ignored.
        weight: weight of each class, (C,), or empty.
        output: the result.
        gamma: exponent that lowers the loss of easy samples.
        alpha: factor of the loss.
    """
    p = _probability(softmax, target)
    loss = -alpha * (1 - p) ** gamma * _log(p) * _class_weight(weight, target)
    output.copy_(loss.where(target >= 0, 0))


def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivatives by the scores before the softmax, written to ``grad_input``, (N, C); ``buff`` (N,) gets a factor."""
    p = _probability(softmax, target)
    easy = 1 - p
    factor = alpha * (gamma * easy ** (gamma - 1) * p * _log(p) - easy**gamma) * _class_weight(weight, target)
    factor = factor.where(target >= 0, 0)
    buff.copy_(factor)
    (probabilities,) = at_least_float32(softmax)
    grad_input.copy_(factor[:, None] * (_is_target(softmax, target).to(factor) - probabilities))


def _probability(softmax: Tensor, target: Tensor) -> Tensor:
    """Probability of each row's class: (N, C), (N,) -> (N,)."""
    (probabilities,) = at_least_float32(softmax)
    return probabilities.gather(1, target.clamp(min=0)[:, None])[:, 0]
