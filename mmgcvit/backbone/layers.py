"""What the stem, the stages and the blocks are made of. Maps are (B, H, W, C), channels last, everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmgcvit.backbone.eager import eager_on_cpu, is_plain
from mmgcvit.backbone.linear import linear, product, weight_gradient

LAYER_NORM_EPS = 1e-5
PIECE = 2**18  # elements of a map that are worked on at a time


def layer_norm(channels: int) -> nn.LayerNorm:
    """LayerNorm over the channels of a channels-last tensor."""
    return nn.LayerNorm(channels, eps=LAYER_NORM_EPS)


class PointwiseConv(nn.Linear):
    """A 1x1 convolution without bias on channels-last maps: a linear map, with a convolution's initial values."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, bias=False)


class SqueezeExcite(nn.Module):
    """What channel attention multiplies a map by, from the map's mean: sigmoid(W2 GELU(W1 mean)), without biases.

    (B, 1, C) -> (B, 1, C).
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction, bias=False)
        self.fc2 = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, mean: Tensor) -> Tensor:
        """See the class."""
        return self.fc2(F.gelu(self.fc1(mean))).sigmoid()


class MBConv(nn.Module):
    """The paper's modified Fused-MBConv (section 3.3), without a norm: x + PW(SE(GELU(DW(x)))).

    (B, H, W, C) -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.se = SqueezeExcite(channels)
        self.pointwise = PointwiseConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = conv_channels_last(self.depthwise, x)
        # Where the map is larger than the weight, channel attention may scale the weight.
        if self._is_plain(x, y) and y.shape[1] * y.shape[2] > y.shape[3]:
            weights = self.pointwise.weight, self.se.fc1.weight, self.se.fc2.weight
            x, y = x.contiguous(), y.contiguous()  # as they are, but where torch has no oneDNN
            if torch.is_grad_enabled():
                return _ExcitedPointwise.apply(x, y, *weights)
            return _excite(x, y, weights, out=y)[0]
        y = F.gelu(y)
        return x + self.pointwise(y * self.se(y.mean(dim=(1, 2))[:, None])[:, None])

    def _is_plain(self, x: Tensor, y: Tensor) -> bool:
        return (
            eager_on_cpu(x)
            and x.dtype == y.dtype
            and x.dtype.itemsize > 2
            and is_plain(self.se, SqueezeExcite)
            and is_plain(self.depthwise, nn.Conv2d)
            and is_plain(self.pointwise, PointwiseConv)
            and is_plain(self.se.fc1, nn.Linear)
            and is_plain(self.se.fc2, nn.Linear)
        )


def _excited(mean: Tensor, pointwise: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    """A pointwise map's weight, scaled by channel attention for each picture: (B, 1, C) -> (B, C', C)."""
    return pointwise * F.linear(F.gelu(F.linear(mean, fc1)), fc2).sigmoid()


def _excite(x: Tensor, y: Tensor, weights: Sequence[Tensor], out: Tensor) -> tuple[Tensor, Tensor]:
    """x + GELU(y) @ weight, and the mean of GELU(y), (B, 1, C). The first is ``out``, which may be y itself."""
    in_place = out is y
    activate = torch.ops.aten.gelu_ if in_place else F.gelu
    mean = torch.stack([sum(activate(rows).sum(0) for rows in _rows(picture)) for picture in y])[:, None]
    mean /= y.shape[1] * y.shape[2]
    for picture, residual, result, matrix in zip(y, x, out, _excited(mean, *weights), strict=True):
        for rows, added, target in zip(_rows(picture), _rows(residual), _rows(result), strict=True):
            torch.add(added, product(rows if in_place else F.gelu(rows), matrix), out=target)
    return out, mean


class _ExcitedPointwise(torch.autograd.Function):
    """x + GELU(y) @ weight, scaled by what channel attention makes of the mean of GELU(y); x and y are kept.

    In eager mode each of the six maps in this formula is memory that the process has to be given, which costs more than
    computing it. So it is worked out some rows at a time, and the activation is computed anew wherever it is needed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *weights: Tensor) -> Tensor:
        """x and y: (B, H, W, C), ``weights``: as of :func:`_excited`."""
        out, mean = _excite(x, y, weights, out=torch.empty_like(x))
        ctx.save_for_backward(y, mean, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's arguments; x's is the output's."""
        y, *inputs = ctx.saved_tensors
        gradient = gradient.contiguous()
        # Of copies: hooks on the weights are for autograd to call, once.
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            matrices = _excited(*inputs)
        d_matrices = torch.stack(
            [
                sum(weight_gradient(g, F.gelu(rows)) for rows, g in zip(_rows(picture), _rows(grad), strict=True))
                for picture, grad in zip(y, gradient, strict=True)
            ]
        )
        d_mean, *d_weights = torch.autograd.grad(matrices, inputs, d_matrices)
        d_mean = d_mean / (y.shape[1] * y.shape[2])
        d_y = torch.empty_like(y)
        for picture, grad, result, matrix, d in zip(y, gradient, d_y, matrices.detach(), d_mean, strict=True):
            for rows, g, target in zip(_rows(picture), _rows(grad), _rows(result), strict=True):
                torch.ops.aten.gelu_backward.grad_input(product(g, matrix.T, d[0]), rows, grad_input=target)
        return gradient, d_y, *d_weights


def _rows(picture: Tensor) -> tuple[Tensor, ...]:
    """A contiguous (H, W, C) as pieces of (pixels, C) that a CPU's caches hold."""
    return picture.flatten(0, 1).split(max(1, PIECE // picture.shape[2]))


class Downsample(nn.Module):
    """LayerNorm, MBConv, 3x3 convolution with stride 2, LayerNorm: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(in_channels)
        self.mbconv = MBConv(in_channels)
        self.reduction = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm2 = layer_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.norm2(conv_channels_last(self.reduction, self.mbconv(self.norm1(x))))


class Stem(nn.Module):
    """Picture to the first map, with overlapping patches: (B, H, W, channels) -> (B, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.downsample = Downsample(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.downsample(conv_channels_last(self.conv, x))


class GlobalQuery(nn.Module):
    """The query that all windows of a picture share (paper, section 3.2), drawn from a stage's input map.

    (B, H, W, C) -> (B, heads, window * window, C // heads), contiguous.

    Args:
        channels: C.
        num_heads: heads.
        window: side of the stage's windows, in tokens.
        reductions: how many times the map is halved by a 3x3 max-pool, each after an MBConv of its own; with 0 there
            is one MBConv and no pooling. What is not ``window`` x ``window`` then is resized to it.
        interpolation: 'bicubic' (the authors) or 'bilinear' (tfgcvit); half-pixel centres, no antialiasing.
    """

    def __init__(self, channels: int, num_heads: int, window: int, reductions: int, interpolation: str) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.reductions, self.interpolation = reductions, interpolation
        self.mbconvs = nn.ModuleList(MBConv(channels) for _ in range(max(reductions, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for mbconv in self.mbconvs:
            x = mbconv(x)
            if self.reductions:
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
        side = (self.window, self.window)
        if x.shape[1:3] != side:
            x = F.interpolate(x.permute(0, 3, 1, 2), side, mode=self.interpolation).permute(0, 2, 3, 1)
        batch, _, _, channels = x.shape
        # (B, w, w, C) -> (B, w * w, heads, C / heads) -> (B, heads, w * w, C / heads)
        x = x.reshape(batch, -1, self.num_heads, channels // self.num_heads)
        return x.transpose(1, 2).contiguous()


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between, over the last axis."""

    def __init__(self, channels: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        x = linear(self.fc1, x)
        if not self.drop_rate:
            return linear(self.fc2, x, gelu=True)
        x = F.dropout(F.gelu(x), self.drop_rate, self.training)
        return F.dropout(linear(self.fc2, x), self.drop_rate, self.training)


def conv_channels_last(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution on (B, H, W, C): permuted, not copied, since such a map is a channels-last picture to torch."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
