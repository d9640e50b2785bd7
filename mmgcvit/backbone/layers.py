"""What the stem, the stages and the blocks are made of. Maps are (B, H, W, C), channels last, everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5


def layer_norm(channels: int) -> nn.LayerNorm:
    """LayerNorm over the channels of a channels-last tensor."""
    return nn.LayerNorm(channels, eps=LAYER_NORM_EPS)


class PointwiseConv(nn.Linear):
    """A 1x1 convolution without bias on channels-last maps: a linear map, with a convolution's initial values."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, bias=False)


class SqueezeExcite(nn.Module):
    """Channel attention: x * sigmoid(W2 GELU(W1 mean(x))), both maps without bias. (B, H, W, C) -> the same."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, channels // reduction, bias=False)
        self.fc2 = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        scale = self.fc2(F.gelu(self.fc1(x.mean(dim=(1, 2), keepdim=True)))).sigmoid()  # (B, 1, 1, C)
        return x * scale


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
        y = F.gelu(conv_channels_last(self.depthwise, x))
        return x + self.pointwise(self.se(y))


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
        x = F.dropout(F.gelu(self.fc1(x)), self.drop_rate, self.training)
        return F.dropout(self.fc2(x), self.drop_rate, self.training)


def conv_channels_last(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution on (B, H, W, C): permuted, not copied, since such a map is a channels-last picture to torch."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def drop_path(x: Tensor, rate: float, picture_axis: int, training: bool) -> Tensor:
    """Stochastic depth: zero x for each picture with probability ``rate``, scale what stays by 1 / (1 - rate)."""
    if not training or rate == 0:
        return x
    shape = [1] * x.ndim
    shape[picture_axis] = x.shape[picture_axis]
    keep = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(1 - rate)
    return x * keep.div_(1 - rate)
