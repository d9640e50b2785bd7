"""Normalization of images with any number of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from mmgcvit.errors import UsageError
from mmgcvit.utils.text import counted


class AnyChannels(BaseDataPreprocessor):
    """Mixin for the preprocessors of mmdet and mmseg: one mean and one standard deviation for each channel.

    mmengine allows one or three values. It also keeps only the first three channels when it reverses colours; here the
    first three are reversed and all others are kept.

    Args:
        mean, std: values for each channel, in the order after the reversal, or one value for all; None: images are not
            normalized.
        bgr_to_rgb, rgb_to_bgr: whether to reverse the first three channels.
        **arguments: all other arguments of mmdet's or mmseg's preprocessor.

    Raises:
        UsageError: ``mean`` and ``std`` differ in length; both reversals are asked for; or, later, images have another
            number of channels.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        **arguments: Any,
    ) -> None:
        if bgr_to_rgb and rgb_to_bgr:
            raise UsageError("data_preprocessor: bgr_to_rgb=True and rgb_to_bgr=True; allowed: one of them")
        if (mean is None) != (std is None) or (mean and std and len(mean) != len(std)):
            raise UsageError(f"data_preprocessor: mean={mean}, std={std}; allowed: as many values in both, or None")
        super().__init__(**arguments)
        self.reverse = bgr_to_rgb or rgb_to_bgr
        self.normalized = mean is not None
        if mean is not None and std is not None:
            self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, data: dict, training: bool = False) -> dict:
        """Reverse colours and normalize the images, and do what else mmdet's or mmseg's preprocessor does.

        Args:
            data: ``inputs``, a list of images (C, H, W) or a batch (B, C, H, W), and ``data_samples``.
            training: passed on.
        """
        data = dict(self.cast_data(data))
        inputs = data["inputs"]
        data["inputs"] = self._convert(inputs) if isinstance(inputs, Tensor) else [*map(self._convert, inputs)]
        return super().forward(data, training)

    def _convert(self, image: Tensor) -> Tensor:
        channels = image.shape[-3]
        expected = len(self.mean) if self.normalized else channels
        if expected not in (1, channels):
            raise UsageError(
                f"data_preprocessor: images have {counted(channels, 'channel')} as loaded, mean and std "
                f"{counted(expected, 'value')}; allowed: one value for each channel. color_type of the loading "
                "transform selects what is loaded: 'color' (3 channels), 'grayscale' (1) or 'unchanged' (as in the "
                "file)"
            )
        if self.reverse:
            if channels < 3:
                raise UsageError(
                    f"data_preprocessor: bgr_to_rgb=True or rgb_to_bgr=True with {counted(channels, 'channel')}; "
                    "allowed: at least 3; set both to False"
                )
            image = torch.cat([image[..., :3, :, :].flip(-3), image[..., 3:, :, :]], dim=-3)
        image = image.float()
        return (image - self.mean) / self.std if self.normalized else image
