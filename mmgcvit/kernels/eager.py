"""Implementations for eager mode on any device: fewer kernels, less memory traffic, less kept for the backward pass.

``torch.compile`` finds most of this by itself, so that it gets the reference. The gradients are written with operations
that are differentiable themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.kernels import reference

MASK_ALIGNMENT = 16  # elements; fused attention on CUDA copies a mask whose rows start at other multiples


class GeluLinear(torch.autograd.Function):
    """GELU and linear layer that keep the input of the GELU only, and compute its output again in the backward pass.

    Autograd would keep both: a fifth of what a block keeps.
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
        return module(F.gelu(x))
    # Under autocast x has the type that is computed in, and autograd functions get their arguments as they are.
    weight, bias = (None if p is None else p.to(x.dtype) for p in (module.weight, module.bias))
    return GeluLinear.apply(x, weight, bias)


class ScaledAdd(torch.autograd.Function):
    """x + y * scale in one kernel, one more for the gradient; ``scale`` has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """(rows, C), (rows, C), (rows, 1) -> (rows, C)."""
        ctx.save_for_backward(scale)
        ctx.dtype = y.dtype
        return torch.addcmul(x, y, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and y."""
        (scale,) = ctx.saved_tensors
        return gradient, (gradient * scale).to(ctx.dtype), None


def residual(x: Tensor, y: Tensor, gamma: Tensor | None, scale: Tensor | None) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.residual`."""
    if gamma is None and scale is None:
        return x + y
    if gamma is None and x.dtype == y.dtype == scale.dtype:
        return ScaledAdd.apply(x, y, scale)
    return reference.residual(x, y, gamma, scale)


def mbconv_tail(x: Tensor, y: Tensor, se: nn.Module, pointwise: nn.Module) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.mbconv_tail`; ``pointwise`` must be unmodified and without a bias.

    The scale of the channels is applied to the map or to the weight, whichever is smaller.
    """
    height, width, channels = y.shape[1:]
    if x.dtype != y.dtype or pointwise.weight.dtype != y.dtype or pointwise.bias is not None:
        return reference.mbconv_tail(x, y, se, pointwise)
    y = F.gelu(y).flatten(1, 2)  # [B, H * W, C]
    scale = se(y.mean(1))[:, None]
    if height * width <= channels:
        y = (y * scale).flatten(0, 1)
        return torch.addmm(x.flatten(0, 2), y, pointwise.weight.T).view_as(x)
    return torch.baddbmm(x.flatten(1, 2), y, (pointwise.weight * scale).mT).view_as(x)


class GatherBias(torch.autograd.Function):
    """Entries of several bias tables at the same positions.

    The gradients of all tables are one sum, of which each is a contiguous part; autograd would copy each once more.
    """

    @staticmethod
    def forward(ctx: Any, index: Tensor, *tables: Tensor) -> Tensor:
        """(positions,), and ((2w-1)^2, heads) for each block -> (blocks, heads, positions)."""
        ctx.save_for_backward(index)
        ctx.rows, ctx.heads = tables[0].shape
        return torch.cat([table.T for table in tables]).index_select(1, index).unflatten(0, (-1, ctx.heads))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tables."""
        (index,) = ctx.saved_tensors
        gradient = gradient.transpose(1, 2)  # [blocks, positions, heads]
        return None, *gradient.new_zeros(len(gradient), ctx.rows, ctx.heads).index_add(1, index, gradient).unbind(0)


def position_biases(
    tables: Sequence[Tensor], sizes: Sequence[tuple[int, int]], window: int, dtype: torch.dtype
) -> Iterator[Sequence[Any]]:
    """See :func:`mmgcvit.kernels.reference.position_biases`."""
    index = reference.bias_index(tuple(sizes), window, tables[0].device)
    gathered = GatherBias.apply(index, *tables)
    yield from zip(*reference.assemble_biases(gathered, sizes, window, dtype), strict=True)
