"""Images given to an exported model: files, Pillow images and arrays become arrays of the type that it takes."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.errors import UsageError
from mmgcvit.runtime.metadata import ModelInfo
from mmgcvit.utils.images import (
    DEEP,
    any_image_size,
    bits_per_value,
    exif_orientation,
    has_alpha,
    reduce_depth,
    require_pixels,
    turn_upright,
)
from mmgcvit.utils.inputs import Input, list_inputs
from mmgcvit.utils.text import counted

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels
FLOATS = ("uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "float64")
logger = logging.getLogger("mmgcvit.runtime")


@dataclass
class Source:
    """An image as the model takes it.

    Attributes:
        name: path relative to the folder that was given, or file name; for an image without a file its number.
        pixels: (H, W, channels), uint8 or float32, RGB.
    """

    name: str
    pixels: np.ndarray


class Loader:
    """Converts images as the test pipeline of the model's config does.

    Args:
        info: description of the model.
    """

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.warned = False

    def sources(self, images: Any) -> Iterator[Source]:
        """Yield the images of a path, a folder, an image, or an iterable of these.

        Raises:
            UsageError: something cannot be used as an image.
        """
        for i, item in enumerate(_items(images)):
            if isinstance(item, (str, Path)):
                found, skipped = list_inputs([item], None, videos=False)
                for words in skipped:
                    logger.warning(words)
                yield from map(self.file, found)
            elif isinstance(item, Image.Image):
                yield Source(str(i), self._checked(f"image {i}", lambda image=item: self._convert(image, 8)))
            else:
                yield Source(str(i), self._array(item, f"image {i}"))

    def file(self, entry: Input) -> Source:
        """Decode a file.

        Raises:
            UsageError: it cannot be decoded, or does not suit the model.
        """
        where = f"input {str(entry.path)!r}"

        def decode() -> np.ndarray:
            content = entry.path.read_bytes()
            if not content:
                raise UsageError("cannot be decoded: the file is empty")
            with any_image_size(), Image.open(io.BytesIO(content)) as image:
                require_pixels(*image.size)
                if self.info.channels == 1 and self.info.task != "classification":
                    image.draft("L", image.size)  # the luminance in a JPEG, as OpenCV
                image.load()
                return self._convert(image, bits_per_value(content), where)

        return Source(entry.name, self._checked(where, decode))

    @staticmethod
    def _checked(where: str, decode: Any) -> np.ndarray:
        try:
            return decode()
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        except Exception as error:  # Pillow's decoders raise many types of errors
            raise UsageError(f"{where}: cannot be decoded: {error}") from error

    def _convert(self, image: Image.Image, bits: int, where: str = "an image") -> np.ndarray:
        """Convert an image to (H, W, channels)."""
        info = self.info
        if info.channels not in MODES:
            raise UsageError(f"an image file; allowed: arrays (H, W, {info.channels})")
        if info.channels == 4 and not has_alpha(image):
            raise UsageError(f"no alpha channel (mode {image.mode!r}); allowed: 4 channels")
        image.load()  # turns a TIFF upright, and removes its orientation
        tag = exif_orientation(image) if info.exif else 1
        if info.dtype == "float32" and image.mode in DEEP:
            if info.channels != 1:
                raise UsageError(f"1 channel (mode {image.mode!r}); allowed: {counted(info.channels, 'channel')}")
        elif info.dtype == "float32" and bits > 8:
            raise UsageError(
                f"{bits} bits per value in several channels, of which Pillow reads 8; allowed: an array "
                f"(H, W, {info.channels}) with the values"
            )
        else:
            if (image.mode in DEEP or bits > 8) and info.value_range is None and not self.warned:
                self.warned = True
                logger.warning(f"{where}: {max(bits, 16)} bits per value, loaded as 8 bits (the first such image)")
            image = reduce_depth(image, info.value_range)
        if image.mode not in DEEP:
            image = image.convert(MODES[info.channels])
        pixels = np.asarray(image, info.dtype)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return turn_upright(pixels, tag)  # ImageOps.exif_transpose fails if other EXIF data are damaged

    def _array(self, image: Any, where: str) -> np.ndarray:
        """Check an array (H, W) or (H, W, C)."""
        info = self.info
        if not isinstance(image, np.ndarray):
            raise UsageError(f"{where}: {type(image).__name__}; allowed: paths, Pillow images, arrays (H, W, 3) in RGB")
        pixels = image[..., None] if image.ndim == 2 else image
        allowed = (info.channels, 1) if info.channels == 3 else (info.channels,)  # grey as three equal channels
        if pixels.ndim != 3 or pixels.shape[2] not in allowed or not pixels.size:
            raise UsageError(
                f"{where}: shape {image.shape}; allowed: (H, W, {info.channels})" + ", RGB" * (info.channels == 3)
            )
        if pixels.shape[2] != info.channels:
            pixels = np.repeat(pixels, info.channels, axis=2)
        if pixels.dtype.name not in (("uint8",) if info.dtype == "uint8" else FLOATS):
            raise UsageError(
                f"{where}: dtype {pixels.dtype}; allowed: {info.dtype}" + " from 0 to 255" * (info.dtype == "uint8")
            )
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise UsageError(f"{where}: has NaN or infinite values; allowed: finite values")
        return pixels.astype(info.dtype, copy=False)


def _items(images: Any) -> Iterable[Any]:
    single = isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4)
    return [images] if single or not isinstance(images, Iterable) else images
