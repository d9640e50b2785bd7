"""Batch preprocessing for classification on the model's device: mixing, normalising, erasing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing

from mmgcvit.registry import MODELS
from mmgcvit.utils.text import counted


@MODELS.register_module()
class ClassificationPreprocessor(BaseDataPreprocessor):
    """Normalise uint8 images; in training, also mix them before and erase rectangles after normalising.

    This is the order of timm's prefetcher, whose ``Mixup`` and ``RandomErasing`` are used: images are mixed when they
    are collated, so that an erased rectangle hides both images of a mixture.

    Args:
        mean: mean of each channel, of pixel values scaled to [0, 1].
        std: standard deviation of each channel, likewise.
        num_classes: number of classes in the soft targets of mixup; :class:`GCViTClassifier` sets it.
        erasing: arguments of RandomErasing, such as ``dict(probability=0.25, mode='pixel')``; None for no erasing.
        mixup: arguments of Mixup, such as ``dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5,
            label_smoothing=0.1)``; None for no mixing, so that targets stay class indices.
        non_blocking: whether the copy to the device is non-blocking.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        num_classes: int | None = None,
        erasing: Mapping[str, Any] | None = None,
        mixup: Mapping[str, Any] | None = None,
        non_blocking: bool = True,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.erase = None if erasing is None else RandomErasing(**erasing, device="cpu")
        if mixup is not None and num_classes is None:
            raise ValueError("num_classes=None; allowed with mixup: the number of classes")
        self.mix = None if mixup is None else Mixup(**mixup, num_classes=num_classes)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Move a batch to the device, and mix, normalise and erase it.

        Args:
            data: ``inputs`` (B, C, H, W) uint8 (or floating point, if already normalised), optional ``targets`` (B,),
                and other entries.
            training: whether to mix and erase.

        Returns:
            The same dict with ``inputs`` float32 and, with mixing, ``targets`` (B, num_classes) probabilities.

        Raises:
            ValueError: the batch size is odd, with mixing.
        """
        data = dict(self.cast_data(data))
        inputs = data["inputs"].float()
        if training and self.mix is not None:
            if len(inputs) % 2:
                raise ValueError(
                    f"a batch of {counted(len(inputs), 'image')}; allowed with mixup, which pairs them: an even "
                    "number. Set an even train_dataloader.batch_size, and drop_last=True"
                )
            inputs, data["targets"] = self.mix(inputs, data["targets"])
        if not data["inputs"].is_floating_point():
            inputs = inputs.sub_(self.mean).div_(self.std)
        if training and self.erase is not None:
            self.erase.device = inputs.device
            inputs = self.erase(inputs)
        data["inputs"] = inputs
        return data
