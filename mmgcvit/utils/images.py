"""Image files: their suffixes, recognition by content, and Pillow's limit on their size."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from PIL import Image

#: Suffixes of images that OpenCV or Pillow reads.
IMAGES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".j2k", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
#: Suffixes of images that neither of them reads, or not in full: they must be converted first.
OTHER_IMAGES = (
    ".heic", ".heif", ".jxl", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".psd", ".svg", ".exr",
    ".hdr", ".dcm", ".tga", ".ico", ".npy", ".npz", ".mat", ".nii",
)  # fmt: skip

_lock = threading.Lock()
_inside = 0  # number of active blocks
_limit: int | None = None  # the limit before the first of them


def is_image(path: str | PathLike) -> bool:
    """Whether a file has the content of an image that Pillow recognizes, whatever its name."""
    try:
        with any_image_size(), Image.open(path):
            return True
    except Exception:  # Pillow's plugins raise many types of errors
        return False


@contextmanager
def any_image_size() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels inside the block, and restore it afterwards.

    Large images in a data set are not an attack; outside the block the limit of the host program stays in force. Blocks
    in several threads may overlap: the first one lifts the limit, the last one restores it.

    Example:
        >>> with any_image_size(), Image.open("map.png") as image:
        ...     pixels = np.asarray(image)
    """
    global _inside, _limit
    with _lock:
        if not _inside:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit
