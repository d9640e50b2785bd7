"""Figures and tables of a report that several tasks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from mmgcvit.report import plots
from mmgcvit.report.base import GALLERY
from mmgcvit.report.numbers import THRESHOLDS, Calibration, ScoreCurves, ratio, row_shares, worst_and_typical
from mmgcvit.report.page import Figure, Note, Table
from mmgcvit.runtime.drawing import Colour
from mmgcvit.utils.text import counted

MAX_MATRIX = 40  # classes of a confusion matrix that is drawn
CONFUSIONS = 10  # rows in the table of confusions
OPTIMISTIC = "chosen on these images, so F1 is optimistic"  # of thresholds
FEW = 30  # objects or images of a class below which its numbers say little


def ranked(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the classes that a bar plot shows, and words for the caption if some are left out."""
    if len(values) <= plots.MAX_BARS:
        return np.arange(len(values)), ""
    order = np.argsort(np.where(np.isnan(values), np.inf, values), kind="stable")[: plots.MAX_BARS]
    return order, f"; the {len(order)} lowest of {counted(len(values), 'class')} are shown"


def class_counts(counts: Mapping[str, np.ndarray], classes: Sequence[str], unit: str, percent: bool = False) -> Figure:
    """Bar plot of how many objects, images or pixels of each class each split has; with ``percent`` without counts."""
    first = next(iter(counts.values()))
    order: Any = range(len(classes))
    words = ""
    if len(classes) > plots.MAX_BARS:
        by_count, half = np.argsort(-np.asarray(first), kind="stable"), plots.MAX_BARS // 2
        order = np.concatenate([by_count[:half], by_count[-half:]])
        words = f" The {half} most frequent and the {half} rarest of {counted(len(classes), 'class')} are shown."
    shown, texts = {}, {}
    for name, row in counts.items():
        shown[name] = 100 * np.asarray(row, float)[list(order)] / max(np.sum(row), 1)
        texts[name] = [
            f"{value:.2f} %" if percent else f"{value:,}" for value in (shown[name] if percent else row[list(order)])
        ]
    content = plots.bars([classes[i] for i in order], shown, f"share of the {unit} of a split (%)", texts=texts)
    missing = [classes[i] for i in range(len(classes)) if not all(row[i] for row in counts.values())]
    note = (
        f" Without any in one of the splits: {', '.join(missing[:8])}{' ...' * (len(missing) > 8)}." if missing else ""
    )
    numbers = "" if percent else " The numbers are counts."
    caption = f"Rare classes are usually learned worse, and their results vary more.{numbers}{words}{note}"
    return Figure.plot("classes", f"{unit.capitalize()} of each class", content, caption)


def size_figure(sizes: Mapping[str, np.ndarray], unit: str, label: str) -> Figure | Note:
    """Distribution of sizes in pixels, on a logarithmic axis."""
    found = {name: row[row > 0] for name, row in sizes.items() if len(row) and (row > 0).any()}
    if not found:
        return Note(f"There are no sizes of {unit} to show.")
    values = np.concatenate(list(found.values()))
    low, high = values.min(), values.max()
    if high - low < 1:
        return Note(f"All {unit} have the same area, that of {low:.0f} x {low:.0f} pixels.")
    bins = np.linspace(low * 0.95, high * 1.05, 21)
    content = plots.histogram(found, label, unit, bins)
    middle = ", ".join(f"{np.median(row):.0f} px ({name})" for name, row in found.items())
    caption = f"Median: {middle}. Validation data should look like training data."
    return Figure.plot(f"sizes_{unit}", f"Sizes of {unit}", content, caption)


def score_figures(
    curves: Sequence[ScoreCurves], classes: Sequence[str], palette: Sequence[Colour], score: str
) -> list[Any]:
    """Precision-recall and F1 curves, with the threshold at which F1 of all classes together is highest."""
    if not curves:
        return [
            Note(f"There are no curves over the score: {counted(len(classes), 'class is', 'classes are')} too many.")
        ]
    there = [i for i, curve in enumerate(curves) if curve.total]
    total = reduce(add, curves)
    if not there or not total.hits.any():
        return [Note("Nothing was predicted correctly at any score: there are no precision-recall and F1 curves.")]
    shown = there if len(there) <= plots.MAX_BARS else []
    words = "" if shown else f" {counted(len(there), 'class is', 'classes are')} too many to be drawn one by one."
    names, colours = [classes[i] for i in shown], [palette[i] for i in shown]
    threshold, best = total.best
    at = int(np.argmin(abs(THRESHOLDS - threshold)))
    pr = plots.class_curves(
        [curves[i].recall for i in shown], [curves[i].precision for i in shown], (total.recall, total.precision), names,
        colours, ("recall", "precision"), (total.recall[at], total.precision[at]),
    )  # fmt: skip
    f1 = plots.class_curves(
        THRESHOLDS, [curves[i].f1 for i in shown], (THRESHOLDS, total.f1), names, colours,
        (f"threshold on the {score}", "F1"), (threshold, best),
    )  # fmt: skip
    circle = f"The circle is the best threshold for all classes together, {threshold:.2f}, {OPTIMISTIC}."
    return [
        Figure.plot(
            "precision_recall", "Precision and recall", pr,
            "Precision is the share of predictions that are right, recall the share of what there is that is found. "
            "The closer to the upper right corner, the better. Each point of a line is a score threshold, in steps of "
            "0.01. The left end is the highest threshold with predictions; if many predictions reach it, recall is "
            f"already high there. {circle}{words}",
        ),
        Figure.plot(
            "f1", "F1 over the score threshold", f1,
            "F1 is the harmonic mean of precision and recall. With a flat top, the threshold does not matter much. "
            f"{circle} There F1 is {best:.3f}.{words}",
        ),
    ]  # fmt: skip


def confusion_items(
    matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], unit: str, background: bool = False
) -> list[Any]:
    """Confusion matrix as a plot, unless it has too many classes, and the most frequent confusions as a table.

    With ``background``, the last row is that of predictions without an object, of which there are no shares.
    """
    share = row_shares(matrix, background)
    items: list[Any] = []
    if len(rows) <= MAX_MATRIX:
        what = "Numbers are counts" if np.issubdtype(matrix.dtype, np.integer) else "Numbers are percent of a row"
        caption = (
            f"Row: true class, column: prediction, in {unit}. {what if len(rows) <= 16 else 'No numbers are printed'}; "
            "the darker, the larger the share of the row. A good model is dark on the diagonal only."
            f"{f' Row {rows[-1]!r} has no colours, as there is no total to divide by.' if background else ''}"
        )
        items.append(Figure.plot("confusion", "Confusion matrix", plots.matrix(matrix, share, rows, columns), caption))
    else:
        items.append(Note(f"The confusion matrix of {counted(len(rows), 'class')} is too large to be drawn."))
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    listed = []
    for place in order:
        y, x = np.unravel_index(place, wrong.shape)
        if wrong[y, x]:
            part = "" if np.isnan(share[y, x]) else f"{100 * share[y, x]:.1f} %"
            listed.append((rows[y], columns[x], f"{wrong[y, x]:,.0f}", part))
    if not listed:
        items.append(Note("Nothing was confused."))
        return items
    header = ("true", "predicted", unit, "share of true")
    items.append(
        Table("Most frequent confusions", header, listed, "The entries beside the diagonal with most counts.", 2)
    )
    return items


def calibration_figure(calibration: Calibration, right: str, unit: str) -> Figure | Note:
    """Reliability diagram with the expected calibration error."""
    total = calibration.count.sum()
    if not total:
        return Note("There are no predictions: calibration cannot be computed.")
    confidence = ratio(calibration.confidence, calibration.count)
    accuracy = ratio(calibration.correct, calibration.count)
    content = plots.reliability(confidence, accuracy, calibration.count, "share that is right")
    mean, share = calibration.confidence.sum() / total, calibration.correct.sum() / total
    tendency = "too confident" if mean > share else "not confident enough"
    caption = (
        f"Predictions are grouped by confidence; the line shows the share of {right}. The larger a point, the more "
        f"predictions; groups of fewer than {plots.FEW_IN_BIN} are pale. Below the dotted line, the model "
        f"is too confident. Expected calibration error (ECE): {calibration.error:.3f}, the mean distance from the "
        f"dotted line over {total:,.0f} {unit}. The model is {tendency}: its mean confidence is {mean:.2f}, "
        f"and a share of {share:.2f} is right."
    )
    return Figure.plot("calibration", "Calibration", content, caption)


def gallery_groups(quality: Sequence[float]) -> list[tuple[str, str, list[int]]]:
    """Choose the images of a gallery: the worst and typical ones, or all if there are no more.

    Args:
        quality: one number per image; images with NaN are left out.

    Returns:
        For each group a name for its files, the beginning of a title, and the indices of its images.
    """
    worst, typical = worst_and_typical(np.asarray(quality, float), GALLERY)
    if not typical:
        return (
            [("image", f"All {counted(len(worst), 'image')}" if len(worst) > 1 else "The only image", worst)]
            if worst
            else []
        )
    return [("worst", "Worst images", worst), ("typical", "Typical images", typical)]


def gallery_order(groups: Sequence[tuple[str, str, list[int]]], quality: str) -> str:
    """Words on the order of the images of :func:`gallery_groups`, by the name of their quality."""
    if not groups:
        return "No image can be compared."
    if len(groups) == 1:
        return f"{groups[0][1]}, the lowest {quality} first."
    return f"The worst images have the lowest {quality}; the typical ones are next to the median."
