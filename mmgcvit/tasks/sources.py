"""Reading of images and videos, and writing of drawings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmgcvit.datasets.pipelines import LOADERS, loading_arguments
from mmgcvit.errors import CorruptImageError, UsageError
from mmgcvit.registry import type_name
from mmgcvit.utils import atomic_path
from mmgcvit.utils.files import temporary_path
from mmgcvit.utils.images import bgr_to_display
from mmgcvit.utils.inputs import Input
from mmgcvit.utils.text import counted


@dataclass
class Source:
    """An image, or a frame of a video."""

    name: str
    pixels: np.ndarray  # (H, W) or (H, W, C), as loaded by the test pipeline; colours in the order BGR
    frame: int | None = None

    @property
    def display(self) -> np.ndarray:
        """RGB image (H, W, 3) uint8 to draw on: the first three channels, or one channel three times.

        Values other than integers from 0 to 255 are scaled, so that the lowest 0.5 % become 0 and the highest 255.
        """
        return bgr_to_display(self.pixels)


class Reader(Protocol):
    """Reads images and frames as the loading transform of a test pipeline does."""

    def image(self, path: Path) -> np.ndarray:
        """Decode an image; raises a CorruptImageError or an OSError if it cannot be decoded."""

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """Convert a frame (H, W, 3), BGR, uint8, of a video; raises a CorruptImageError if the model cannot use it."""


class PipelineReader:
    """Reader with the arguments of ``LoadImageFromFile`` in a test pipeline of mmdet or mmseg.

    mmdet's and mmseg's inferencers get arrays. They look for a ``LoadImageFromFile`` by its name, so the transform in
    the pipeline is replaced by one with this name.

    Args:
        pipeline: the test pipeline, modified in place.
        model: config of the model. If its backbone is a GC ViT, images must have as many channels as it takes.

    Raises:
        UsageError: the pipeline does not load an image.
    """

    def __init__(self, pipeline: list[dict], model: Mapping | None = None) -> None:
        from mmgcvit.datasets.loading import LoadCheckedImage, expected_channels

        places = [i for i, transform in enumerate(pipeline) if type_name(transform) in LOADERS]
        if not places:
            raise UsageError(
                f"the test pipeline of the config begins with {type_name(pipeline[0]) if pipeline else 'nothing'!r}; "
                f"allowed: {', '.join(LOADERS)}"
            )
        self.load = LoadCheckedImage(**loading_arguments(pipeline))
        self.channels = expected_channels(pipeline, model)
        pipeline[places[0]] = dict(type="LoadImageFromFile", to_float32=self.load.to_float32)

    def image(self, path: Path) -> np.ndarray:
        """Decode an image."""
        return self._finish(self.load.decode_file(path))

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """Convert a frame to grey if the pipeline loads grey images."""
        import cv2

        if self.load.color_type.startswith("grayscale"):
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        return self._finish(frame)

    def _finish(self, image: np.ndarray) -> np.ndarray:
        from mmgcvit.datasets.loading import wrong_channels

        if wrong := wrong_channels(image, self.channels, self.load.color_type):
            raise CorruptImageError(wrong)
        return image.astype(np.float32) if self.load.to_float32 else image


def frames(name: str, capture: Any, reader: Reader) -> Iterator[Source]:
    """Yield the frames of an opened video."""
    index = 0
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield Source(name, reader.frame(frame), index)
        index += 1


def read(entry: Input, reader: Reader) -> Source:
    """Decode an image.

    Raises:
        UsageError: the image cannot be decoded.
    """
    try:
        return Source(entry.name, reader.image(entry.path))
    except (CorruptImageError, OSError) as error:
        raise UsageError(f"input {str(entry.path)!r}: {error}") from error


def write_image(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3), RGB, or a map (H, W), atomically.

    Raises:
        UsageError: the file cannot be written.
    """
    import cv2

    try:
        image = np.ascontiguousarray(image[..., ::-1] if image.ndim == 3 else image)
        done, content = cv2.imencode(path.suffix, image)
        if not done:
            raise OSError(f"OpenCV cannot encode an image of shape {image.shape} as {path.suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content.tobytes())
    except (OSError, cv2.error) as error:
        raise UsageError(f"{str(path)!r}: cannot be written: {error}") from error


class Film:
    """Writer of an MP4 file, which appears under its name only when it is complete.

    Args:
        path: the file.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate, self.count = path, rate, 0
        self.writer: Any = None
        self.temporary = path

    def __enter__(self) -> Film:
        return self

    def write(self, frame: np.ndarray) -> None:
        """Add a frame (H, W, 3), RGB, uint8.

        Raises:
            UsageError: OpenCV cannot write the file.
        """
        import cv2

        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.temporary = temporary_path(self.path)
            size = frame.shape[1], frame.shape[0]
            self.writer = cv2.VideoWriter(str(self.temporary), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self.writer.isOpened():
                raise UsageError(f"{str(self.path)!r}: this OpenCV cannot write MP4; --no-draw skips it")
        self.writer.write(np.ascontiguousarray(frame[..., ::-1]))
        self.count += 1

    def __exit__(self, kind: Any, *_: object) -> None:
        if self.writer is None:
            return
        import cv2

        self.writer.release()
        try:
            if kind is None:
                capture = cv2.VideoCapture(str(self.temporary))  # OpenCV does not report a full disk
                written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
                capture.release()
                if written != self.count:
                    raise UsageError(
                        f"{str(self.path)!r}: {written} of {counted(self.count, 'frame')} could be written; is the "
                        "disk full?"
                    )
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
