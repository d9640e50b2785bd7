"""Base of the graphs that are exported, and the preprocessing in front of each of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgcvit.errors import ExportError
from mmgcvit.utils.text import counted


class Preprocess(nn.Module):
    """What a model's ``data_preprocessor`` does to images at test time, as a part of the graph.

    Args:
        preprocessor: the preprocessor of mmdet, mmseg or the package's classifiers.
        channels: channels of the images.
        bgr: whether the config's loader reverses the first three channels of the file, as OpenCV does.

    Attributes:
        pad_values: values of the input that become zero, one for each channel (RGB).

    Raises:
        ExportError: the preprocessor does something that is not supported here.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: Any, channels: int = 3, bgr: bool = True) -> None:
        super().__init__()
        self.channels, self.bgr = channels, bgr
        # Images come in the order of the file; the model was trained on what loader and preprocessor made of it.
        # `reverse` is that of the package's own preprocessors, `_channel_conversion` that of mmengine's, mmdet's and
        # OneDL's mmseg, `channel_conversion` that of OpenMMLab's mmseg.
        names = ("reverse", "_channel_conversion", "channel_conversion")
        again = any(bool(getattr(preprocessor, name, False)) for name in names)
        self.reverse = channels >= 3 and bgr != again
        mean, std = getattr(preprocessor, "mean", None), getattr(preprocessor, "std", None)
        mean = torch.zeros(1) if mean is None else mean.detach().float().flatten().cpu()
        std = torch.ones(1) if std is None else std.detach().float().flatten().cpu()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ExportError(
                    f"data_preprocessor.{name}: {counted(len(values), 'value')}; allowed: {channels}, or 1"
                )
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        test_cfg = getattr(preprocessor, "test_cfg", None) or {}  # of mmseg's preprocessor
        divisors = test_cfg.get("size_divisor"), getattr(preprocessor, "pad_size_divisor", None)
        self.divisor = max(int(divisor or 1) for divisor in divisors)
        if test_cfg.get("size") is not None:
            raise ExportError(
                f"data_preprocessor.test_cfg.size={test_cfg['size']}: padding to a fixed size is not supported; "
                "allowed: size_divisor"
            )
        self.pad_value = float(getattr(preprocessor, "pad_value", 0) or getattr(preprocessor, "pad_val", 0) or 0)
        values = (self.mean + self.pad_value * self.std).expand(1, channels, 1, 1)
        self.pad_values = tuple(self._reordered(values).flatten().tolist())

    def _reordered(self, x: Tensor) -> Tensor:
        if not self.reverse:
            return x
        return torch.cat([x[:, :3].flip(1), x[:, 3:]], dim=1) if self.channels > 3 else x.flip(1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalize and pad.

        Args:
            images: (B, C, H, W) uint8 or float32, channels and values as in the image file.

        Returns:
            (B, C, H', W') float32, where H' and W' are multiples of the divisor.
        """
        x = self._reordered(images.float())
        x = (x - self.mean) / self.std
        if self.divisor > 1:
            height, width = x.shape[-2:]
            # Written so that torch knows the padded sizes to be multiples, which simplifies all sizes that follow.
            right, bottom = ((n + self.divisor - 1) // self.divisor * self.divisor - n for n in (width, height))
            x = F.pad(x, (0, right, 0, bottom), value=self.pad_value)
        return x


class ExportGraph(nn.Module, ABC):
    """A whole model as one graph, from images to predictions; :class:`~mmgcvit.runtime.metadata.ModelInfo` names them.

    Subclasses implement ``forward(images)``, which must be traceable by ``torch.export`` with symbolic batch size,
    height and width, must not depend on the values of tensors, and must not need custom operators.

    Args:
        model: the built model, with weights, on the CPU. It is used, not copied.
        channels: channels of the images.

    Attributes:
        masks: what the masks of a detector cover, 'box' or 'image'; '' without masks.
        mask_threshold: smallest probability that belongs to a mask.
        any_size: why sizes other than the exported one are impossible; '' if they are possible.
        unpadded: why images must not be padded to the size of the input; '' if they may be.
        any_batch: the same for the batch size.
    """

    masks = ""
    mask_threshold = 0.5
    any_size = ""
    unpadded = ""
    any_batch = ""

    def __init__(self, model: Any, channels: int = 3) -> None:
        super().__init__()
        self.preprocess = Preprocess(model.data_preprocessor, channels)

    @staticmethod
    @abstractmethod
    def unsupported(model: Any) -> str:
        """Why this class cannot export a model; '' if it can. Must not run the model."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Predict on images (B, C, H, W)."""

    def translations(self) -> dict[Callable, Callable]:
        """Return ONNX translations of operators of this graph that torch's exporter lacks."""
        from mmgcvit.export.operators import translation_table

        return translation_table()
