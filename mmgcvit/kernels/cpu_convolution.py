"""Convolutions of the network on a CPU: gradients of their weights by matrix products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.compat import autocast_is_enabled
from mmgcvit.kernels import processor, reference
from mmgcvit.kernels.products import differentiable, sum_of_rows

MAX_PATCHES = 2**19  # elements of the input patches that are copied at a time
MIN_CHANNELS, MIN_ELEMENTS = 64, 2**18  # of the input; below, products of the patches are slower


def convolution(module: nn.Conv2d, x: Tensor) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.convolution`; ``module`` must be unmodified."""
    has_gradient = torch.is_grad_enabled() and module.weight.requires_grad
    is_large = x.shape[3] >= MIN_CHANNELS and x.numel() >= MIN_ELEMENTS
    is_float32 = x.dtype is module.weight.dtype is torch.float32 and not autocast_is_enabled("cpu")
    is_dense = module.groups == 1 and module.dilation == (1, 1)
    is_padded = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    is_slow = has_gradient and is_large and is_float32 and processor.weight_gradients_are_slow()
    if is_slow and is_dense and is_padded:
        return Convolution.apply(x, module.weight, module.bias, module.stride, module.padding)
    return reference.convolution(module, x)


class Convolution(torch.autograd.Function):
    """Convolution of a channels-last map that computes the gradient of its weight by :func:`weight_gradient`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
    ) -> Tensor:
        """Apply the convolution: (B, H, W, C), (C', C, h, w), (C',) -> (B, H', W', C')."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return _convolve(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of those arguments of forward that need one."""
        x, weight = ctx.saved_tensors
        d_x = d_weight = d_bias = None
        if torch.is_grad_enabled():
            d_x, d_weight = differentiable(
                lambda x, w: _convolve(x, w, None, ctx.stride, ctx.padding), (x, weight), gradient
            )
            return d_x, d_weight, gradient.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None, None, None
        gradient = gradient.contiguous()
        if ctx.needs_input_grad[0]:
            maps = (y.permute(0, 3, 1, 2) for y in (gradient, x))
            options = (None, ctx.stride, ctx.padding, [1, 1], False, [0, 0], 1, [True, False, False])
            d_x = torch.ops.aten.convolution_backward(*maps, weight, *options)[0].permute(0, 2, 3, 1)
        if ctx.needs_input_grad[1]:
            d_weight = weight_gradient(gradient, x, weight.shape[2:], ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            d_bias = sum_of_rows(gradient)
        return d_x, d_weight, d_bias, None, None


def weight_gradient(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Gradient of the weight of a convolution: (B, H', W', C'), (B, H, W, C) -> (C', C, h, w)."""
    channels = x.shape[3]
    total = gradient.new_zeros(gradient.shape[3], kernel[0] * kernel[1] * channels)
    for image, d_image in zip(x, gradient, strict=True):
        for rows, patches in _patches(image, d_image.shape[:2], kernel, stride, padding):
            total.addmm_(d_image[rows].flatten(0, 1).T, patches)
    return total.unflatten(1, (*kernel, channels)).permute(0, 3, 1, 2)


def _patches(
    image: Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of the output, and the patches of the image under the kernel there: (rows * W', h * w * C)."""
    (height, width), channels = size, image.shape[2]
    step = max(1, MAX_PATCHES // (width * kernel[0] * kernel[1] * channels))
    for first in range(0, height, step):
        last = min(first + step, height)
        top, bottom = first * stride[0] - padding[0], (last - 1) * stride[0] - padding[0] + kernel[0]
        inside = image[max(top, 0) : max(bottom, 0)]
        above, below = min(max(-top, 0), bottom - top), min(max(bottom - len(image), 0), bottom - top)
        rows = F.pad(inside, (0, 0, padding[1], padding[1], above, below)).contiguous()
        down, right, _ = rows.stride()
        # Neighbouring pixels of a row are one run in memory: (rows, W', h, w * C).
        patches = rows.as_strided(
            (last - first, width, kernel[0], kernel[1] * channels), (stride[0] * down, stride[1] * right, down, 1)
        )
        yield slice(first, last), patches.reshape((last - first) * width, -1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)
