"""Image files: their suffixes, recognition by content, depth, alpha channels, and Pillow's limit on their size."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from mmgcvit.errors import CorruptImageError, UsageError

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

#: Formats, by Pillow's names, of images that strangers may send: the decoders of these check what they read.
UPLOADS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000", "AVIF", "PPM")

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")  # Pillow's modes with one value of more than 8 bits per pixel
ALPHA = ("LA", "PA", "La", "RGBA", "RGBa")  # Pillow's modes with an alpha channel
PPM = re.compile(rb"P[56](?:\s|#.*\n)+\d+(?:\s|#.*\n)+\d+(?:\s|#.*\n)+(\d+)\s")  # group 1: the highest value
PNG = b"\x89PNG"
ORIENTATION = 0x0112  # EXIF tag

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes; the last two are BigTIFF
MAX_PIXELS = 100_000_000  # of an image that is decoded, unless the limit is raised; 300 MB in RGB
VARIABLE = "MMGCVIT_MAX_PIXELS"  # environment variable with another limit, which subprocesses inherit

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


def max_pixels() -> int:
    """Largest number of pixels of an image that is decoded: :data:`MAX_PIXELS`, or the limit set in its place.

    Raises:
        UsageError: the environment variable is no positive integer.
    """
    given = os.environ.get(VARIABLE, "")
    if given and (not given.isdecimal() or not int(given)):
        raise UsageError(f"{VARIABLE}={given!r}; allowed: a positive integer")
    return int(given or MAX_PIXELS)


def set_max_pixels(pixels: int | None) -> None:
    """Set the limit of this process, and of those that it starts; None changes nothing.

    Raises:
        UsageError: it is not positive.
    """
    if pixels is None:
        return
    if pixels < 1:
        raise UsageError(f"max_pixels={pixels}; allowed: at least 1")
    os.environ[VARIABLE] = str(pixels)


def require_pixels(width: int, height: int, limit: int | None = None) -> None:
    """Check the size of an image before it is decoded: a small file may decode to any size.

    Args:
        width, height: from the header of the file.
        limit: number of pixels; by default :func:`max_pixels`.

    Raises:
        CorruptImageError: the image has more pixels.
    """
    allowed = max_pixels() if limit is None else limit
    if width * height > allowed:
        hint = f"; --max-pixels or {VARIABLE} raises it" if limit is None else ""
        raise CorruptImageError(
            f"{width} x {height} = {width * height / 1e6:.1f} million pixels; allowed: at most {allowed / 1e6:g} "
            f"million{hint}"
        )


def check_pixels(content: bytes) -> None:
    """As :func:`require_pixels`, for a file; only its header is read. Unknown formats are accepted.

    Raises:
        CorruptImageError: the image has too many pixels.
    """
    try:
        with any_image_size(), Image.open(io.BytesIO(content)) as image:
            size = image.size
    except Exception:  # Pillow's plugins raise many types of errors
        if not content.startswith(TIFF):
            return  # OpenCV has a limit of its own, of 2 ** 30 pixels
        try:  # a kind of TIFF that Pillow cannot decode, but tifffile can
            tags = ImageFileDirectory_v2(content[: 16 if content[2:4] in (b"+\0", b"\0+") else 8])
            file = io.BytesIO(content)
            file.seek(tags.next)
            tags.load(file)
            size = int(tags[256]), int(tags[257])
        except Exception:  # damaged: reported when it is decoded
            return
    require_pixels(*size)


@contextmanager
def any_image_size() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels inside the block, and restore it afterwards.

    Large images in a data set are not an attack; outside the block the limit of the host program stays in force. Blocks
    in several threads may overlap: the first one lifts the limit, the last one restores it.

    Examples:
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


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation of an image, from 1 (upright) to 8; 1 if it has none, or damaged EXIF data."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises errors of many types
        return 1


def turn_upright(image: np.ndarray, tag: int) -> np.ndarray:
    """Turn or mirror an image (H, W) or (H, W, C) as its EXIF orientation says."""
    if tag in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if tag in (2, 3, 6, 7):
        image = image[:, ::-1]
    if tag in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def reduce_depth(image: Image.Image, value_range: tuple[float, float] | None = None) -> Image.Image:
    """Convert an image of more than 8 bits to 8 bits; any other image is returned unchanged.

    Pillow's own conversion would set all values above 255 to 255.

    Args:
        image: an image of any mode.
        value_range: the values that become 0 and 255; values outside are clipped. By default those of 16 bits, 0 and
            65535, as with OpenCV.

    Raises:
        CorruptImageError: an image of 32-bit integers or floating-point numbers without a ``value_range``.
    """
    if image.mode not in DEEP:
        return image
    values = np.asarray(image)
    if value_range is not None:
        low, high = value_range
        scaled = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
        return Image.fromarray(np.round(255 * np.nan_to_num(scaled)).astype(np.uint8))
    wide = image.format not in ("PNG", "PPM") and not image.mode.startswith("I;16")  # those have 16 bits in mode 'I'
    if image.mode == "F" or wide or values.min() < 0 or values.max() > 65535:
        raise CorruptImageError(
            f"has values from {values.min():g} to {values.max():g} (mode {image.mode!r}); allowed: 8 or 16 bits, or "
            "value_range=(LOW, HIGH) of the loading transform with the values that become 0 and 255"
        )
    return Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8))


def bits_per_value(content: bytes) -> int:
    """Bits per value of a PNG, TIFF or PPM, from its header; 8 for other formats."""
    if content.startswith(PNG):
        return content[24] if len(content) > 24 else 8
    if content[:4] in (b"II*\0", b"MM\0*"):
        try:
            with any_image_size(), Image.open(io.BytesIO(content)) as image:
                tags: Mapping[int, tuple[int, ...]] = getattr(image, "tag_v2", {})  # of a TIFF only
                return max(tags.get(258, (8,)))  # BitsPerSample
        except Exception:  # a kind of TIFF that Pillow does not know
            return 8
    header = PPM.match(content)
    return int(header[1]).bit_length() if header else 8


def has_alpha(image: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent colour."""
    return image.mode in ALPHA or "transparency" in image.info


def to_display(image: np.ndarray) -> np.ndarray:
    """Return an image to draw on, (H, W, 3) uint8: the first three channels, or the first one three times.

    Values other than integers from 0 to 255 are scaled, so that the lowest 0.5 % become 0 and the highest 255.

    Args:
        image: (H, W) or (H, W, C) of any type.
    """
    image = image if image.ndim == 3 else image[..., None]
    image = image[..., :3] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float64), posinf=0, neginf=0)
        if image.min() < 0 or image.max() > 255 or (image % 1).any():
            low, high = np.percentile(image, (0.5, 99.5))
            image = 255 * (image - low) / max(high - low, 1e-12)
        image = np.clip(image, 0, 255)
    return np.array(image, np.uint8, order="C")


def bgr_to_display(image: np.ndarray) -> np.ndarray:
    """As :func:`to_display`, for an image as mmcv loads it: colours in the order BGR."""
    return to_display(image[..., 2::-1] if image.ndim == 3 and image.shape[2] >= 3 else image)
