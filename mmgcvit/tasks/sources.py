"""Images, folders of them and videos on their way in, drawings and JSON on their way out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmgcvit.apis.config import UsageError

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


@dataclass
class Source:
    """An image or a frame on its way to the model."""

    name: str
    pixels: np.ndarray  # (H, W, 3), BGR
    frame: int | None = None


def list_inputs(source: str | Path) -> list[Path]:
    """The image or video, or the images and videos of a folder, by name.

    Raises:
        UsageError: it is not there, or a folder without any.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"input {str(source)!r}: there is no such image, video or folder")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMAGES + VIDEOS)
    if not found:
        raise UsageError(f"input {str(source)!r}: no images in this folder; allowed: {', '.join(IMAGES + VIDEOS)}")
    return found


def frames(name: str, capture: Any) -> Iterator[Source]:
    """The frames of an opened video."""
    index = 0
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield Source(name, frame, index)
        index += 1


def read(path: Path) -> Source:
    """An image, decoded.

    Raises:
        UsageError: it cannot be.
    """
    import mmcv

    try:
        pixels = mmcv.imread(str(path))
    except Exception as error:  # OpenCV's own, of an empty file
        raise UsageError(f"input {str(path)!r}: no image that can be decoded: {error}") from error
    if pixels is None:
        raise UsageError(f"input {str(path)!r}: no image that can be decoded")
    return Source(path.name, pixels)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3), RGB, or a map (H, W), whole or not at all."""
    import mmcv

    partial = path.with_name(f".part-{path.name}")
    mmcv.imwrite(np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image), str(partial))
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    partial = path.with_name(f".part-{path.name}")
    partial.write_text(json.dumps(content))
    os.replace(partial, path)
