"""Checks of a data set's files that take seconds: names, image headers and text encodings; nothing is decoded."""

from __future__ import annotations

import codecs
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from mmgcvit.datasets.problems import Problem
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import type_name
from mmgcvit.utils.images import any_image_size

HEADERS = 20_000  # image headers that are read before a run; of larger data sets, as many at equal distances
THREADS = 8
MARKS = (  # byte order marks; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "UTF-8 with a byte order mark", "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF32_BE, "UTF-32", "utf-32"),
    (codecs.BOM_UTF16_LE, "UTF-16", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16", "utf-16"),
)


def read_utf8(what: str, path: str | Path) -> str:
    """Read a text file that mmengine and pycocotools read as UTF-8 without a byte order mark.

    Args:
        what: what the file is, for messages.
        path: the file.

    Raises:
        AnnotationError: the file does not exist or has another encoding; says how to convert it.
    """
    if not os.path.isfile(path):
        raise AnnotationError(f"{what} {str(path)!r}: no such file")
    content = Path(path).read_bytes()
    found = next(((name, codec) for mark, name, codec in MARKS if content.startswith(mark)), None)
    if found is None and b"\0" in content[:4]:
        found = "UTF-16 without a byte order mark", "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    if found is None:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise AnnotationError(
                f"{what} {str(path)!r} is not UTF-8 (byte {error.start}: {content[error.start]:#x}); allowed: UTF-8. "
                "If it was written on Windows: iconv -f cp1252 -t utf-8 OLD > NEW"
            ) from error
    name, codec = found
    raise AnnotationError(
        f"{what} {str(path)!r} is {name}; allowed: UTF-8 without a byte order mark. To convert it: python -c "
        f"\"from pathlib import Path as P; p = P({str(path)!r}); p.write_text(p.read_text('{codec}'), 'utf-8')\""
    )


def read_names(what: str, path: str | Path) -> list[str]:
    """Read a file with one class name per line, as mmengine does.

    Raises:
        AnnotationError: the file is not UTF-8, or mmengine would read empty names or names with spaces around them.
    """
    names = [line.rstrip("\r\n") for line in io.StringIO(read_utf8(what, path))]
    for i, name in enumerate(names):
        if not name.strip() or name != name.strip():
            raise AnnotationError(
                f"{what} {str(path)!r}: line {i + 1} is {name!r}; allowed: one name per line, without spaces around it"
            )
    return names


def image_loader(pipeline: Sequence[Mapping] | None) -> Mapping | None:
    """Transform of a pipeline that loads the images with mmcv from local files; None if there is no such transform."""
    for transform in pipeline or ():
        if type_name(transform) in ("LoadImageFromFile", "LoadCheckedImage"):
            backend = transform.get("backend_args") or transform.get("file_client_args") or {}
            return transform if backend.get("backend", "local") in ("local", "disk") and len(backend) < 2 else None
    return None


def missing_files(paths: Sequence[str]) -> list[str]:
    """Files that do not exist; each folder is listed once, which is fast on network drives too."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders[os.path.dirname(path)].append(path)
    there: set[str] = set()
    for folder, inside in folders.items():
        if len(inside) < 20:
            there.update(path for path in inside if os.path.isfile(path))
        elif os.path.isdir(folder):
            names = set(os.listdir(folder or "."))
            there.update(path for path in inside if os.path.basename(path) in names)
    return [path for path in paths if path not in there]


def missing_problems(paths: Sequence[str]) -> Iterator[Problem]:
    """Yield a problem for each file that does not exist."""
    yield from (Problem("image", path, "no such file", True) for path in missing_files(paths))


def header(path: str, oriented: bool = True) -> tuple[tuple[int, int], str] | None:
    """Width and height of an image, and Pillow's mode, from its header; None if Pillow cannot tell.

    Args:
        path: the file.
        oriented: whether the image is turned as its EXIF data says when it is loaded.
    """
    try:
        with any_image_size(), Image.open(path) as image:
            size, mode = image.size, image.mode
            # Without this key Pillow would decode a PNG to look for EXIF data behind its pixels.
            turned = "exif" in image.info and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            if image.format == "TIFF" and image.getexif().get(0x0112, 1) != 1:
                return None  # readers differ
    except Exception:  # reported when the image is decoded
        return None
    return (size[::-1] if turned and oriented else size), mode


def size_problems(images: Sequence[tuple[str, Any, Any]], loader: Mapping) -> Iterator[Problem]:
    """Yield images whose size differs from the annotations.

    Args:
        images: path, and the width and height that the annotations say; None if they do not say.
        loader: the transform that loads the images (:func:`image_loader`).
    """
    oriented = not loader.get("color_type", "color").endswith("ignore_orientation")
    known = [image for image in images if image[1] and image[2]]
    chosen = known[:: max(1, -(-len(known) // HEADERS))]
    with ThreadPoolExecutor(THREADS) as pool:
        for (path, *said), found in zip(
            chosen, pool.map(lambda image: header(image[0], oriented), chosen), strict=True
        ):
            if found and found[0] != tuple(said):
                yield size_problem(path, found[0], (said[0], said[1]))


def size_problem(path: str, size: tuple[int, int], said: tuple[Any, Any]) -> Problem:
    """Problem of an image whose (width, height) is not what the annotations say."""
    what = f"is {size[0]} x {size[1]} (width x height), but {said[0]} x {said[1]} in the annotations"
    return Problem("size", path, what, True)


def require_annotated_size(path: str, shape: Sequence[int], sample: Mapping) -> None:
    """Compare a loaded image (H, W, ...) with the size in its annotations, if the data set has it in its samples.

    Raises:
        AnnotationError: they differ.
    """
    said = sample.get("width"), sample.get("height")
    if all(said) and (shape[1], shape[0]) != said:
        raise AnnotationError(str(size_problem(path, (shape[1], shape[0]), said)))
