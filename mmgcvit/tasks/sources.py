"""Reading of images, folders of images and videos, and writing of drawings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmgcvit.errors import UsageError
from mmgcvit.utils import atomic_path
from mmgcvit.utils.images import any_image_size

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


@dataclass
class Source:
    """An image, or a frame of a video."""

    name: str
    pixels: np.ndarray  # (H, W, 3), BGR
    frame: int | None = None


def list_inputs(source: str | Path) -> list[Path]:
    """Return the image or video itself, or the images and videos of a folder, sorted by name.

    Raises:
        UsageError: the path does not exist, or is a folder without images and videos.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"input {str(source)!r}: no such image, video or folder")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES + VIDEOS)
    if not found:
        raise UsageError(f"input {str(source)!r}: no images in this folder; allowed: {', '.join(IMAGES + VIDEOS)}")
    return found


def frames(name: str, capture: Any) -> Iterator[Source]:
    """Yield the frames of an opened video."""
    index = 0
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield Source(name, frame, index)
        index += 1


def read(path: Path) -> Source:
    """Decode an image.

    Raises:
        UsageError: the image cannot be decoded.
    """
    import mmcv

    try:
        with any_image_size():
            pixels = mmcv.imread(str(path))
    except Exception as error:  # OpenCV raises its own error for an empty file
        raise UsageError(f"input {str(path)!r}: cannot be decoded as an image: {error}") from error
    if pixels is None:
        raise UsageError(f"input {str(path)!r}: cannot be decoded as an image")
    return Source(path.name, pixels)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3), RGB, or a map (H, W), atomically."""
    import mmcv

    with atomic_path(path) as temporary:
        mmcv.imwrite(np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image), str(temporary))
