"""Replacements of modules that cannot be traced for all image sizes, or have no equivalent in ONNX.

Each computes the same as the module that it replaces.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MatrixPool(nn.Module):
    """``AdaptiveAvgPool2d`` by two matrix products. ONNX has no operator for it.

    Args:
        size: height and width of the output.

    Examples:
        >>> pool = MatrixPool((3, 3))
        >>> pool(torch.ones(2, 8, 13, 21)).shape
        torch.Size([2, 8, 3, 3])
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C, height, width)."""
        rows, columns = (self._weights(out, side, x) for out, side in zip(self.size, x.shape[-2:], strict=True))
        return rows @ x @ columns.t()

    @staticmethod
    def _weights(out: int, side: int, x: Tensor) -> Tensor:
        """Weight of each of ``side`` values in each of ``out`` means, (out, side)."""
        cells = torch.arange(out, device=x.device)[:, None]
        places = torch.arange(side, device=x.device)[None]
        start = torch.div(cells * side, out, rounding_mode="floor")
        end = torch.div((cells + 1) * side + out - 1, out, rounding_mode="floor")
        inside = ((places >= start) & (places < end)).to(x.dtype)
        return inside / inside.sum(dim=1, keepdim=True)


class IntegerUpsample(nn.Module):
    """mmseg's ``Upsample`` by a whole number. The original computes sizes as floating-point numbers.

    Args:
        factor: the number.
        mode, align_corners: as in ``F.interpolate``.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge (B, C, H, W) to (B, C, factor * H, factor * W)."""
        height, width = x.shape[-2:]
        return F.interpolate(
            x, (self.factor * height, self.factor * width), mode=self.mode, align_corners=self.align_corners
        )


def replace_modules(model: nn.Module) -> None:
    """Replace all such modules of a model, in place."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if (new := _replacement(module)) is not None:
                setattr(parent, name, new)


def _replacement(module: Any) -> nn.Module | None:
    if type(module) is nn.AdaptiveAvgPool2d:
        size: Any = module.output_size
        height, width = (size, size) if isinstance(size, int) else size
        if height is not None and width is not None:
            return MatrixPool((height, width))
    if type(module).__name__ == "Upsample" and type(module).__module__.startswith("mmseg."):
        factor = module.scale_factor
        if not module.size and isinstance(factor, float) and factor == int(factor):
            return IntegerUpsample(int(factor), module.mode, module.align_corners)
    return None
