"""Deformable convolution by torchvision, and the two steps of mmcv's convolution at selected pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import deform_conv2d

from mmgcvit.compat import deform_conv2d_gradients
from mmgcvit.ops.nms import at_least_float32


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (https://arxiv.org/abs/1703.06211), written to ``output``: (B, C, H, W) -> (B, D, h, w).

    Args:
        input: the map.
        weight: weights, (D, C / group, kH, kW).
        offset: offsets (y, x) of each weight, (B, deformable_group * kH * kW * 2, h, w).
        output: the result.
        columns: not used, like ``ones``, ``kW``, ``kH``, ``group``, ``deformable_group`` and ``im2col_step``: the sizes
            follow from the tensors.
        ones: not used.
        kW: width of the kernel.
        kH: its height.
        dW: stride in x.
        dH: stride in y.
        padW: padding in x.
        padH: padding in y.
        dilationW: dilation in x.
        dilationH: dilation in y.
        group: groups of the convolution.
        deformable_group: groups of channels with offsets of their own.
        im2col_step: images per step in mmcv.
    """
    maps, offsets, weights = at_least_float32(input, offset, weight)
    output.copy_(deform_conv2d(maps, offsets, weights, None, (dH, dW), (padH, padW), (dilationH, dilationW)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients with respect to the map and the offsets; arguments as in :func:`deform_conv_forward`."""
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), (group, deformable_group)
    gradient, maps, weights, offsets = at_least_float32(grad_output, input, weight, offset)
    found = deform_conv2d_gradients(gradient, maps, weights, offsets, None, *geometry)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient with respect to the weights, times ``scale``; arguments as in :func:`deform_conv_forward`."""
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW), (group, deformable_group)
    # The gradient depends on the shape of the weights only, and mmcv passes no others.
    gradient, maps, weights, offsets = at_least_float32(grad_output, input, grad_weight, offset)
    grad_weight.copy_(deform_conv2d_gradients(gradient, maps, weights, offsets, None, *geometry)[1] * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Deformable convolution with a factor for each sample (https://arxiv.org/abs/1811.11168), written to ``output``.

    Args:
        input: the map, (B, C, H, W).
        weight: weights, (D, C / group, kernel_h, kernel_w).
        bias: (D,); not used if ``with_bias`` is false.
        ones: not used, like ``columns``, the size of the kernel and the numbers of groups.
        offset: offsets (y, x), (B, deformable_group * kernel_h * kernel_w * 2, h, w).
        mask: factors, (B, deformable_group * kernel_h * kernel_w, h, w).
        output: the result, (B, D, h, w).
        columns: not used.
        kernel_h: height of the kernel.
        kernel_w: its width.
        stride_h: stride in y.
        stride_w: stride in x.
        pad_h: padding in y.
        pad_w: padding in x.
        dilation_h: dilation in y.
        dilation_w: dilation in x.
        group: groups of the convolution.
        deformable_group: groups of channels with offsets of their own.
        with_bias: whether to add the bias.
    """
    maps, offsets, weights, factors, biases = at_least_float32(input, offset, weight, mask, bias)
    geometry = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    output.copy_(deform_conv2d(maps, offsets, weights, biases if with_bias else None, *geometry, mask=factors))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of all tensors; arguments as in :func:`modulated_deform_conv_forward`."""
    geometry = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), (group, deformable_group)
    gradient, maps, weights, offsets, factors = at_least_float32(grad_output, input, weight, offset, mask)
    found = deform_conv2d_gradients(gradient, maps, weights, offsets, factors, *geometry)
    for target, part in zip((grad_input, grad_weight, grad_offset, grad_mask), found, strict=True):
        target.copy_(part)
    if with_bias:
        grad_bias.copy_(gradient.sum((0, 2, 3)))


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Patches around selected pixels, written to ``col``: (1, C, H, W), (N,), (N,) -> (C * kernel_h * kernel_w, N).

    Args:
        im: the map; only its first image is read.
        mask_h_idx: y of the selected pixels of the result of the convolution.
        mask_w_idx: their x.
        col: the result.
        kernel_h: height of the kernel.
        kernel_w: its width.
        pad_h: padding in y.
        pad_w: padding in x.
    """
    # The patch of a selected pixel may reach beyond the padding: what is outside counts as zero.
    padded = pad(im[0], (pad_w, kernel_w, pad_h, kernel_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))  # (C, kernel_h, kernel_w, N)


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write values to selected pixels of the first image of ``im``: (C, N) -> (1, C, height, width)."""
    im[0][:, mask_h_idx, mask_w_idx] = col
