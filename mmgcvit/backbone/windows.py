"""Padding, and the way from maps to windows and back: all of it is here, for every ``pad`` mode."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PAD_MODES = ("input", "stage", "window")


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, H, W, C) on the right and at the bottom until ``multiple`` divides H and W."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    if bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x


class WindowGrid:
    """How one stage's maps are cut into square windows.

    Windows are laid out as (windows, tokens, pictures, C): whatever belongs to one window position of every picture
    lies together, so that pictures and heads merge into one axis without a copy. Attention then runs over
    ``windows`` as its batch, and the global query, which all windows of a picture share, is expanded along it with
    stride 0. A map that is a single window needs no cutting: there the pictures take the windows' place,
    (pictures, tokens, 1, C), which is a view of the map.

    Nothing in GC ViT moves windows between blocks, so a map that the window divides is cut once per stage.

    Args:
        height: H of the map, in tokens.
        width: W of the map, in tokens.
        window: side of a window, in tokens.
    """

    def __init__(self, height: int, width: int, window: int) -> None:
        self.height, self.width, self.window = height, width, window
        self.divides = height % window == 0 and width % window == 0
        self.single = height <= window and width <= window

    def partition(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (windows, tokens, pictures, C); zero-padded first where the window does not divide."""
        x = pad_to_multiple(x, self.window)
        batch, height, width, channels = x.shape
        w = self.window
        if self.single:
            return x.reshape(batch, w * w, 1, channels)
        # (B, rows, w, columns, w, C) -> (rows, columns, w, w, B, C) -> (rows * columns, w * w, B, C)
        x = x.reshape(batch, height // w, w, width // w, w, channels).permute(1, 3, 2, 4, 0, 5)
        return x.reshape(-1, w * w, batch, channels)

    def merge(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`partition`: (windows, tokens, pictures, C) -> (B, H, W, C), the padding cropped."""
        w, channels = self.window, x.shape[3]
        rows, columns = -(-self.height // w), -(-self.width // w)
        if self.single:
            x = x.reshape(-1, w, w, channels)
        else:
            # (rows, columns, w, w, B, C) -> (B, rows, w, columns, w, C) -> (B, rows * w, columns * w, C)
            x = x.reshape(rows, columns, w, w, -1, channels).permute(4, 0, 2, 1, 3, 5)
            x = x.reshape(-1, rows * w, columns * w, channels)
        return x[:, : self.height, : self.width]
