"""Implementations for CPUs in eager mode: cache-friendly chunks, and the fastest matrix products.

Linear layers and the tail of an MBConv are here, attention in :mod:`~mmgcvit.kernels.cpu_attention`, gradients of
convolutions in :mod:`~mmgcvit.kernels.cpu_convolution`. The products themselves are in
:mod:`~mmgcvit.kernels.products`. ``docs/performance.md`` has the command that measures the speed-up of each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.kernels import eager, processor, reference
from mmgcvit.kernels.products import (
    Linear,
    differentiable,
    product,
    product_dtype,
    product_in,
    sum_of_rows,
    weight_gradient,
)

MAX_PACK = processor.pack_bytes()  # bytes of a map that a block processes at a time
MAX_KEPT_PACK = 2**22  # the same in training, which keeps what is computed: caches hold little of it anyway

CHUNK = 2**17  # elements of the map of one image that are permuted at a time


def pack_elements(dtype: torch.dtype, channels: int = 1, kept: bool = False) -> int:
    """Number of elements, or of rows of ``channels`` elements, that a block processes at a time: at least 1.

    ``kept`` says whether what is computed is kept for a backward pass.
    """
    return max(1, (MAX_KEPT_PACK if kept else MAX_PACK) // (dtype.itemsize * channels))


def nchw(x: Tensor) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.nchw`; some rows at a time, so that they stay in the cache."""
    B, H, W, C = x.shape
    rows = max(1, CHUNK // (W * C))
    if rows >= H:
        return x.permute(0, 3, 1, 2).contiguous()  # reference.nchw(), inlined
    return torch.cat([chunk.flatten(1, 2).mT for chunk in x.split(rows, 1)], 2).view(B, C, H, W)


# ---------------------------------------------------------------------------------------------------- linear layers


class Weights:
    """Weights of layers in the dtype of their products; each is cast once, for all packs of a stage.

    Under autocast, torch would cast them for each product of its own, but not for the operations used here.
    """

    def __init__(self) -> None:
        self._cast: dict[int, tuple[Tensor, Tensor | None]] = {}

    def __call__(self, module: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return copies of the weight and the bias of a layer, without a gradient."""
        if id(module) not in self._cast:
            bias = None if module.bias is None else module.bias.detach().to(dtype)
            self._cast[id(module)] = module.weight.detach().to(dtype), bias
        return self._cast[id(module)]


def with_cast_weights(kernels: Any) -> Any:
    """Copy of a set of kernels whose linear layers share their cast weights, for one stage under autocast."""
    weights = Weights()
    shared = {name: partial(own, weights=weights) for name, own in (("linear", linear), ("mlp", mlp))}
    return replace(kernels, **{name: f for name, f in shared.items() if getattr(kernels, name) is f.func})


def linear(module: nn.Linear, x: Tensor, added: Tensor | None = None, weights: Weights | None = None) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.linear`; ``module`` must be unmodified."""
    dtype = product_dtype(x, module.weight)
    if dtype is None:
        y = module(x)
        return y if added is None else added + y
    weight: Any = module.weight
    bias: Any = module.bias
    if weight.dtype is not dtype:
        weight, bias = (weights or Weights())(module, dtype)
    x = x.to(dtype)
    if torch.is_grad_enabled():
        return reference.plus(Linear.apply(x, module.weight, module.bias, weight, bias, False), added)
    return product_in(dtype, x, weight, bias, added=added)


def mlp(
    fc1: nn.Linear, fc2: nn.Linear, x: Tensor, added: Tensor | None = None, weights: Weights | None = None
) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.mlp`; both modules must be unmodified."""
    dtype = product_dtype(x, fc1.weight)
    if dtype is None:
        return eager.mlp(fc1, fc2, x, added)
    layers: Any = fc1.weight, fc1.bias, fc2.weight, fc2.bias
    weight1, bias1, weight2, bias2 = layers
    if weight1.dtype is not dtype:
        weights = weights or Weights()
        (weight1, bias1), (weight2, bias2) = weights(fc1, dtype), weights(fc2, dtype)
    x = x.to(dtype)
    if torch.is_grad_enabled():
        x = Linear.apply(x, fc1.weight, fc1.bias, weight1, bias1, False)
        return reference.plus(Linear.apply(x, fc2.weight, fc2.bias, weight2, bias2, True), added)
    return product_in(dtype, product_in(dtype, x, weight1, bias1, gelu=True), weight2, bias2, added=added)


def residual(
    x: Tensor, branch: Callable[..., Tensor], gamma: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.residual`."""
    if gamma is None and scale is None and not torch.is_grad_enabled():
        return branch(x)
    return eager.residual(x, branch, gamma, scale)


# ------------------------------------------------------------------------------------------------- tail of an MBConv


def mbconv_tail(x: Tensor, y: Tensor, se: Any, pointwise: Any) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.mbconv_tail`; all modules must be unmodified, ``y`` may be overwritten.

    If the map is larger than the weight, it is computed a few rows at a time: allocating memory for each of the six
    intermediate maps would take longer than computing them.
    """
    height, width, channels = y.shape[1:]
    is_small = height * width <= channels
    is_slow = x.dtype != y.dtype or (y.dtype.itemsize <= 2 and product_dtype(y, pointwise.weight) is not y.dtype)
    has_bias = pointwise.bias is not None or se.fc1.bias is not None or se.fc2.bias is not None
    if is_small or is_slow or has_bias:
        return reference.mbconv_tail(x, y, se, pointwise)
    weights = pointwise.weight, se.fc1.weight, se.fc2.weight
    x, y = x.contiguous(), y.contiguous()  # no copy, unless torch was built without oneDNN
    if torch.is_grad_enabled():
        return MBConvTail.apply(x, y, *weights)
    return _mbconv_tail(x, y, weights, out=y)[0]


def _scaled_weight(mean: Tensor, pointwise: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    """Weight of the pointwise layer, scaled by squeeze-and-excitation for each image: (B, 1, C) -> (B, C', C)."""
    return pointwise * F.linear(F.gelu(F.linear(mean, fc1)), fc2).sigmoid()


@torch.autocast("cpu", enabled=False)
def _mbconv_tail(x: Tensor, y: Tensor, weights: Sequence[Tensor], out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the result, written to ``out`` (which may be y itself), and the mean of GELU(y), (B, 1, C).

    The mean and the scaled weight are computed in the dtype of the weights, which autocast would change.
    """
    step = pack_elements(y.dtype, y.shape[-1])
    x, y, result = x.flatten(1, 2), y.flatten(1, 2), out.flatten(1, 2)  # [B, H * W, C]
    means = []
    for image, target in zip(y, result, strict=True):
        total = y.new_zeros(y.shape[2], dtype=weights[0].dtype)
        for rows, activated in zip(image.split(step), target.split(step), strict=True):
            total += sum_of_rows(torch.ops.aten.gelu.out(rows, out=activated))
        means.append(total)
    mean = torch.stack(means)[:, None] / y.shape[1]
    scaled = _scaled_weight(mean, *weights).to(y.dtype)
    dtype = product_dtype(result[0, :step], scaled)
    for i, weight in enumerate(scaled):
        for added, target in zip(x[i].split(step), result[i].split(step), strict=True):
            torch.add(added, product_in(dtype, target, weight, None), out=target)
    return out, mean


def _plain_tail(y: Tensor, *weights: Tensor) -> Tensor:
    y = F.gelu(y)
    mean = y.mean((1, 2), dtype=weights[0].dtype)[:, None]
    return y @ _scaled_weight(mean, *weights)[:, None].mT.to(y.dtype)


class MBConvTail(torch.autograd.Function):
    """Tail of an MBConv that saves only x and y for the backward pass, and recomputes the activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *weights: Tensor) -> Tensor:
        """Apply the tail to x and y, (B, H, W, C); for ``weights`` see :func:`_scaled_weight`."""
        out, mean = _mbconv_tail(x, y, weights, out=torch.empty_like(x))
        ctx.save_for_backward(y, mean, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments; that of x equals that of the output."""
        y, *inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradient, *differentiable(_plain_tail, (y, *inputs[1:]), gradient)
        gradient = gradient.contiguous()
        # Use copies, so that hooks on the weights are not called here.
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            scaled = _scaled_weight(*inputs)
        step = pack_elements(y.dtype, y.shape[-1])
        d_y = torch.empty_like(y)
        y, grad, result = y.flatten(1, 2), gradient.flatten(1, 2), d_y.flatten(1, 2)
        d_scaled = torch.zeros_like(scaled)
        for i, total in enumerate(d_scaled):
            for rows, g in zip(y[i].split(step), grad[i].split(step), strict=True):
                total += weight_gradient(g, F.gelu(rows))
        d_mean, *d_weights = torch.autograd.grad(scaled, inputs, d_scaled)
        d_mean = d_mean / y.shape[1]
        for i, (weight, d) in enumerate(zip(scaled.detach().to(y.dtype), d_mean.to(y.dtype), strict=True)):
            for rows, g, target in zip(y[i].split(step), grad[i].split(step), result[i].split(step), strict=True):
                torch.ops.aten.gelu_backward.grad_input(product(g, weight.T, d[0]), rows, grad_input=target)
        return gradient, d_y, *d_weights
