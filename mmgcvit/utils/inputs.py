"""Images and videos given to a tool: their names, and those in folders; and the options that tools share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from mmgcvit.errors import CorruptImageError, UsageError
from mmgcvit.utils.images import IMAGES, UPLOADS, any_image_size, is_image, require_pixels

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
#: Limits on an image that strangers may send: bytes of the file, and pixels of the decoded image.
MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS = 32 * 2**20, 25_000_000
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


def list_inputs(
    sources: Sequence[str | Path], out_dir: str | Path | None, videos: bool = True
) -> tuple[list[Input], list[str]]:
    """List images and videos, also those in folders and in folders inside them, sorted by name.

    Hidden files and folders are left out, and so is ``out_dir``. Files without a suffix count if they are images. Names
    are relative to the folder that was given. If this makes two names equal, all names are relative to the folder that
    the inputs have in common.

    Args:
        sources: images, videos and folders.
        out_dir: folder for the results; None if there is none.
        videos: whether videos can be read.

    Returns:
        The inputs, and words about each entry with the name of an image or video that is not a file.

    Raises:
        UsageError: a source does not exist, or is a video that cannot be read; or a folder has no images and videos; or
            two drawings would be written to the same file.
    """
    found: list[Input] = []
    skipped: list[str] = []
    for source in map(Path, sources):
        if source.is_file():
            found.append(Input(source, source.name))
            if not videos and found[-1].is_video:
                raise UsageError(f"input {str(source)!r}: a video; allowed: images and folders")
            continue
        if not source.is_dir():
            raise UsageError(f"input {str(source)!r}: no such image, video or folder")
        without: list[Path] = []
        if out_dir is not None:
            results = Path(out_dir).resolve()
            without = [results] if results != source.resolve() else [results / "vis", results / "labels"]
        inside = [Input(path, path.relative_to(source).as_posix()) for path in sorted(_walk(source, without, skipped))]
        if not videos:
            skipped += [f"{entry.path}: skipped: a video" for entry in inside if entry.is_video]
            inside = [entry for entry in inside if not entry.is_video]
        if not inside:
            allowed = IMAGES + VIDEOS if videos else IMAGES
            raise UsageError(f"input {str(source)!r}: no images in this folder; allowed: {', '.join(allowed)}")
        found += inside
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


def check_upload(path: Path, name: str, max_bytes: int = MAX_UPLOAD_BYTES, max_pixels: int = MAX_UPLOAD_PIXELS) -> None:
    """Check an image that a stranger has sent, by its header: nothing is decoded.

    Args:
        path: the file.
        name: its name in messages, which do not tell where it is.
        max_bytes: largest size of the file.
        max_pixels: largest size of the image.

    Raises:
        UsageError: it is too large, or no image of an allowed format.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise UsageError(f"{name!r}: {size / 2**20:.1f} MiB; allowed: at most {max_bytes / 2**20:g} MiB")
    try:
        with any_image_size(), Image.open(path, formats=UPLOADS) as image:
            width, height = image.size
    except Exception as error:  # Pillow's plugins raise many types of errors
        raise UsageError(f"{name!r}: not an image; allowed: {', '.join(UPLOADS)}") from error
    try:
        require_pixels(width, height, max_pixels)
    except CorruptImageError as error:
        raise UsageError(f"{name!r}: {error}") from error


def check_options(batch_size: int, tile: int | None, overlap: float) -> None:
    """Check the options of a prediction.

    Raises:
        UsageError: one of them is not allowed.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}; allowed: at least 1")
    if tile is not None and tile < 32:
        raise UsageError(f"tile={tile}; allowed: at least 32 pixels")
    if not 0 <= overlap < 1:
        raise UsageError(f"overlap={overlap}; allowed: from 0 to below 1")


def tile_step(tile: int, overlap: float) -> int:
    """Distance of neighbouring tiles in pixels."""
    return max(1, round(tile * (1 - overlap)))


def tile_starts(length: int, tile: int, step: int) -> list[int]:
    """Offsets of the tiles along a side; the last tile ends where the side ends."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, step), length - tile]
