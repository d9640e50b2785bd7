"""Validation of the masks of COCO annotations: polygons and run lengths.

pycocotools trusts its input. Run lengths of another size become scrambled masks, broken ones end a worker, and it
allocates 80 bytes for each pixel along a polygon, wherever its points are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted

FARTHEST = 10_000_000  # largest absolute coordinate that is accepted, in pixels
LONGEST = 1_000_000  # largest circumference of a polygon in a small image, in pixels
RUN_CHARACTERS = 7  # most characters of a compressed run: 35 bits


def mask_error(mask: Any, width: int, height: int, evaluated: bool) -> str | None:
    """Return why a segmentation would break a run; None if it would not.

    Args:
        mask: value of ``segmentation``.
        width: width of the image as given in the file, in pixels.
        height: its height.
        evaluated: whether pycocotools reads the mask for an evaluation; it is less tolerant than mmdet in training.
    """
    if not mask:
        return "no segmentation; use a detector without masks if there are only boxes"
    if isinstance(mask, dict):
        return _run_length_error(mask, width, height)
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        return "segmentation; allowed: a list of polygons, or run lengths"
    for polygon in mask:
        if error := _polygon_error(polygon, width, height):
            return error
    if evaluated and (len(mask[0]) < 6 or not usable_polygons(mask)):
        return f"{short_polygons(mask)}: the evaluation of masks would fail"
    return None


def usable_polygons(mask: Sequence[list]) -> list[list]:
    """Polygons that mmdet uses in training."""
    return [polygon for polygon in mask if is_usable(polygon)]


def is_usable(polygon: Sequence) -> bool:
    """Whether a polygon has x, y of at least three points."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def short_polygons(mask: Sequence[list]) -> str:
    """Describe polygons with too few points or an odd number of values."""
    return f"polygons of {summarize(map(len, mask))} numbers; allowed: x, y of at least 3 points"


def extent(polygons: Sequence[list]) -> tuple[float, float, float, float]:
    """Smallest box (x1, y1, x2, y2) around polygons."""
    x, y = [polygon[0::2] for polygon in polygons], [polygon[1::2] for polygon in polygons]
    return min(map(min, x)), min(map(min, y)), max(map(max, x)), max(map(max, y))


def _polygon_error(polygon: list, width: int, height: int) -> str | None:
    if not set(map(type, polygon)) <= {int, float} or not _all_finite(polygon):
        return "a polygon contains something other than numbers; allowed: [x1, y1, x2, y2, ...]"
    if not polygon:
        return None
    low, high = min(polygon), max(polygon)
    if max(-low, high) > FARTHEST:
        return f"a polygon with coordinates from {low:g} to {high:g}, in an image of {width} x {height}"
    longest = max(LONGEST, width * height // 4)
    if (high - low) * len(polygon) / 2 > longest:  # otherwise it cannot be that long
        points = list(zip(polygon[0::2], polygon[1::2], strict=False))
        length = sum(max(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in pairwise([*points, points[0]]))
        if length > longest:
            return (
                f"a polygon of {length:g} pixels around, with coordinates from {low:g} to {high:g}, in an image of "
                f"{width} x {height}; allowed: at most {longest} pixels around"
            )
    return None


def _run_length_error(mask: Mapping, width: int, height: int) -> str | None:
    if missing := [key for key in ("size", "counts") if mask.get(key) is None]:
        return f"run lengths without {' and '.join(missing)}"
    size, counts = mask["size"], mask["counts"]
    if size != [height, width] or not set(map(type, size)) <= {int}:
        return f"run lengths of size {size!r:.50}; allowed: [{height}, {width}], height and width of the image"
    if isinstance(counts, str):
        runs = decompress(counts)
        if runs is None:
            return f"counts={counts!r:.50}: no compressed run lengths"
        lowest, total = int(runs.min(initial=0)), int(runs.sum())
    elif isinstance(counts, list) and set(map(type, counts)) <= {int}:
        lowest, total = min(counts, default=0), sum(counts)
    else:
        return f"counts={counts!r:.50}; allowed: a list of integers, or a string of compressed run lengths"
    if lowest < 0:
        return f"a run length of {lowest}; allowed: 0 or more"
    if total != height * width:
        return f"run lengths of {counted(total, 'pixel')} in all; allowed: {height * width}, the pixels of the image"
    return None


def decompress(text: str) -> np.ndarray | None:
    """Run lengths (n,) of COCO's compressed string, or None if it is not one.

    A run is written in characters of 5 bits, lowest first. The sixth bit is set in all but the last character, whose
    fifth bit is the sign. From the fourth run on, the string has the differences to the run before the previous one.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    if codes.min() < 0 or codes.max() > 63 or codes[-1] > 31:
        return None
    ends = np.flatnonzero(codes < 32)  # last character of each run
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if places.max() >= RUN_CHARACTERS:
        return None
    runs = np.add.reduceat((codes & 31) << (5 * places), starts)
    runs -= ((codes[ends] & 16) > 0).astype(np.int64) << (5 * places[ends] + 5)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    return runs


def _all_finite(values: Sequence[float]) -> bool:
    try:
        return math.isfinite(sum(values))
    except OverflowError:  # an integer that is too large for a float
        return False
