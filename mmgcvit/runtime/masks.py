"""Masks of instances: pasting into the image, and COCO's run lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """A mask, stored only where it may be true.

    Attributes:
        mask: (h, w) bool.
        x, y: column and row of its top left pixel in the image.
    """

    mask: np.ndarray
    x: int
    y: int

    def full(self, height: int, width: int) -> np.ndarray:
        """Return the mask of the whole image, (height, width) bool."""
        canvas = np.zeros((height, width), bool)
        canvas[self.y : self.y + self.mask.shape[0], self.x : self.x + self.mask.shape[1]] = self.mask
        return canvas

    def shifted(self, x: int, y: int) -> Region:
        """Return the same mask in a larger image, in which the image begins at (x, y)."""
        return Region(self.mask, self.x + x, self.y + y)

    def box(self) -> tuple[int, int, int, int]:
        """Return x1, y1, x2, y2 of the smallest box around the mask; zeros for an empty mask."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return 0, 0, 0, 0
        left, top, right, bottom = (int(value) for value in (columns[0], rows[0], columns[-1], rows[-1]))
        return self.x + left, self.y + top, self.x + right + 1, self.y + bottom + 1

    def run_lengths(self, height: int, width: int) -> dict:
        """Return COCO's compressed run lengths: ``size`` (height, width) and ``counts``, text."""
        columns, rows = np.nonzero(self.mask.T)  # in the order of columns, as COCO counts
        places = (columns + self.x) * height + rows + self.y
        breaks = np.flatnonzero(np.diff(places) != 1)
        if not len(places):
            return dict(size=[height, width], counts=_compressed([height * width]))
        first = np.concatenate([places[:1], places[breaks + 1]])
        last = np.concatenate([places[breaks], places[-1:]]) + 1
        edges = np.stack([first, last], axis=1).ravel()
        counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
        return dict(size=[height, width], counts=_compressed(counts if counts[-1] else counts[:-1]))


def _compressed(counts: list[int]) -> str:
    """Run lengths as text: differences to the count before the last, in groups of 5 bits, the lowest first."""
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(48 + (bits | 32 if more else bits)))
            if not more:
                break
    return "".join(text)


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float) -> Region:
    """Paste the probabilities of a mask over its box into the image, as mmdet does: bilinear, zero outside.

    Args:
        mask: (h, w) probabilities.
        box: x1, y1, x2, y2 in pixels of the image.
        height, width: size of the image.
        threshold: smallest probability that belongs to the mask.
    """
    x1, y1, x2, y2 = (np.float32(value) for value in box)
    left, top = max(0, int(np.floor(x1)) - 1), max(0, int(np.floor(y1)) - 1)
    right, bottom = min(width, int(np.ceil(x2)) + 1), min(height, int(np.ceil(y2)) + 1)
    rows = _sampling(top, bottom, y1, y2, mask.shape[0])
    columns = _sampling(left, right, x1, x2, mask.shape[1])
    return Region(rows @ mask.astype(np.float32) @ columns.T >= threshold, left, top)


def _sampling(start: int, stop: int, low: np.float32, high: np.float32, size: int) -> np.ndarray:
    """Bilinear weights (stop - start, size) of a mask's values for pixels of the image along one side."""
    pixels = np.arange(start, max(start, stop), dtype=np.float32) + np.float32(0.5)
    if high > low:
        places = (pixels - low) / (high - low) * np.float32(size) - np.float32(0.5)
    else:
        places = np.full_like(pixels, (size - 1) / 2)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size, dtype=np.float32)))


def enlarge(mask: np.ndarray, part: tuple[float, float], height: int, width: int, threshold: float) -> Region:
    """Resize the probabilities of a mask over the network's input to the image, bilinearly.

    Args:
        mask: (h, w) probabilities.
        part: share of the input's height and width that the image fills; the rest is padding.
        height, width: size of the image.
        threshold: smallest probability that belongs to the mask.

    Returns:
        The mask, cut to the pixels that belong to it.
    """
    scales = [size * share / length for size, share, length in zip(mask.shape, part, (height, width), strict=True)]
    weights = []
    for size, scale, length in zip(mask.shape, scales, (height, width), strict=True):
        places = np.clip((np.arange(length, dtype=np.float32) + 0.5) * scale - 0.5, 0, size - 1)
        first = np.minimum(np.floor(places).astype(np.int64), max(0, size - 2))
        weights.append((first, np.minimum(first + 1, size - 1), (places - first).astype(np.float32)))
    (row, next_row, y), (column, next_column, x) = weights
    values = mask.astype(np.float32)
    values = values[:, column] * (1 - x) + values[:, next_column] * x
    found = values[row] * (1 - y)[:, None] + values[next_row] * y[:, None] >= threshold
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    if not len(rows):
        return Region(np.zeros((0, 0), bool), 0, 0)
    top, left = int(rows[0]), int(columns[0])
    return Region(found[top : rows[-1] + 1, left : columns[-1] + 1].copy(), left, top)
