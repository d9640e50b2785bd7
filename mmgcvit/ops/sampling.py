"""Operators that gather values of a map: deformable attention, CARAFE, and the masks of PSANet."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, unfold

from mmgcvit.ops.nms import at_least_float32


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (https://arxiv.org/abs/2010.04159): weighted sums of samples of several maps.

    Args:
        value: maps one after the other, (B, sum of H * W, heads, D).
        value_spatial_shapes: height and width of each map, (L, 2).
        value_level_start_index: not used: it follows from the shapes.
        sampling_locations: x and y of the samples in units of a map's size, (B, queries, heads, L, points, 2).
        attention_weights: weight of each sample, (B, queries, heads, L, points).
        im2col_step: images per step in mmcv; not used.

    Returns:
        (B, queries, heads * D).
    """
    batch, queries, heads, _, points, _ = sampling_locations.shape
    total: Tensor | None = None
    start = 0
    for level, (height, width) in enumerate(value_spatial_shapes.tolist()):
        maps = value[:, start : start + height * width].permute(0, 2, 3, 1)  # (B, heads, D, H * W)
        maps = maps.reshape(batch * heads, -1, height, width)
        start += height * width
        grid = (2 * sampling_locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        samples = grid_sample(maps, grid, align_corners=False)  # (B * heads, D, queries, points)
        weights = attention_weights[:, :, :, level].transpose(1, 2).reshape(batch * heads, 1, queries, points)
        part = (samples * weights).sum(-1)
        total = part if total is None else total + part
    if total is None:
        return value.new_zeros(batch, queries, heads * value.shape[3])
    return total.reshape(batch, -1, queries).transpose(1, 2).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of the values, the locations and the weights; arguments as in :func:`ms_deform_attn_forward`."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
        output = ms_deform_attn_forward(
            inputs[0], value_spatial_shapes, value_level_start_index, inputs[1], inputs[2], im2col_step
        )
    found = torch.autograd.grad(output, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        target.copy_(gradient)


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Content-aware upsampling (https://arxiv.org/abs/1905.02188): (B, C, H, W) -> (B, C, scale * H, scale * W).

    Each pixel of the result is a weighted sum of the kernel_size x kernel_size pixels around the one it lies in, with
    weights of its own: masks, (B, groups * kernel_size ** 2, scale * H, scale * W).
    """
    batch, channels, height, width = features.shape
    patches = unfold(features, kernel_size, padding=kernel_size // 2)
    patches = patches.view(batch, group_size, channels // group_size, kernel_size**2, height, 1, width, 1)
    weights = masks.view(batch, group_size, 1, kernel_size**2, height, scale_factor, width, scale_factor)
    return (patches * weights).sum(3).reshape(batch, channels, height * scale_factor, width * scale_factor)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """CARAFE, written to ``output``: see :func:`_carafe`."""
    maps, weights = at_least_float32(features, masks)
    output.copy_(_carafe(maps, weights, kernel_size, group_size, scale_factor))


def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of the map and the masks, written to ``grad_input`` and ``grad_masks``."""
    gradient, maps, weights = at_least_float32(grad_output, features, masks)
    with torch.enable_grad():
        maps, weights = maps.detach().requires_grad_(), weights.detach().requires_grad_()
        output = _carafe(maps, weights, kernel_size, group_size, scale_factor)
    found = torch.autograd.grad(output, (maps, weights), gradient)
    grad_input.copy_(found[0])
    grad_masks.copy_(found[1])


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """CARAFE, written to ``output``; ``rfeatures`` keeps the map for the backward pass, ``rmasks`` is not used."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Gradients of the map and the masks; the buffers whose names start with ``rgrad`` are not used."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, kernel_size, group_size, scale_factor)


def _psamask_channels(
    height: int, width: int, h_mask: int, w_mask: int, half_h: int, half_w: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Channel of a mask that connects two pixels: (H * W of one pixel, H, W of the other), and whether there is one."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    rows = (y[:, None] - y + half_h)[:, None, :, None]
    columns = (x[:, None] - x + half_w)[None, :, None, :]
    valid = (rows >= 0) & (rows < h_mask) & (columns >= 0) & (columns < w_mask)
    channels = rows.clamp(0, h_mask - 1) * w_mask + columns.clamp(0, w_mask - 1)
    return channels.flatten(0, 1), valid.flatten(0, 1)


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Attention maps of PSANet, written to ``output``: (B, h_mask * w_mask, H, W) -> (B, H * W, H, W).

    Channel (i, j) of pixel (y, x) is its attention to pixel (y + i - half_h_mask, x + j - half_w_mask).

    Args:
        input: the masks.
        output: the result. Without a mask for a pair of pixels it is 0.
        psa_type: 0 ('collect'): channels are the other pixels; 1 ('distribute'): channels are the pixels of the mask.
        num_: batch size; not used.
        h_feature: H.
        w_feature: W.
        h_mask: height of a mask.
        w_mask: its width.
        half_h_mask: row of the mask's centre.
        half_w_mask: its column.
    """
    sizes = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    channels, valid = _psamask_channels(*sizes, input.device)
    found = input.gather(1, channels.expand(len(input), -1, -1, -1)) * valid
    output.copy_(_swapped(found) if psa_type else found)


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Gradient of the masks, written to ``grad_input``; arguments as in :func:`psamask_forward`."""
    sizes = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    channels, valid = _psamask_channels(*sizes, grad_output.device)
    gradient = (_swapped(grad_output) if psa_type else grad_output) * valid
    grad_input.zero_().scatter_add_(1, channels.expand(len(gradient), -1, -1, -1), gradient)


def _swapped(maps: Tensor) -> Tensor:
    """Exchange the two pixels of (B, H * W, H, W)."""
    return maps.flatten(2).transpose(1, 2).reshape(maps.shape)
