"""Decoding and transforming the images of a classification data set."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image, ImageOps
from timm.data import create_transform

from mmgcvit.datasets.images import DepthWarning, deep_values
from mmgcvit.errors import CorruptImageError
from mmgcvit.registry import TRANSFORMS
from mmgcvit.utils.images import any_image_size, reduce_depth, require_pixels

REMEDY = "to use this range: value_range=(LOW, HIGH) of LoadPillowImage"
CHANNELS = {"RGB": 3, "L": 1}  # by mode of LoadPillowImage
GREY = dict(mean=(0.449,), std=(0.226,))  # fills the borders of rotated grey images, instead of ImageNet's mean colour


@TRANSFORMS.register_module()
class LoadPillowImage:
    """Decode a sample's ``file`` completely into ``img``, a Pillow image, turned upright by its EXIF orientation.

    Images of 16 bits are reduced to 8 bits, so that 0 becomes 0 and 65535 becomes 255; the log names the first one.

    Args:
        corrupt: handling of images that cannot be decoded. 'stop': raise an error. 'skip': log the image's name, count
            it in ``skipped``, and let the data set load another one.
        mode: 'RGB', or 'L' for images with one channel (``in_channels=1`` of the backbone).
        value_range: for images of more than 8 bits the values that become 0 and 255, such as (0, 4095) for 12 bits.
            Required for images of floating-point numbers.

    Raises:
        CorruptImageError: an image cannot be decoded, with ``corrupt='stop'``.
    """

    def __init__(self, corrupt: str = "stop", mode: str = "RGB", value_range: Sequence[float] | None = None) -> None:
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadPillowImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        if mode not in CHANNELS:
            raise ValueError(f"LoadPillowImage: mode={mode!r}; allowed: {', '.join(map(repr, CHANNELS))}")
        if value_range is not None and (len(value_range) != 2 or not value_range[0] < value_range[1]):
            raise ValueError(f"LoadPillowImage: value_range={value_range}; allowed: two numbers, the smaller one first")
        self.corrupt, self.mode = corrupt, mode
        self.value_range = None if value_range is None else (value_range[0], value_range[1])
        self.warn = DepthWarning(REMEDY)
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # shared by all workers

    def __call__(self, results: dict) -> dict | None:
        """Decode the image; returns None if it is skipped."""
        try:
            content = results["file"].read()
            results["img"] = self.decode(io.BytesIO(content))
            self.warn_of_depth(results["img_path"], content, results["img"])
        except Exception as error:  # Pillow's decoders raise many types of errors
            said = f"image {results['img_path']}: cannot be decoded: {error}"
            if self.corrupt == "stop":
                raise CorruptImageError(
                    f"{said}. This stops the run; use `mmgcvit train --corrupt skip` to skip and count "
                    "such images in training"
                ) from error
            self.skipped += 1
            # Log at level ERROR: mmengine hides lower levels in all processes but the first.
            print_log(f"skipped {said}", logger="current", level=logging.ERROR)
            return None
        return results

    def warn_of_depth(self, where: str, content: bytes, image: Image.Image) -> None:
        """Warn if this is the first image of more than 8 bits, unless there is a ``value_range``."""
        if self.value_range is None:
            self.warn(where, content, np.asarray(image), deep_values)

    def decode(self, file: BinaryIO) -> Image.Image:
        """Decode an opened file; Pillow's decoders raise many types of errors."""
        with any_image_size(), Image.open(file) as image:
            require_pixels(*image.size)
            return ImageOps.exif_transpose(reduce_depth(image, self.value_range)).convert(self.mode)


@TRANSFORMS.register_module()
class TimmTransform:
    """Apply timm's ``create_transform`` to ``img``, up to uint8; the model's preprocessor normalises and erases.

    The result contains ``inputs`` (3, H, W) uint8, or (1, H, W) for a grey image, ``targets`` and ``sample_idx``.

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
        self.grey_transform = create_transform(**arguments, **GREY, use_prefetcher=True)

    def __call__(self, results: dict) -> dict:
        """Transform ``img``, an image of any size."""
        image = results["img"]
        inputs = torch.as_tensor((self.grey_transform if image.mode == "L" else self.transform)(image))
        inputs = inputs if inputs.ndim == 3 else inputs[None]
        return {"inputs": inputs, "targets": results["targets"], "sample_idx": results["sample_idx"]}


class PillowReader:
    """Reader of images and video frames with the :class:`LoadPillowImage` of a test pipeline.

    Args:
        loader: the transform.
    """

    def __init__(self, loader: LoadPillowImage) -> None:
        self.loader = loader

    def image(self, path: Path) -> np.ndarray:
        """Decode an image to (H, W), or (H, W, 3), BGR."""
        try:
            content = path.read_bytes()
            image = self.loader.decode(io.BytesIO(content))
        except Exception as error:  # Pillow's decoders raise many types of errors
            raise CorruptImageError(f"cannot be decoded: {error}") from error
        self.loader.warn_of_depth(str(path), content, image)
        return swap_colours(np.asarray(image))

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """Convert a frame (H, W, 3), BGR, uint8, of a video."""
        return swap_colours(np.asarray(Image.fromarray(swap_colours(frame)).convert(self.loader.mode)))


def swap_colours(image: np.ndarray) -> np.ndarray:
    """Convert RGB to BGR, or back; an image (H, W) is returned unchanged."""
    return np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image
