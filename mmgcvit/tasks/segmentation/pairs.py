"""Checks of images and their label maps by names and headers; nothing is decoded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path

from mmgcvit.datasets.files import HEADERS, THREADS, header, image_loader, missing_files
from mmgcvit.datasets.problems import Problem, dataset_class
from mmgcvit.utils.images import IMAGES
from mmgcvit.utils.text import counted

GREY = ("1", "L", "P")  # Pillow's modes with one value of at most 8 bits per pixel
DEEP = ("I", "I;16", "I;16B", "I;16L")
Pair = tuple[str, str]  # image, label map


def partners(pairs: Sequence[Pair]) -> Iterator[Problem]:
    """Yield images without a label map."""
    without = set(missing_files([label_map for _, label_map in pairs]))
    yield from (Problem("partner", image, f"no label map {path}", True) for image, path in pairs if path in without)


def unused_label_maps(pairs: Sequence[Pair], folder: str, suffix: str) -> Iterator[Problem]:
    """Yield the number of label maps that belong to no image.

    Args:
        pairs: images and label maps.
        folder: folder of the label maps.
        suffix: suffix of the label maps.
    """
    known = {os.path.abspath(path) for pair in pairs for path in pair}  # both may be in the same folder
    alone = [path for path in sorted(Path(folder).rglob(f"*{suffix}")) if os.path.abspath(path) not in known]
    if alone:
        what = (
            f"{counted(len(alone), 'label map belongs', 'label maps belong')} to no image of this data set, the first "
            f"{alone[0].name}"
        )
        yield Problem("partner", folder, what, False)


def other_suffixes(
    pairs: Sequence[Pair],
    folder: str,
    suffix: str,
    label_folder: str,
    label_suffix: str,
    others: Sequence[Mapping] = (),
) -> Iterator[Problem]:
    """Yield the number of images that mmseg leaves out because of their suffixes.

    It is an error if one has a label map: it was meant to be used. Images of other data sets of the split do not count.

    Args:
        pairs: images and label maps.
        folder: folder of the images.
        suffix: suffix of the images that are used.
        label_folder: folder of the label maps.
        label_suffix: suffix of the label maps.
        others: configs of the other data sets of the same split.
    """
    known = {os.path.abspath(path) for pair in pairs for path in pair}
    taken = [place for other in others if (place := _images_of(other))]
    used = {os.path.abspath(image).removesuffix(suffix) for image, _ in pairs}
    together = os.path.abspath(folder) == os.path.abspath(label_folder)
    left_out, labelled = Counter[str](), 0
    for path in sorted(Path(folder).rglob("*")):
        own = os.path.abspath(path)
        if path.suffix.lower() not in IMAGES or own in known or (together and own.endswith(label_suffix)):
            continue
        if any(own.startswith(start) and own.endswith(end) for start, end in taken):
            continue
        left_out[path.suffix] += 1
        stem = path.relative_to(folder).with_suffix("").as_posix()
        labelled += os.path.splitext(own)[0] not in used and os.path.isfile(f"{label_folder}/{stem}{label_suffix}")
    if left_out:
        listed = ", ".join(f"{count} *{name}" for name, count in left_out.items())
        what = (
            f"{counted(left_out.total(), 'image')} of other suffixes: {listed}; img_suffix={suffix!r} leaves them out"
        )
        if labelled:
            what += f", also {labelled} that have label maps. Rename or convert them"
        yield Problem("suffix", folder, what, bool(labelled))


def _images_of(dataset: Mapping) -> tuple[str, str] | None:
    """Folder, with a separator at its end, and suffix of the images of a config's data set; None if not known."""
    folder = (dataset.get("data_prefix") or {}).get("img_path")
    kind = dataset_class(dataset)
    if folder is None or kind is None:
        return None
    default = signature(kind).parameters.get("img_suffix")
    suffix = dataset.get("img_suffix", default.default if default else ".jpg")
    return os.path.join(os.path.abspath(os.path.join(dataset.get("data_root") or "", folder)), ""), str(suffix)


def header_problems(pairs: Sequence[Pair], pipeline: Sequence[Mapping] | None, deep: list[str]) -> Iterator[Problem]:
    """Yield label maps of another size than their images or of an unusable mode, of at most HEADERS pairs.

    Label maps of more than 8 bits per pixel are added to ``deep``: their values must be looked at.
    """
    loader = image_loader(pipeline)
    if loader is None:
        return
    oriented = not loader.get("color_type", "color").endswith("ignore_orientation")
    chosen = pairs[:: max(1, -(-len(pairs) // HEADERS))]
    with ThreadPoolExecutor(THREADS) as pool:
        images = pool.map(lambda pair: header(pair[0], oriented), chosen)
        label_maps = pool.map(lambda pair: header(pair[1], False), chosen)
        for (_, path), image, label_map in zip(chosen, images, label_maps, strict=True):
            if label_map and label_map[1] not in GREY + DEEP:
                yield mode_problem(path, label_map[1])
            if label_map and label_map[1] in DEEP:
                deep.append(path)
            if label_map and image and label_map[0] != image[0]:
                yield size_problem(path, label_map[0], image[0])


def mode_problem(path: str, mode: str) -> Problem:
    """Problem of a label map with several values per pixel."""
    what = f"has mode {mode!r}; allowed: one 8-bit value per pixel, modes {', '.join(GREY)}"
    return Problem("mode", path, what, True)


def size_problem(path: str, size: tuple[int, int], image: tuple[int, int]) -> Problem:
    """Problem of a label map whose (width, height) is not that of its image."""
    what = f"is {size[0]} x {size[1]} (width x height), its image {image[0]} x {image[1]}"
    return Problem("size", path, what, True)
