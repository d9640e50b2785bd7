"""Finding and reading of images, folders of images and videos, and writing of drawings."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from mmgcvit.datasets.pipelines import LOADERS, loading_arguments
from mmgcvit.errors import CorruptImageError, UsageError
from mmgcvit.registry import type_name
from mmgcvit.utils import atomic_path
from mmgcvit.utils.files import temporary_path
from mmgcvit.utils.images import IMAGES, is_image

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
DRAWINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")  # suffixes that OpenCV writes


@dataclass(frozen=True)
class Input:
    """An image or video file."""

    path: Path
    name: str  # path relative to the folder that was given, with '/'

    @property
    def is_video(self) -> bool:
        """Whether the suffix is that of a video."""
        return self.path.suffix.lower() in VIDEOS

    @property
    def drawing(self) -> str:
        """Relative path of the drawing: the name, with '.mp4' for a video and '.png' added to unusual suffixes."""
        if self.is_video:
            return str(PurePosixPath(self.name).with_suffix(".mp4"))
        return self.name if self.path.suffix.lower() in DRAWINGS else f"{self.name}.png"


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
        image = self.pixels if self.pixels.ndim == 3 else self.pixels[..., None]
        image = image[..., 2::-1] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
        if image.dtype != np.uint8:
            image = np.nan_to_num(image.astype(np.float64), posinf=0, neginf=0)
            if image.min() < 0 or image.max() > 255 or (image % 1).any():
                low, high = np.percentile(image, (0.5, 99.5))
                image = 255 * (image - low) / max(high - low, 1e-12)
            image = np.clip(image, 0, 255)
        return np.array(image, np.uint8, order="C")


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


def list_inputs(sources: Sequence[str | Path], out_dir: str | Path) -> tuple[list[Input], list[str]]:
    """List images and videos, also those in folders and in folders inside them, sorted by name.

    Hidden files and folders are left out, and so is ``out_dir``. Files without a suffix count if they are images. Names
    are relative to the folder that was given. If this makes two names equal, all names are relative to the folder that
    the inputs have in common.

    Args:
        sources: images, videos and folders.
        out_dir: folder for the results.

    Returns:
        The inputs, and words about each entry with the name of an image or video that is not a file.

    Raises:
        UsageError: a source does not exist, or a folder has no images and videos; or two drawings would be written to
            the same file.
    """
    found: list[Input] = []
    skipped: list[str] = []
    for source in map(Path, sources):
        if source.is_file():
            found.append(Input(source, source.name))
            continue
        if not source.is_dir():
            raise UsageError(f"input {str(source)!r}: no such image, video or folder")
        results = Path(out_dir).resolve()
        without = [results] if results != source.resolve() else [results / "vis", results / "labels"]
        inside = sorted(_walk(source, without, skipped))
        if not inside:
            raise UsageError(f"input {str(source)!r}: no images in this folder; allowed: {', '.join(IMAGES + VIDEOS)}")
        found += [Input(path, path.relative_to(source).as_posix()) for path in inside]
    if max(Counter(entry.drawing for entry in found).values()) > 1:
        paths = [entry.path.absolute() for entry in found]
        common = os.path.commonpath([path.parent for path in paths])
        found = [Input(path, path.relative_to(common).as_posix()) for path in paths]
    first: dict[str, Input] = {}
    for entry in found:
        if entry.drawing in first:
            raise UsageError(
                f"inputs: the drawings of {str(entry.path)!r} and {str(first[entry.drawing].path)!r} would be written "
                f"to the same file, {entry.drawing}; pass them in two calls with different --out-dir"
            )
        first[entry.drawing] = entry
    return found, skipped


def _walk(folder: Path, without: Sequence[Path], skipped: list[str]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()  # links may lead in circles
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        here = Path(place)
        if (status.st_dev, status.st_ino) in seen or here.resolve() in without:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path, suffix = here / name, Path(name).suffix.lower()
            if name.startswith(".") or (suffix and suffix not in IMAGES + VIDEOS):
                continue
            if not path.is_file():  # opening a pipe would wait for its other end
                kind = "a link to nothing" if path.is_symlink() and not path.exists() else "neither a file nor a folder"
                skipped.append(f"{path}: skipped: {kind}")
            elif suffix or is_image(path):
                yield path


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
                        f"{str(self.path)!r}: {written} of {self.count} frames could be written; is the disk full?"
                    )
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
