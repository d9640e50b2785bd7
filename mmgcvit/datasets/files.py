"""Checks of a data set's files that take seconds: names and image headers; nothing is decoded."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from mmgcvit.datasets.problems import Problem
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import type_name
from mmgcvit.utils.images import any_image_size

HEADERS = 20_000  # image headers that are read before a run; of larger data sets, as many at equal distances
THREADS = 8


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
    if not os.path.isfile(path):  # opening a pipe would wait for its other end
        return None
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
