"""Whether an image can be decoded, and its size."""

from __future__ import annotations

import io
import os

from PIL import Image, ImageOps

from mmgcvit.utils.images import any_image_size


def unreadable(content: bytes) -> str | None:
    """Why an image cannot be decoded completely; None if it can.

    OpenCV fills the missing part of a truncated file with grey and reports nothing; Pillow raises an error.
    """
    try:
        with any_image_size(), Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        return f"cannot be decoded: {error}"
    return None


def image_size(path: str) -> tuple[tuple[int, int] | None, str | None]:
    """Width and height of an image as mmcv would load it (rotated as its EXIF says), or why it cannot be decoded."""
    if not os.path.isfile(path):
        return None, "there is no such file"
    with open(path, "rb") as file:
        content = file.read()
    reason = unreadable(content)
    if reason:
        return None, reason
    with any_image_size(), Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).size, None
