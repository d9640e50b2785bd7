"""Validation of boxes, one by one and all boxes of a file together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmgcvit.datasets.problems import Problem

CERTAIN = 5  # fewest boxes from which a wrong format is concluded
MOST = 0.95  # fraction of the boxes that a conclusion needs


def outside(box: Sequence[float], width: float, height: float) -> str | None:
    """Return why mmdet would drop a box (x1, y1, x2, y2) for its position or size; None if it would not."""
    x1, y1, x2, y2 = box
    if x2 - x1 < 1 or y2 - y1 < 1:
        return f"box of {x2 - x1:g} x {y2 - y1:g} pixels; allowed: at least 1 x 1"
    if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
        return f"box {tuple(box)} outside its image of {width:g} x {height:g}"
    return None


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
        if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
            self.beyond += 1
            self.example = self.example or f", such as {list(box)} in an image of {width} x {height}"
        self.corners += x < w <= width + 1 and y < h <= height + 1

    def compare(self, box: Sequence[float], around: Sequence[float]) -> None:
        """Compare a box (x, y, width, height) with that around its polygons, (x1, y1, x2, y2)."""
        x, y, w, h = box
        self.with_polygons += 1
        if not _agree((x, y, x + w, y + h), around):
            self.disagree += 1
            self.corner_polygons += _agree(box, around)

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield the problems of all boxes together."""
        as_corners = (
            self.boxes >= CERTAIN and self.beyond >= self.boxes / 2 and self.corners >= MOST * self.boxes
        ) or (self.with_polygons >= CERTAIN and self.corner_polygons >= MOST * self.with_polygons)
        if as_corners:
            fit = f"{self.corners} fit into them"
            if self.with_polygons:
                fit += f", and {self.corner_polygons} of {self.with_polygons} to their polygons,"
            what = f"{self.beyond} of {self.boxes} boxes reach beyond their images; {fit} if bbox is read as corners"
            yield Problem("box", path, f"{what}, [x1, y1, x2, y2]; allowed: [x, y, width, height]", True)
        elif self.beyond:
            yield Problem(
                "beyond", path, f"{self.beyond} of {self.boxes} boxes reach beyond their images{self.example}", False
            )
        if self.disagree and self.with_polygons >= CERTAIN and not as_corners:
            yield Problem(
                "polygon", path, f"{self.disagree} of {self.with_polygons} boxes do not fit their polygons", False
            )


def _agree(box: Sequence[float], around: Sequence[float]) -> bool:
    """Whether two boxes (x1, y1, x2, y2) are about the same."""
    allowed = 2 + 0.1 * max(around[2] - around[0], around[3] - around[1])
    return all(abs(a - b) <= allowed for a, b in zip(box, around, strict=True))
