"""Checks of whether an image can be decoded, and of its size."""

from __future__ import annotations

import io
import os

from PIL import Image, ImageOps

from mmgcvit.utils.images import any_image_size


def unreadable(content: bytes) -> str | None:
    """Return the reason why an image cannot be decoded completely; None if it can.

    OpenCV silently fills the missing part of a truncated file with grey; Pillow raises an error.
    """
    try:
        with any_image_size(), Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise many types of errors
        return f"cannot be decoded: {error}"
    return None


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
