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
    """Decode a sample's ``file`` completely into ``img``, an RGB Pillow image.

    Args:
        corrupt: handling of images that cannot be decoded. 'stop': raise an error. 'skip': log the image's name, count
            it in ``skipped``, and let the data set load another one.

    Raises:
        CorruptImageError: an image cannot be decoded, with ``corrupt='stop'``.
    """

    def __init__(self, corrupt: str = "stop") -> None:
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadPillowImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        self.corrupt = corrupt
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # shared by all workers

    def __call__(self, results: dict) -> dict | None:
        """Decode the image; returns None if it is skipped."""
        try:
            with any_image_size(), Image.open(results["file"]) as image:
                results["img"] = image.convert("RGB")
        except Exception as error:  # Pillow's decoders raise many types of errors
            said = f"image {results['img_path']}: cannot be decoded: {error}"
            if self.corrupt == "stop":
                raise CorruptImageError(
                    f"{said}. This stops the run; use `tools/train.py --corrupt skip` to skip and count "
                    "such images in training"
                ) from error
            self.skipped += 1
            # Log at level ERROR: mmengine hides lower levels in all processes but the first.
            print_log(f"skipped {said}", logger="current", level=logging.ERROR)
            return None
        return results


@TRANSFORMS.register_module()
class TimmTransform:
    """Apply timm's ``create_transform`` to ``img``, up to uint8; the model's preprocessor normalises and erases.

    The result contains ``inputs`` (3, H, W) uint8, ``targets`` and ``sample_idx``.

    Args:
        **arguments: arguments of ``create_transform``, except those for normalising and erasing.

    Raises:
        ValueError: an argument belongs to the preprocessor.
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
        """Transform ``img``, an image of any size."""
        inputs = self.transform(results["img"])
        return {"inputs": torch.as_tensor(inputs), "targets": results["targets"], "sample_idx": results["sample_idx"]}
