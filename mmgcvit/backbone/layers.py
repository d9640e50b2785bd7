"""Layers of the stem, the stages and the blocks. All maps are channels-last, (B, H, W, C)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit import kernels
from mmgcvit.backbone import captured
from mmgcvit.utils.capture import is_eager

LAYER_NORM_EPS = 1e-5


def layer_norm(channels: int) -> nn.LayerNorm:
    """LayerNorm over the channels of a channels-last tensor."""
    return nn.LayerNorm(channels, eps=LAYER_NORM_EPS)


class PointwiseConv(nn.Linear):
    """1x1 convolution without bias on channels-last maps: a linear layer initialised like a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, bias=False)


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation: computes channel scales (B, C) from channel means (B, C)."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction, bias=False)
        self.fc2 = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, mean: Tensor) -> Tensor:
        """Return sigmoid(W2 GELU(W1 mean))."""
        return self.fc2(F.gelu(self.fc1(mean))).sigmoid()


class MBConv(nn.Module):
    """The paper's modified Fused-MBConv (section 3.3), without a norm: x + PW(SE(GELU(DW(x)))).

    (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.se = SqueezeExcite(channels)
        self.pointwise = PointwiseConv(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + PW(SE(GELU(DW(x))))."""
        ops = kernels.choose(x, self)
        return ops.mbconv_tail(x, kernels.convolution(self.depthwise, x), self.se, self.pointwise)


class Downsample(nn.Module):
    """LayerNorm, MBConv, 3x3 convolution with stride 2, LayerNorm: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C')."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = layer_norm(in_channels)
        self.mbconv = MBConv(in_channels)
        self.reduction = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm2 = layer_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return norm2(reduction(mbconv(norm1(x))))."""
        x = self.mbconv(self.norm1(x))
        # Implementations differ in the gradient only.
        ops = kernels.choose(x, self.reduction) if torch.is_grad_enabled() else kernels.REFERENCE
        return self.norm2(ops.convolution(self.reduction, x))


class Stem(nn.Module):
    """Embeds overlapping patches of the image: (B, H, W, channels) -> (B, ceil(H/4), ceil(W/4), C)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.downsample = Downsample(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return downsample(conv(x))."""
        return self.downsample(kernels.convolution(self.conv, x))


class GlobalQuery(nn.Module):
    """Global query, computed from the input map of a stage and shared by all windows (paper, section 3.2).

    (B, H, W, C) -> (B, heads, window * window, C // heads).

    Args:
        channels: number of channels C.
        num_heads: number of heads.
        window: side of the stage's windows, in tokens.
        reductions: how many times the map is halved by an MBConv and a 3x3 max-pool; 0 for one MBConv and no pooling.
            The result is resized to ``window`` x ``window`` if necessary.
        interpolation: 'bicubic' (the authors) or 'bilinear' (tfgcvit); half-pixel centers, no antialiasing.
    """

    def __init__(self, channels: int, num_heads: int, window: int, reductions: int, interpolation: str) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.reductions, self.interpolation = reductions, interpolation
        self.mbconvs = nn.ModuleList(MBConv(channels) for _ in range(max(reductions, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Pool and resize the map, and split it into heads."""
        eager, side = is_eager(), (self.window, self.window)
        for mbconv in self.mbconvs:
            x = mbconv(x)
            if self.reductions and eager:
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, stride=2, padding=1).permute(0, 2, 3, 1)
            elif self.reductions:
                x = captured.max_pool(x)
        if not eager:
            x = captured.resize(x, self.window, self.interpolation)
        elif x.shape[1:3] != side:
            x = F.interpolate(x.permute(0, 3, 1, 2), side, mode=self.interpolation).permute(0, 2, 3, 1)
        # [B, w, w, C] -> [B, w * w, heads, C / heads] -> [B, heads, w * w, C / heads]
        return x.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them: (..., C) -> (..., C).

    Args:
        channels: number of channels C.
        hidden: channels between the layers.
        drop_rate: dropout rate after the GELU and after the second layer.
    """

    def __init__(self, channels: int, hidden: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor, ops: kernels.Kernels = kernels.REFERENCE, added: Tensor | None = None) -> Tensor:
        """Return fc2(GELU(fc1(x))), plus a tensor (..., C) if one is given, computed by ``ops``."""
        if not self.drop_rate:
            return ops.mlp(self.fc1, self.fc2, x, added)
        x = F.dropout(F.gelu(ops.linear(self.fc1, x)), self.drop_rate, self.training)
        return kernels.plus(F.dropout(ops.linear(self.fc2, x), self.drop_rate, self.training), added)
