"""Shapes that several formats have: ellipses, rotated boxes, bitmaps, and objects of several parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmgcvit.errors import AnnotationError, CorruptImageError
from mmgcvit.finetune.data import Instance
from mmgcvit.utils.images import require_pixels
from mmgcvit.utils.text import counted

CORNERS = 36  # of the polygon in place of a circle or an ellipse
Point = tuple[float, float]


def bounds(points: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """Box x, y, width, height around points (x, y)."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def flat(points: Sequence[Sequence[float]]) -> list[float]:
    """Coordinates x1, y1, x2, y2, ... of points."""
    return [value for point in points for value in point]


def rotate(points: Iterable[Sequence[float]], x: float, y: float, angle: float) -> list[Point]:
    """Turn points about (x, y), clockwise in an image, by an angle in degrees."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [(x + (a - x) * cos - (b - y) * sin, y + (a - x) * sin + (b - y) * cos) for a, b in points]


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0) -> list[Point]:
    """Corners of a polygon in place of an ellipse; the angle is in degrees."""
    steps = [2 * math.pi * i / CORNERS for i in range(CORNERS)]
    return rotate([(x + rx * math.cos(step), y + ry * math.sin(step)) for step in steps], x, y, angle)


def empty_mask(width: int, height: int, where: str) -> np.ndarray:
    """Mask (H, W) of an image, with False everywhere.

    Raises:
        AnnotationError: the annotated size is larger than an image may be.
    """
    try:
        require_pixels(width, height)
    except CorruptImageError as error:
        raise AnnotationError(f"{where}: the image is annotated as {error}") from error
    return np.zeros((height, width), bool)


def rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed RLE of a mask (H, W): lengths of runs of 0 and 1 down the columns, beginning with 0."""
    values = np.asarray(mask, bool).ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[False], values])))
    counts = np.diff(np.concatenate([[0], changes, [values.size]]))
    return dict(size=list(mask.shape), counts=counts.tolist())


def join(parts: Sequence[Instance]) -> Instance:
    """One object of several parts with polygons, boxes, or a single mask."""
    corners = [(x, y) for p in parts for x, y in ((p.box[0], p.box[1]), (p.box[0] + p.box[2], p.box[1] + p.box[3]))]
    polygons: list | None = []
    for part in parts:
        polygons = (
            polygons + part.segmentation if polygons is not None and isinstance(part.segmentation, list) else None
        )
    return Instance(parts[0].label, bounds(corners), polygons)


def rotated_note(places: Sequence[str]) -> list[str]:
    """Note about rotated boxes, in place of which upright ones are used; none if there are none.

    Args:
        places: file and place of each.
    """
    return [f"{len(places)} rotated boxes become the upright boxes around them: {places[0]}, ..."] if places else []


def angle_note(places: Sequence[str]) -> list[str]:
    """Note about boxes with an angle in a format for upright boxes, as CVAT exports them; none if there are none.

    Args:
        places: file and place of each angle.
    """
    if not places:
        return []
    return [
        f"{counted(len(places), 'box has', 'boxes have')} an angle in the attributes, which is not applied: "
        f"{places[0]}, ...; CVAT's export 'CVAT for images 1.1' has the rotated boxes"
    ]
