"""Numbers of a report that several tasks share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

#: Score thresholds at which precision, recall and F1 are computed.
THRESHOLDS = np.linspace(0, 1, 101)


def ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    """Divide; NaN where the divisor is zero."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def row_shares(matrix: np.ndarray, background: bool = False) -> np.ndarray:
    """Divide a confusion matrix (R, C) by the sums of its rows.

    Args:
        matrix: counts; rows are true classes.
        background: whether the last row is that of predictions without an object. How many places without an object
            there are is not known, so this row has no shares.

    Returns:
        (R, C) from 0 to 1; NaN in rows without counts, and in that of the background.
    """
    shares = ratio(matrix, matrix.sum(axis=1, keepdims=True))
    if background:
        shares[-1] = np.nan
    return shares


@dataclass
class Calibration:
    """How often predictions with a given confidence are right.

    Attributes:
        bins: number of bins of equal width.
        count: (bins,) predictions.
        confidence: (bins,) sum of their confidences.
        correct: (bins,) how many are right.
    """

    bins: int = 10
    count: np.ndarray = field(init=False)
    confidence: np.ndarray = field(init=False)
    correct: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.count, self.confidence, self.correct = np.zeros((3, self.bins))

    def add(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Add predictions: confidences from 0 to 1, and whether each is right, both (N,)."""
        place = np.clip((np.asarray(confidence) * self.bins).astype(int), 0, self.bins - 1)
        self.count += np.bincount(place, minlength=self.bins)
        self.confidence += np.bincount(place, confidence, self.bins)
        self.correct += np.bincount(place, correct, self.bins)

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |confidence - accuracy| over the predictions of all bins."""
        total = self.count.sum()
        return float(np.abs(self.confidence - self.correct).sum() / total) if total else float("nan")


@dataclass(frozen=True)
class ScoreCurves:
    """Counts at each of the :data:`THRESHOLDS`.

    Attributes:
        hits: (T,) right predictions with at least this score.
        predicted: (T,) predictions with at least this score.
        total: what there is to find.
    """

    hits: np.ndarray
    predicted: np.ndarray
    total: float

    @classmethod
    def of(cls, scores: np.ndarray, correct: np.ndarray, total: float) -> ScoreCurves:
        """Count from scores (N,) and whether each prediction is right."""
        order = np.argsort(scores, kind="stable")
        scores, right = np.asarray(scores)[order], np.cumsum(np.asarray(correct, float)[order][::-1])
        count = len(scores) - np.searchsorted(scores, THRESHOLDS, side="left")
        return cls(np.concatenate([[0.0], right])[count], count.astype(float), total)

    def __add__(self, other: ScoreCurves) -> ScoreCurves:
        return ScoreCurves(self.hits + other.hits, self.predicted + other.predicted, self.total + other.total)

    @property
    def precision(self) -> np.ndarray:
        """(T,) share of the predictions that are right; NaN without predictions."""
        return ratio(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """(T,) share of what there is that is found; NaN if there is nothing."""
        return ratio(self.hits, np.full_like(self.hits, self.total))

    @property
    def f1(self) -> np.ndarray:
        """(T,) harmonic mean of precision and recall; NaN without predictions and anything to find."""
        return ratio(2 * self.hits, self.predicted + self.total)

    @property
    def best(self) -> tuple[float, float]:
        """The threshold with the highest F1, the middle one of several; and this F1. NaN if nothing is to be found."""
        if not self.total or not self.hits.any():
            return float("nan"), float("nan") if not self.total else 0.0
        f1 = self.f1
        first = int(np.nanargmax(f1))
        last = first
        while last + 1 < len(f1) and np.isclose(f1[last + 1], f1[first], rtol=0, atol=1e-12):
            last += 1
        return float(THRESHOLDS[(first + last) // 2]), float(f1[first])


def spread(count: int, total: int) -> list[int]:
    """Return at most ``count`` of ``total`` indices, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total)).round()}) if total else []


def worst_and_typical(quality: np.ndarray, count: int) -> tuple[list[int], list[int]]:
    """Return the images with the lowest quality, and those next to the median of the others.

    Args:
        quality: (N,) one number per image; images with NaN are left out.
        count: largest number of images of each kind.
    """
    order = [int(i) for i in np.argsort(quality, kind="stable") if not np.isnan(quality[i])]
    worst, rest = order[:count], order[count:]
    start = max(0, (len(order) // 2) - count - count // 2)
    return worst, rest[start : start + count]


def shown(value: float, digits: int = 3) -> str:
    """Format a number; '-' for NaN."""
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
