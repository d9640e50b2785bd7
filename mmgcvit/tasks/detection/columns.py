"""The values of many annotations as arrays, to check those at once that are as they should be.

Checked one by one, the 860,001 annotations of COCO take longer than reading them does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np

from mmgcvit.tasks.detection.masks import FARTHEST, LONGEST, is_usable, mask_error

IDS = ("id", "image_id", "category_id")
NUMBERS = {int, float}
MOST = 1e300  # largest absolute value of a number


@dataclass(frozen=True)
class Columns:
    """Values of annotations, one row each.

    A row that is not ``usual`` has to be checked by itself: something about it is wrong or rare, or in the same part of
    the file. Its other values mean nothing.
    """

    ids: list[Any]  # of the annotations
    image_ids: list[Any]
    category_ids: list[Any]
    usual: np.ndarray  # (n,) bool; all that :meth:`.coco._Objects` checks without the image and the categories
    boxes: np.ndarray  # (n, 4) float64: x, y, width, height
    crowds: np.ndarray  # (n,) bool
    without_iscrowd: np.ndarray  # (n,) bool
    around: np.ndarray  # (n, 4) float64: x1, y1, x2, y2 of usual polygons; NaN for any other mask, or if not asked for
    run_sizes: np.ndarray  # (n, 2) int64: height, width of valid run lengths; 0 for any other mask, or if not asked for


def columns(part: Sequence[Any], masks: bool) -> Columns:
    """Return the values of annotations of a COCO file as arrays.

    Args:
        part: entries of the list.
        masks: whether the masks are used.
    """
    found = _columns(part, masks)
    if found:
        return found
    count, nothing = len(part), [None] * len(part)
    no = np.zeros(count, bool)
    return Columns(nothing, nothing, nothing, no, np.zeros((count, 4)), no, no, *_no_masks(count))


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the rows of all parts, in order."""

    def column(name: str) -> Any:
        values = [getattr(part, name) for part in parts or [columns([], False)]]
        return np.concatenate(values) if isinstance(values[0], np.ndarray) else list(chain.from_iterable(values))

    return Columns(**{entry.name: column(entry.name) for entry in fields(Columns)})


def _columns(part: Sequence[Any], masks: bool) -> Columns | None:
    """Columns of annotations; None if a value has a type that needs a look."""
    if not part or set(map(type, part)) != {dict}:
        return None
    ids, image_ids, category_ids = ([entry.get(key) for entry in part] for key in IDS)
    given = [entry.get("bbox") for entry in part]
    if set(map(type, given)) != {list} or set(map(len, given)) != {4}:
        return None
    crowds = [entry.get("iscrowd", 0) for entry in part]
    flat = _numbers(chain.from_iterable(given))
    areas = _numbers(entry.get("area") for entry in part)
    if not all(map(_are_ids, (ids, image_ids, category_ids))) or flat is None or areas is None:
        return None
    if not set(map(type, crowds)) <= {int} or not set(crowds) <= {0, 1}:
        return None
    boxes = flat.reshape(-1, 4)
    usual = (np.abs(boxes) <= FARTHEST).all(1) & (areas > 0) & (areas < MOST)
    usual &= [not entry.get("ignore") and own != 0 for entry, own in zip(part, ids, strict=True)]
    around, run_sizes = _no_masks(len(part))
    if masks:
        given = [entry.get("segmentation") for entry in part]
        around, run_sizes = _around(given), _run_sizes(given)
    without = np.array(["iscrowd" not in entry for entry in part])
    return Columns(ids, image_ids, category_ids, usual, boxes, np.array(crowds, bool), without, around, run_sizes)


def _no_masks(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((count, 4), np.nan), np.zeros((count, 2), np.int64)


def _are_ids(values: list) -> bool:
    """Whether values are all integers of at most 64 bits."""
    return set(map(type, values)) == {int} and min(values) >= -(2**63) and max(values) < 2**63


def _numbers(values: Iterable) -> np.ndarray | None:
    """Numbers as float64; None if there is anything else among them."""
    values = list(values)
    if not set(map(type, values)) <= NUMBERS:
        return None
    try:
        return np.fromiter(values, np.float64, len(values))
    except OverflowError:  # an integer that is too large for a float
        return None


def _around(masks: Sequence[Any]) -> np.ndarray:
    """Boxes (n, 4) around polygons that are as they should be, and too short in all to be too long."""
    found = np.full((len(masks), 4), np.nan)
    rows = [i for i, mask in enumerate(masks) if type(mask) is list and mask]
    if not _are_usable(chain.from_iterable(masks[i] for i in rows)):
        rows = [i for i in rows if _are_usable(masks[i])]
    values = _numbers(chain.from_iterable(chain.from_iterable(masks[i] for i in rows)))
    if values is None or not rows:
        return found
    counts = np.array([sum(map(len, masks[i])) for i in rows])
    starts = np.concatenate([[0], counts[:-1].cumsum()]) // 2
    x, y = values.reshape(-1, 2).T.copy()
    sides = [(np.minimum, x), (np.minimum, y), (np.maximum, x), (np.maximum, y)]
    boxes = np.stack([function.reduceat(side, starts) for function, side in sides], 1)
    low, high = boxes.min(1), boxes.max(1)  # NaN if there is one in a polygon
    good = (low >= -FARTHEST) & (high <= FARTHEST) & ((high - low) * counts / 2 <= LONGEST)
    found[np.array(rows)[good]] = boxes[good]
    return found


def _are_usable(polygons: Iterable) -> bool:
    """Whether all polygons are lists of x, y of at least three points."""
    polygons = list(polygons)
    return set(map(type, polygons)) <= {list} and all(map(is_usable, polygons))


def _run_sizes(masks: Sequence[Any]) -> np.ndarray:
    """Sizes (n, 2), height and width, that run lengths say and fit."""
    found = np.zeros((len(masks), 2), np.int64)
    for i, mask in enumerate(masks):
        size = mask.get("size") if type(mask) is dict else None
        if type(size) is list and len(size) == 2 and set(map(type, size)) == {int} and max(size) <= FARTHEST:
            found[i] = (0, 0) if mask_error(mask, size[1], size[0], False) else size
    return found
