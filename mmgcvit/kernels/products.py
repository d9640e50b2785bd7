"""Matrix products of the CPU kernels, each by the fastest implementation that this processor has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgcvit.compat import (
    GELU,
    PLAIN,
    autocast_is_enabled,
    compute_dtype,
    onednn_is_enabled,
    onednn_linear,
    onednn_linear_sum,
)
from mmgcvit.kernels import processor

MIN_ONEDNN = 2**15  # oneDNN pays off from this size; torch never uses it for convolutions of 20480 or fewer elements
_onednn_linear: Any = onednn_linear
_onednn_linear_sum: Any = onednn_linear_sum


def differentiable(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], gradient: Tensor
) -> list[Tensor | None]:
    """Gradients of ``function(*inputs)`` that are differentiable themselves, for ``create_graph=True``.

    An input may have been computed from another one, so the gradients are those of views of the inputs: they end there.
    """
    views = [None if x is None else x.view_as(x) for x in inputs]
    needed = [x for x in views if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(function(*views), needed, gradient, create_graph=True))
    return [None if x is None or not x.requires_grad else next(found) for x in views]


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Dtype in which oneDNN computes the product of x and a weight; None to leave it to torch.

    It is float32, or bfloat16 (the dtype of x, or of autocast) if this processor has instructions for it.
    """
    if x.numel() <= MIN_ONEDNN or not onednn_is_enabled():
        return None
    dtype = compute_dtype(x) if autocast_is_enabled("cpu") else x.dtype
    if dtype is torch.bfloat16:
        return dtype if processor.multiplies_bfloat16() else None
    if dtype is not torch.float32 or x.dtype is not dtype or weight.dtype is not dtype:
        return None
    return dtype if processor.convolutions_are_faster() or processor.onednn_linear_is_faster() else None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x @ weight.T + bias without a gradient: (..., C), (C', C), (C',) -> (..., C')."""
    return product_in(product_dtype(x, weight) if x.dtype is weight.dtype else None, x, weight, bias)


def product_in(
    dtype: torch.dtype | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool = False,
    added: Tensor | None = None,
) -> Tensor:
    """Compute x @ weight.T + bias, and optionally its GELU or its sum with a tensor, without a gradient.

    x, weight and bias have the dtype from :func:`product_dtype`.
    """
    if dtype is torch.bfloat16 or (dtype is not None and not processor.convolutions_are_faster()):
        if added is not None and added.dtype is dtype and _onednn_linear_sum is not None:
            return _onednn_linear_sum(x, added, weight, bias, "add")
        y = _onednn_linear(x, weight, bias, *(GELU if gelu else PLAIN))
        return y if added is None else added + y
    if dtype is None:
        y = F.linear(x, weight, bias)
    else:
        # A convolution over an image one pixel wide. The dilation of a 1x1 kernel has no effect on the result, but
        # makes torch choose oneDNN even with a single thread.
        image = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
        y = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
        y = y.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)
    y = torch.ops.aten.gelu_(y) if gelu else y
    return y if added is None else added + y


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of a weight, the sum of the outer products of all rows: (..., C'), (..., C) -> (C', C)."""
    rows = x.numel() // x.shape[-1]
    even = rows // 4 * 4  # other numbers of pixels are slow
    gradient, x = gradient.reshape(rows, -1), x.reshape(rows, -1)
    weight = gradient.new_empty(gradient.shape[1], x.shape[1])
    if not processor.convolutions_are_faster() or product_dtype(x[:even], weight) is not torch.float32:
        return gradient.T @ x
    weight = torch.ops.aten.convolution_backward(
        _as_image(gradient[:even]), _as_image(x[:even]), weight[:, :, None, None],
        None, [1, 1], [0, 0], [2, 2], False, [0, 0], 1, [False, True, False],
    )[1][:, :, 0, 0]  # fmt: skip
    return weight if even == rows else torch.addmm(weight, gradient[even:].T, x[even:])


def sum_of_rows(x: Tensor) -> Tensor:
    """Sum over all but the last dimension, as a matrix product, in float32 or wider: (..., C) -> (C,)."""
    rows = x.reshape(-1, x.shape[-1])
    return (rows.new_ones(1, len(rows)) @ rows)[0].to(torch.promote_types(x.dtype, torch.float32))


def _as_image(x: Tensor) -> Tensor:
    """(..., C) -> (1, C, rows, 1), channels last in memory."""
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


class Linear(torch.autograd.Function):
    """Linear layer by :func:`product`, optionally after a GELU that is recomputed in the backward pass.

    The weight is passed twice: as the parameter, whose gradient is computed, and in the dtype of the product.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, cast: Tensor, cast_bias: Tensor | None, gelu: bool
    ) -> Tensor:
        """Apply the layer: (..., C), (C', C), (C',) -> (..., C')."""
        ctx.save_for_backward(x, weight, cast)
        ctx.gelu, ctx.bias_dtype = gelu, None if bias is None else bias.dtype
        return product(F.gelu(x) if gelu else x, cast, cast_bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of those arguments of forward that need one."""
        x, weight, cast = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        if torch.is_grad_enabled():
            d_x, d_weight = differentiable(
                lambda x, w: F.linear(F.gelu(x) if ctx.gelu else x, w.to(x.dtype)), (x, weight), gradient
            )
            return d_x, d_weight, _bias_gradient(ctx, gradient), None, None, None
        gradient = gradient.contiguous()
        if ctx.needs_input_grad[0]:
            d_x = product(gradient, cast.T)
            if ctx.gelu:
                d_x = torch.ops.aten.gelu_backward(d_x, x)
        if ctx.needs_input_grad[1]:
            d_weight = weight_gradient(gradient, F.gelu(x) if ctx.gelu else x).to(weight.dtype)
        d_bias = _bias_gradient(ctx, gradient)
        return d_x, d_weight, d_bias, None, None, None


def _bias_gradient(ctx: Any, gradient: Tensor) -> Tensor | None:
    if not ctx.needs_input_grad[2]:
        return None
    total = gradient.flatten(0, -2).sum(0) if torch.is_grad_enabled() else sum_of_rows(gradient)
    return total.to(ctx.bias_dtype)
