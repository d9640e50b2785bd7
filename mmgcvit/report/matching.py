"""Matching of predicted boxes with the ground truth: AP, counts over the score, confusion matrix, kinds of errors."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmgcvit.report.numbers import ScoreCurves

RIGHT = 0.5  # IoU from which on a box is right
NEAR = 0.1  # IoU below which a box has nothing to do with an object
ERRORS = ("class", "localisation", "class and localisation", "duplicate", "background", "missed")


@dataclass
class Objects:
    """Objects of one image.

    Attributes:
        boxes: (N, 4) x1, y1, x2, y2 in pixels.
        labels: (N,) class indices.
        scores: (N,); NaN for ground truth.
        ignored: (N,) bool; ground truth that counts neither as found nor as missed (``iscrowd``).
        masks: N masks as polygons or run lengths; None without masks.
        height, width: size of the image.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    ignored: np.ndarray
    masks: list[Any] | None
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def coco_boxes(self) -> np.ndarray:
        """(N, 4) x, y, width, height."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)


@dataclass(frozen=True)
class Found:
    """Result of :func:`evaluate_objects` for one kind of shape.

    Attributes:
        ap: (K,) average precision over IoU 0.5 to 0.95; NaN for a class without objects.
        ap50: (K,) the same at an IoU of 0.5.
        curves: counts of each class over the score, at an IoU of 0.5.
        scores: scores of all predictions that count.
        correct: whether each of them is right at an IoU of 0.5.
    """

    ap: np.ndarray
    ap50: np.ndarray
    curves: list[ScoreCurves]
    scores: np.ndarray
    correct: np.ndarray


def evaluate_objects(truth: Sequence[Objects], found: Sequence[Objects], count: int, kind: str = "bbox") -> Found:
    """Evaluate by pycocotools.

    Args:
        truth: ground truth of each image.
        found: predictions on the same images.
        count: number of classes.
        kind: 'bbox' or 'segm'.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for objects in (truth, found):
            side = COCO()
            side.dataset = _coco(objects, count)
            side.createIndex()
            sides.append(side)
        result = COCOeval(*sides, kind)
        result.params.maxDets = [100, 300, 1000]
        result.params.areaRng, result.params.areaRngLbl = [[0, 1e10]], ["all"]
        result.evaluate()
        result.accumulate()
    precision = result.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, K)
    precision = np.where(precision < 0, np.nan, precision)
    curves, scores, correct = [], [], []
    images = len(truth)
    for label in range(count):
        parts = [part for part in result.evalImgs[label * images : (label + 1) * images] if part is not None]
        counted = [~np.asarray(part["dtIgnore"][0], bool) for part in parts]
        values = [np.asarray(part["dtScores"], float)[keep] for part, keep in zip(parts, counted, strict=True)]
        hits = [np.asarray(part["dtMatches"][0])[keep] > 0 for part, keep in zip(parts, counted, strict=True)]
        total = sum(int((~np.asarray(part["gtIgnore"], bool)).sum()) for part in parts)
        all_values, all_hits = np.concatenate([[], *values]), np.concatenate([np.zeros(0, bool), *hits])
        curves.append(ScoreCurves.of(all_values, all_hits, total))
        scores.append(all_values)
        correct.append(all_hits)
    return Found(
        _mean(precision), _mean(precision[:1]), curves, np.concatenate([[], *scores]),
        np.concatenate([np.zeros(0, bool), *correct]),
    )  # fmt: skip


def _mean(precision: np.ndarray) -> np.ndarray:
    values = precision.reshape(-1, precision.shape[-1])
    there = ~np.isnan(values).all(axis=0)
    means = np.full(values.shape[1], np.nan)
    means[there] = values[:, there].mean(axis=0)
    return means


def _coco(images: Sequence[Objects], count: int) -> dict:
    annotations: list[dict] = []
    for number, objects in enumerate(images):
        for i, box in enumerate(objects.coco_boxes.tolist()):
            annotation = dict(
                id=len(annotations) + 1, image_id=number, category_id=int(objects.labels[i]), bbox=box,
                area=box[2] * box[3], iscrowd=int(objects.ignored[i]), score=float(objects.scores[i]),
            )  # fmt: skip
            if objects.masks is not None:
                annotation["segmentation"] = objects.masks[i]
            annotations.append(annotation)
    sizes = [dict(id=number, height=o.height, width=o.width) for number, o in enumerate(images)]
    return dict(images=sizes, annotations=annotations, categories=[dict(id=k, name=str(k)) for k in range(count)])


def overlaps(found: Objects, truth: Objects) -> np.ndarray:
    """IoU (P, T) of predictions and ground truth; for ignored ground truth the share of the prediction inside it."""
    from pycocotools import mask

    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    return np.asarray(mask.iou(found.coco_boxes, truth.coco_boxes, truth.ignored.astype(np.uint8).tolist()))


@dataclass
class Image:
    """Comparison of the predictions on one image with its ground truth, at one score threshold.

    Attributes:
        pairs: label of the truth and label of the prediction of each match; one of them is the number of classes for
            missed objects and for predictions on the background.
        errors: number of errors of each kind.
        hits: objects that were found, with the right class.
        objects: objects that count.
        predictions: predictions that count.
    """

    pairs: list[tuple[int, int]]
    errors: Counter[str]
    hits: int
    objects: int
    predictions: int

    @property
    def f1(self) -> float:
        """F1 of the image; NaN without objects and predictions."""
        total = self.objects + self.predictions
        return 2 * self.hits / total if total else float("nan")


def compare(truth: Objects, found: Objects, count: int, threshold: float) -> Image:
    """Compare predictions with the ground truth of an image.

    For the confusion matrix, each prediction is matched with at most one object, at an IoU of at least :data:`RIGHT`:
    first those of the same class, by descending score; then what is left, by descending IoU. A prediction that is in
    ignored ground truth does not count.

    The kinds of errors are those of TIDE (Bolya et al., 2020). A prediction that is not right is, in this order,

    - 'localisation': its best IoU with an object of its class is at least :data:`NEAR`, and below :data:`RIGHT`;
    - 'class': its IoU with an object of another class is at least :data:`RIGHT`;
    - 'duplicate': its IoU with an object of its class is at least :data:`RIGHT`, but another one has found it;
    - 'background': its IoU with every object is below :data:`NEAR`;
    - 'class and localisation': anything else.

    An object is 'missed' if no prediction has found it, and none with a wrong class or localisation is meant for it.
    """
    kept = found.scores >= threshold
    boxes, labels = found.boxes[kept], found.labels[kept]
    order = np.argsort(-found.scores[kept], kind="stable")
    part = Objects(boxes[order], labels[order], found.scores[kept][order], np.zeros(len(order), bool), None,
                   found.height, found.width)  # fmt: skip
    overlap = overlaps(part, truth)
    real = ~truth.ignored
    same = part.labels[:, None] == truth.labels[None]
    hits, taken = _greedy(overlap, same & real)
    other, other_taken = _closest(overlap * ~same, np.isin(np.arange(len(part)), list(hits)), taken | ~real)
    covered = np.atleast_1d((overlap[:, truth.ignored] >= RIGHT).any(axis=1))
    counts = [i for i in range(len(part)) if i in hits or i in other or not covered[i]]
    matched = {**hits, **other}
    pairs = [(int(truth.labels[matched[i]]) if i in matched else count, int(part.labels[i])) for i in counts]
    missed = np.flatnonzero(real & ~taken & ~other_taken)
    pairs += [(int(truth.labels[j]), count) for j in missed]
    errors = _errors(overlap, same, real, set(counts) - set(hits), taken)
    return Image(pairs, errors, len(hits), int(real.sum()), len(counts))


def _greedy(overlap: np.ndarray, allowed: np.ndarray) -> tuple[dict[int, int], np.ndarray]:
    """Match predictions by descending score with the free object of their class that they overlap most."""
    taken = np.zeros(overlap.shape[1], bool)
    matched = {}
    for i, row in enumerate(overlap):
        free = np.where(allowed[i] & ~taken, row, -1.0)
        if len(free) and free.max() >= RIGHT:
            matched[i] = int(free.argmax())
            taken[matched[i]] = True
    return matched, taken


def _closest(overlap: np.ndarray, used: np.ndarray, taken: np.ndarray) -> tuple[dict[int, int], np.ndarray]:
    """Match the remaining predictions and objects, those with the highest IoU first."""
    used, taken, new = used.copy(), taken.copy(), np.zeros(len(taken), bool)
    matched = {}
    for i, j in sorted(np.argwhere(overlap >= RIGHT).tolist(), key=lambda pair: -overlap[pair[0], pair[1]]):
        if not used[i] and not taken[j]:
            matched[i] = j
            used[i] = taken[j] = new[j] = True
    return matched, new


def _errors(
    overlap: np.ndarray, same: np.ndarray, real: np.ndarray, wrong: set[int], taken: np.ndarray
) -> Counter[str]:
    errors: Counter[str] = Counter()
    meant = np.zeros(overlap.shape[1], bool)  # objects for which there is a prediction with one error
    for i in sorted(wrong):
        own, others = np.where(same[i] & real, overlap[i], 0.0), np.where(~same[i] & real, overlap[i], 0.0)
        best, best_other = max(own, default=0.0), max(others, default=0.0)
        if NEAR <= best < RIGHT:
            kind = "localisation"
            meant[own.argmax()] = True
        elif best_other >= RIGHT:
            kind = "class"
            meant[others.argmax()] = True
        elif best >= RIGHT:
            kind = "duplicate"
        elif max(best, best_other) < NEAR:
            kind = "background"
        else:
            kind = "class and localisation"
        errors[kind] += 1
    errors["missed"] = int((real & ~taken & ~meant).sum())
    return errors
