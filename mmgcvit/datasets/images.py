"""Decoding of images besides what mmcv does: completeness, orientation, deep images, and what a conversion loses."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable

import numpy as np
import torch
from mmengine.logging import print_log
from PIL import Image, ImageOps

from mmgcvit.utils.images import DEEP, PNG, any_image_size, bits_per_value, exif_orientation, has_alpha, require_pixels
from mmgcvit.utils.text import counted

REDUCED = "16-bit image loaded as 8 bits"  # a kind of loss
TAIL = 1024  # an intact file has its end mark in this many bytes at its end
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND"))  # first bytes and end marks: JPEG, PNG


def unreadable(content: bytes) -> str | None:
    """Return the reason why an image cannot be decoded completely; None if it can.

    OpenCV silently fills the missing part of a truncated file with grey; Pillow raises an error.
    """
    if not content:
        return "cannot be decoded: the file is empty"
    try:
        with any_image_size(), Image.open(io.BytesIO(content)) as image:
            require_pixels(*image.size)
            image.load()
    except Exception as error:  # Pillow's decoders raise many types of errors
        return f"cannot be decoded: {error}"
    return None


def incomplete(content: bytes) -> str | None:
    """Return the reason why an image cannot be decoded if its end mark is missing; None if it is there, or can be.

    Complete files are not decoded.
    """
    complete = next((end in content[-TAIL:] for begin, end in ENDS if content.startswith(begin)), True)
    return None if complete else unreadable(content)


def image_size(path: str) -> tuple[tuple[int, int] | None, str | None]:
    """Width and height of an image as loaded by mmcv (rotated by its EXIF tag), or why it cannot be decoded."""
    if not os.path.isfile(path):
        return None, "no such file"
    with open(path, "rb") as file:
        content = file.read()
    reason = unreadable(content)
    if reason:
        return None, reason
    with any_image_size(), Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).size, None


def orientation(content: bytes) -> int:
    """EXIF orientation of an image, from 1 (upright) to 8; 1 if it has none."""
    if content.startswith(PNG) and b"eXIf" not in content:
        return 1  # Pillow would decode the whole image to look for it
    try:
        with any_image_size(), Image.open(io.BytesIO(content)) as image:
            return exif_orientation(image)
    except Exception:  # not an image for Pillow
        return 1


def decode_with_pillow(content: bytes, color_type: str) -> np.ndarray | None:
    """Decode the first frame of an image that OpenCV cannot decode, such as AVIF, as mmcv would.

    Args:
        content: the file.
        color_type: as of mmcv's LoadImageFromFile.

    Returns:
        An array (H, W) or (H, W, C) uint8 with channels in the order BGR or BGRA; None for images of more than 8 bits.
    """
    with any_image_size(), Image.open(io.BytesIO(content)) as opened:
        if opened.mode in DEEP:
            return None
        upright = not color_type.endswith("ignore_orientation")
        image: Image.Image = ImageOps.exif_transpose(opened) if upright else opened
        grey = image.mode in ("1", "L") and color_type == "unchanged"
        if grey or color_type.startswith("grayscale"):
            return np.array(image.convert("L"))
        if color_type == "unchanged" and has_alpha(image):
            return np.ascontiguousarray(np.asarray(image.convert("RGBA"))[..., [2, 1, 0, 3]])
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])


def deep_values(content: bytes) -> np.ndarray | None:
    """Values of an image of one of the modes :data:`DEEP`; None for any other image."""
    with any_image_size(), Image.open(io.BytesIO(content)) as image:
        return np.asarray(image) if image.mode in DEEP else None


class DepthWarning:
    """Warns of the first image of more than 8 bits that is loaded as 8 bits, once for all workers of a data loader.

    Args:
        remedy: how to load more than 8 bits.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self.warned = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __call__(
        self, where: str, content: bytes, loaded: np.ndarray, raw: Callable[[bytes], np.ndarray | None]
    ) -> None:
        """Warn if it has not been done.

        Args:
            where: the image, for the message.
            content: the file.
            loaded: the image as loaded.
            raw: returns the values in the file (see :func:`describe_losses`).
        """
        if self.warned or loaded.dtype != np.uint8 or bits_per_value(content) <= 8:
            return
        self.warned += 1
        for kind, what in describe_losses(content, loaded, raw(content), self.remedy):
            if kind == REDUCED:
                said = f"image {where}: {what} (the first such image)"
                print_log(said, logger="current", level=logging.WARNING)


def describe_losses(content: bytes, loaded: np.ndarray, raw: np.ndarray | None, remedy: str) -> list[tuple[str, str]]:
    """List what is lost or converted when an image is loaded.

    Args:
        content: the file.
        loaded: the image as loaded, (H, W) or (H, W, C).
        raw: its values in the file, in any order; None if they have 8 bits.
        remedy: how to load more than 8 bits.

    Returns:
        Kinds of losses, and descriptions.
    """
    found = []
    bits = bits_per_value(content)
    if raw is not None and raw.dtype != np.uint8 and loaded.dtype == np.uint8:
        found.append(
            (
                REDUCED,
                f"{bits if bits > 8 else 8 * raw.itemsize} bits per value, from {raw.min():g} to {raw.max():g} in the "
                f"file, from {loaded.min()} to {loaded.max()} as loaded; {remedy}",
            )
        )
    elif bits > 8 and loaded.dtype == np.uint8:
        found.append((REDUCED, f"{bits} bits per value; {remedy}"))
    try:
        with any_image_size(), Image.open(io.BytesIO(content)) as image:
            channels = 1 if loaded.ndim == 2 else loaded.shape[2]
            if (
                channels in (1, 3)
                and has_alpha(image)
                and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
            ):
                found.append(("transparency ignored", "its alpha channel is dropped"))
            if image.mode in ("P", "PA"):
                found.append(("palette image", f"its colours are loaded, as {counted(channels, 'channel')}"))
            elif image.mode == "CMYK":
                found.append(("CMYK image", f"converted to {counted(channels, 'channel')} without its colour profile"))
            elif image.mode == "1":
                found.append(("1-bit image", f"loaded with values from {loaded.min()} to {loaded.max()}"))
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo with previews
            if frames > 1:
                found.append(("several frames or pages", f"has {frames}, of which the first is used"))
    except Exception:  # Pillow cannot read it, but OpenCV or tifffile has
        pass
    return found
