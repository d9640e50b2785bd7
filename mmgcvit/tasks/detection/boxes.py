"""Validation of boxes, one by one and all boxes of a file together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmgcvit.datasets.problems import Problem
from mmgcvit.utils.text import counted

CERTAIN = 5  # fewest boxes from which a wrong format is concluded
MOST = 0.95  # fraction of the boxes that a conclusion needs


def outside(box: Sequence[float], width: float, height: float) -> str | None:
    """Return why mmdet would drop a box (x1, y1, x2, y2) for its position or size; None if it would not."""
    x1, y1, x2, y2 = box
    if too_small(x1, y1, x2, y2):
        return f"box of {x2 - x1:g} x {y2 - y1:g} pixels; allowed: at least 1 x 1"
    if apart(x1, y1, x2, y2, width, height):
        return f"box {tuple(box)} outside its image of {width:g} x {height:g}"
    return None


# These work on numbers and on arrays alike.


def too_small(x1: Any, y1: Any, x2: Any, y2: Any) -> Any:
    """Whether a box has a side of less than a pixel."""
    return (x2 - x1 < 1) | (y2 - y1 < 1)


def apart(x1: Any, y1: Any, x2: Any, y2: Any, width: Any, height: Any) -> Any:
    """Whether no part of a box with sides of at least a pixel is inside its image."""
    return (x2 <= 0) | (x1 >= width) | (y2 <= 0) | (y1 >= height)


def beyond(x: Any, y: Any, w: Any, h: Any, width: Any, height: Any) -> Any:
    """Whether a box reaches beyond its image, by more than a pixel."""
    return (x < -1) | (y < -1) | (x + w > width + 1) | (y + h > height + 1)


def fits_as_corners(x: Any, y: Any, w: Any, h: Any, width: Any, height: Any) -> Any:
    """Whether a box (x, y, width, height) would be one inside its image if read as x1, y1, x2, y2."""
    return (x < w) & (w <= width + 1) & (y < h) & (h <= height + 1)


def agree(box: Any, around: Any) -> Any:
    """Whether two boxes x1, y1, x2, y2 are about the same."""
    across, down = around[2] - around[0], around[3] - around[1]
    same: Any = True
    for a, b in zip(box, around, strict=True):
        # The longer side counts.
        same = same & ((abs(a - b) <= 2 + 0.1 * across) | (abs(a - b) <= 2 + 0.1 * down))
    return same


class BoxCounts:
    """Counts of boxes that do not fit their images or polygons.

    Corners (x1, y1, x2, y2) in the place of (x, y, width, height) are silently learned as boxes that are too large.
    Read as corners, such boxes lie inside their images and fit their polygons; real ones hardly ever do.
    """

    def __init__(self) -> None:
        self.boxes = self.beyond = self.corners = 0
        self.with_polygons = self.disagree = self.corner_polygons = 0
        self.example = ""

    def add(self, box: Sequence[float], width: int, height: int) -> None:
        """Add a box (x, y, width, height) in an image of a size."""
        x, y, w, h = box
        self.boxes += 1
        if beyond(x, y, w, h, width, height):
            self.beyond += 1
            self.example = self.example or f", such as {list(box)} in an image of {width} x {height}"
        self.corners += bool(fits_as_corners(x, y, w, h, width, height))

    def add_all(self, boxes: np.ndarray, sizes: np.ndarray) -> None:
        """Add boxes (n, 4) that do not reach beyond their images, of sizes (n, 2), width and height."""
        self.boxes += len(boxes)
        self.corners += int(fits_as_corners(*boxes.T, *sizes.T).sum())

    def compare(self, box: Sequence[float], around: Sequence[float]) -> None:
        """Compare a box (x, y, width, height) with that around its polygons, (x1, y1, x2, y2)."""
        x, y, w, h = box
        self.with_polygons += 1
        if not agree((x, y, x + w, y + h), around):
            self.disagree += 1
            self.corner_polygons += bool(agree(box, around))

    def compare_all(self, boxes: np.ndarray, around: np.ndarray) -> None:
        """Compare boxes (n, 4) with those around their polygons, (n, 4)."""
        x, y, w, h = boxes.T
        differ = ~agree((x, y, x + w, y + h), around.T)
        self.with_polygons += len(boxes)
        self.disagree += int(differ.sum())
        self.corner_polygons += int((differ & agree(boxes.T, around.T)).sum())

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield the problems of all boxes together."""
        as_corners = (
            self.boxes >= CERTAIN and self.beyond >= self.boxes / 2 and self.corners >= MOST * self.boxes
        ) or (self.with_polygons >= CERTAIN and self.corner_polygons >= MOST * self.with_polygons)
        if as_corners:
            fit = f"{self.corners} fit into them"
            if self.with_polygons:
                fit += f", and {self.corner_polygons} of {self.with_polygons} to their polygons,"
            what = (
                f"{self.beyond} of {counted(self.boxes, 'box')} reach beyond their images; {fit} if bbox is read as "
                "corners"
            )
            yield Problem("box", path, f"{what}, [x1, y1, x2, y2]; allowed: [x, y, width, height]", True)
        elif self.beyond:
            yield Problem(
                "beyond",
                path,
                f"{self.beyond} of {counted(self.boxes, 'box')} reach beyond their images{self.example}",
                False,
            )
        if self.disagree and self.with_polygons >= CERTAIN and not as_corners:
            yield Problem(
                "polygon",
                path,
                f"{self.disagree} of {counted(self.with_polygons, 'box')} do not fit their polygons",
                False,
            )
