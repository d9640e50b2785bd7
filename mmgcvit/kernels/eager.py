"""Implementations for eager mode on any device: fewer kernels, less memory traffic, less kept for the backward pass.

``torch.compile`` finds these by itself, so that it gets the reference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.kernels import reference


class GeluLinear(torch.autograd.Function):
    """GELU and linear layer that keep the input of the GELU only, and compute its output again in the backward pass.

    Autograd would keep both: a fifth of what a block keeps. The gradient is differentiable itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., C), (C', C), (C',) -> (..., C')."""
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's arguments, where they are needed."""
        x, weight = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = torch.ops.aten.gelu_backward(gradient @ weight, x)
        if ctx.needs_input_grad[1]:
            d_weight = gradient.flatten(0, -2).T @ F.gelu(x).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            d_bias = gradient.flatten(0, -2).sum(0)
        return d_x, d_weight, d_bias


def gelu_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.gelu_linear`; ``module`` must be unmodified."""
    if not torch.is_grad_enabled():
        return reference.gelu_linear(module, x)
    # Under autocast x has the type that is computed in, and autograd functions get their arguments as they are.
    weight, bias = (None if p is None else p.to(x.dtype) for p in (module.weight, module.bias))
    return GeluLinear.apply(x, weight, bias)


def mbconv_tail(x: Tensor, y: Tensor, se: nn.Module, pointwise: nn.Module) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.mbconv_tail`; ``pointwise`` must be unmodified and without a bias.

    Where the map is larger than the weight, the scale of the channels is applied to the weight.
    """
    height, width, channels = y.shape[1:]
    if height * width <= channels or x.dtype != y.dtype or pointwise.bias is not None:
        return reference.mbconv_tail(x, y, se, pointwise)
    y = F.gelu(y)
    scale = se(y.mean((1, 2)))
    weight = pointwise.weight * scale[:, None]  # [B, C', C]
    return torch.baddbmm(x.flatten(1, 2), y.flatten(1, 2), weight.to(y.dtype).mT).view_as(x)
