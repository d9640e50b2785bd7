"""Decoding and transforming the images of a classification data set."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from PIL import Image
from timm.data import create_transform

from mmgcvit.errors import CorruptImageError
from mmgcvit.registry import TRANSFORMS
from mmgcvit.utils.images import any_image_size


@TRANSFORMS.register_module()
class LoadPillowImage:
    """Decode a sample's ``file`` completely into ``img``, a Pillow image in RGB.

    Args:
        corrupt: what happens at an image that cannot be decoded. 'stop': an error is raised. 'skip': it is named in the
            log and counted in ``skipped``, and the data set takes another one.

    Raises:
        CorruptImageError: from calls, with ``corrupt='stop'``.
    """

    def __init__(self, corrupt: str = "stop") -> None:
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadPillowImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        self.corrupt = corrupt
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # shared by all workers

    def __call__(self, results: dict) -> dict | None:
        """Decode; None if the image is skipped."""
        try:
            with any_image_size(), Image.open(results["file"]) as image:
                results["img"] = image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise a dozen kinds
            said = f"image {results['img_path']}: cannot be decoded: {error}"
            if self.corrupt == "stop":
                raise CorruptImageError(
                    f"{said}. It stops the run; with `tools/train.py --corrupt skip` it would be "
                    "left out of training and counted"
                ) from error
            self.skipped += 1
            # At level ERROR: mmengine shows nothing below from the processes other than the first.
            print_log(f"skipped {said}", logger="current", level=logging.ERROR)
            return None
        return results


@TRANSFORMS.register_module()
class TimmTransform:
    """timm's ``create_transform`` on ``img``, up to uint8: the model's preprocessor normalises and erases.

    Args:
        **arguments: those of ``create_transform``, without the ones for normalising and erasing.

    The result is ``inputs`` (3, H, W) uint8, ``targets`` and ``sample_idx``.

    Raises:
        ValueError: an argument of the preprocessor.
    """

    def __init__(self, **arguments: Any) -> None:
        others = [
            name
            for name in arguments
            if name.startswith("re_") or name in ("mean", "std", "normalize", "use_prefetcher")
        ]
        if others:
            raise ValueError(
                f"TimmTransform: {', '.join(others)}; allowed: anything but normalising and erasing, "
                "which belong to the data_preprocessor (mean, std, erasing)"
            )
        self.transform = create_transform(**arguments, use_prefetcher=True)

    def __call__(self, results: dict) -> dict:
        """Transform ``img`` (H, W) of any size."""
        inputs = self.transform(results["img"])
        return {"inputs": torch.as_tensor(inputs), "targets": results["targets"], "sample_idx": results["sample_idx"]}
