"""Implementations for eager mode on any device: fewer kernels, less memory traffic, fewer saved activations.

``torch.compile`` finds most of these optimisations itself, so it uses the reference. The backward passes consist of
differentiable operations, so that second derivatives work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.kernels import reference

MASK_ALIGNMENT = 16  # elements; fused attention on CUDA copies masks whose rows are not aligned to this


class GeluLinear(torch.autograd.Function):
    """GELU and linear layer that save only the input of the GELU, and recompute its output in the backward pass.

    Autograd would save both; the output is a fifth of what a block saves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply both: (..., C), (C', C), (C',) -> (..., C')."""
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of those arguments of forward that need one."""
        x, weight = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = torch.ops.aten.gelu_backward(gradient @ weight, x)
        if ctx.needs_input_grad[1]:
            d_weight = gradient.flatten(0, -2).T @ F.gelu(x).flatten(0, -2)
        if ctx.needs_input_grad[2]:
            d_bias = gradient.flatten(0, -2).sum(0)
        return d_x, d_weight, d_bias


def mlp(fc1: nn.Linear, fc2: nn.Linear, x: Tensor, added: Tensor | None = None) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.mlp`; ``fc2`` must be unmodified."""
    y = gelu_linear(fc2, fc1(x))
    return y if added is None else added + y


def gelu_linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Apply an exact GELU and a linear layer: (..., C) -> (..., C')."""
    if not torch.is_grad_enabled():
        return module(F.gelu(x))
    # Under autocast x has the compute dtype already, but autograd functions do not cast their arguments.
    weight, bias = (None if p is None else p.to(x.dtype) for p in (module.weight, module.bias))
    return GeluLinear.apply(x, weight, bias)


class ScaledAdd(torch.autograd.Function):
    """x + y * scale in one kernel, and one more in the backward pass; ``scale`` gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """Return x + y * scale: (rows, C), (rows, C), (rows, 1) -> (rows, C)."""
        ctx.save_for_backward(scale)
        ctx.dtype = y.dtype
        return torch.addcmul(x, y, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x and y."""
        (scale,) = ctx.saved_tensors
        return gradient, (gradient * scale).to(ctx.dtype), None


def residual(
    x: Tensor, branch: Callable[..., Tensor], gamma: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.residual`."""
    if gamma is not None or scale is None:
        return reference.residual(x, branch, gamma, scale)
    y = branch()
    return x + y * scale if x.dtype != y.dtype else ScaledAdd.apply(x, y, scale.to(x.dtype))


def mbconv_tail(x: Tensor, y: Tensor, se: nn.Module, pointwise: Any) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.mbconv_tail`; ``pointwise`` must be unmodified and without a bias.

    The channel scale is applied to the map or to the weight, whichever is smaller.
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
    """Bias of all tokens of a full window, for several blocks and window sizes, with one gather and one scatter.

    On accelerators the rows are aligned to 16 elements, because fused attention copies a mask whose rows are not.
    Autograd would need one copy for the alignment, and one for the gradient of each table.
    """

    @staticmethod
    def forward(
        ctx: Any, sizes: tuple[tuple[int, int], ...], window: int, dtype: torch.dtype, *tables: Tensor
    ) -> tuple[Tensor, ...]:
        """Gather ((2w-1)^2, heads) for each block -> (blocks, heads, queries, window * window) for each size.

        The bias of full windows has ``dtype``; that of smaller ones keeps the dtype of the tables, for the sum over
        padding.
        """
        ctx.sizes, ctx.window, (ctx.rows, ctx.heads), ctx.device = sizes, window, tables[0].shape, tables[0].device
        ctx.dtype = tables[0].dtype
        alignment = 1 if ctx.device.type == "cpu" else MASK_ALIGNMENT
        index = reference.bias_index(sizes, window, ctx.device, alignment)
        gathered = torch.cat([table.T for table in tables]).index_select(1, index).unflatten(0, (-1, ctx.heads))
        width = window * window + -(window * window) % alignment
        shapes = [(reference.bias_shape(size, window)[0], width) for size in sizes]
        parts = gathered.split([queries * width for queries, _ in shapes], 2)
        full = [size == (window, window) for size in sizes]
        parts = [part.to(dtype) if f else part for part, f in zip(parts, full, strict=True)]
        return tuple(p.unflatten(2, shape)[..., : window * window] for p, shape in zip(parts, shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tables."""
        flat = [gradient.flatten(2).to(ctx.dtype) for gradient in gradients]
        gradient = (flat[0] if len(flat) == 1 else torch.cat(flat, 2)).transpose(1, 2)  # [blocks, positions, heads]
        index = reference.bias_index(ctx.sizes, ctx.window, ctx.device)
        summed = gradient.new_zeros(len(gradient), ctx.rows, ctx.heads).index_add(1, index, gradient)
        return None, None, None, *summed.unbind(0)


def position_biases(
    tables: Sequence[Tensor], sizes: Sequence[tuple[int, int]], window: int, dtype: torch.dtype
) -> Iterator[Sequence[Any]]:
    """See :func:`mmgcvit.kernels.reference.position_biases`."""
    parts = GatherBias.apply(tuple(sizes), window, dtype, *tables)
    yield from zip(*reference.join_padding(parts, sizes, window, dtype), strict=True)
