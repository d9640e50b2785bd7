"""Predictions of exported models, one class per task, in pixels of the original images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmgcvit.runtime.masks import Region


@dataclass
class Prediction:
    """Prediction on one image.

    Attributes:
        name: path relative to the folder that was given, or file name; for an image without a file its number.
        height, width: size of the image in pixels, turned upright.
        classes: names of all classes of the model.
    """

    name: str
    height: int
    width: int
    classes: tuple[str, ...]


@dataclass
class Detections(Prediction):
    """Objects, by descending score.

    Attributes:
        boxes: (N, 4) float32, x1, y1, x2, y2.
        scores: (N,) float32.
        labels: (N,) int64, indices of ``classes``.
        regions: the masks of an instance segmentor, without the rest of the image; None for a detector of boxes.
        tracks: (N,) int64, numbers of the objects in a video, -1 for those without one; None if they are not tracked.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    regions: list[Region] | None = None
    tracks: np.ndarray | None = None

    @property
    def names(self) -> list[str]:
        """Class name of each object."""
        return [self.classes[label] for label in self.labels]

    @property
    def masks(self) -> np.ndarray | None:
        """Masks (N, height, width), bool; None for a detector of boxes. They are made anew at each access."""
        if self.regions is None:
            return None
        masks = np.zeros((len(self.regions), self.height, self.width), bool)
        for mask, region in zip(masks, self.regions, strict=True):
            mask[:] = region.full(self.height, self.width)
        return masks

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, keep: np.ndarray) -> Detections:
        """Return some of the objects, by index or by a bool for each."""
        indices = np.arange(len(self))[keep]
        regions = None if self.regions is None else [self.regions[i] for i in indices]
        parts = (self.boxes[indices], self.scores[indices], self.labels[indices])
        tracks = None if self.tracks is None else self.tracks[indices]
        return Detections(self.name, self.height, self.width, self.classes, *parts, regions, tracks)


@dataclass
class Segmentation(Prediction):
    """Class of each pixel.

    Attributes:
        labels: (height, width), indices of ``classes``; uint8 for up to 256 classes, else int32.
    """

    labels: np.ndarray


@dataclass
class Panoptic(Segmentation):
    """Class and segment of each pixel.

    Attributes:
        labels: (height, width) int32, indices of ``classes``; ``len(classes)`` where there is no segment.
        segments: (height, width) int32, another number for each segment; 0 where there is none.
    """

    segments: np.ndarray


@dataclass
class Classification(Prediction):
    """Probabilities of the classes.

    Attributes:
        probabilities: (classes,) float32.
    """

    probabilities: np.ndarray

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most probable classes with their probabilities."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]


def merge_tiles(parts: list[Detections], threshold: float = 0.5) -> Detections:
    """Merge objects found on overlapping tiles by non-maximum suppression within each class.

    Args:
        parts: the objects of each tile, in pixels of the whole image.
        threshold: of two boxes of a class with a higher IoU, the one with the lower score is dropped.
    """
    regions = [region for part in parts for region in part.regions or ()]
    boxes, scores, labels = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "labels")
    )
    first = parts[0]
    found = (boxes, scores, labels, None if first.regions is None else regions)
    merged = Detections(first.name, first.height, first.width, first.classes, *found)
    kept = np.zeros(len(scores), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        kept[members[suppress(boxes[members], scores[members], threshold)]] = True
    order = np.argsort(-scores, kind="stable")
    return merged.select(order[kept[order]])


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression; returns the indices of the boxes that are kept, by descending score."""
    order = np.argsort(-scores, kind="stable")
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    areas = sides[:, 0] * sides[:, 1]
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[order, :2]), np.minimum(boxes[best, 2:], boxes[order, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        order = order[common <= threshold * (areas[best] + areas[order] - common)]
    return np.array(kept, np.int64)
