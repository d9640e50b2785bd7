"""Numbers of a report against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from mmgcvit.report.classification import confusion
from mmgcvit.report.numbers import THRESHOLDS, Calibration, ScoreCurves, row_shares, spread, worst_and_typical
from mmgcvit.report.parts import gallery_groups, gallery_order
from mmgcvit.report.segmentation import borders, iou


def test_calibration_error_by_hand() -> None:
    """Bin 0.9 to 1: confidence 0.95, two of four right; bin 0.2 to 0.3: confidence 0.25, one of one right."""
    calibration = Calibration()
    calibration.add(np.array([0.95, 0.95]), np.array([True, False]))
    calibration.add(np.array([0.95, 0.95, 0.25]), np.array([False, True, True]))
    assert calibration.count.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 4]
    assert calibration.error == pytest.approx((4 * 0.45 + 1 * 0.75) / 5)


def test_calibration_limits() -> None:
    """A confidence of 1 belongs to the last bin; without predictions there is no error."""
    calibration = Calibration()
    assert np.isnan(calibration.error)
    calibration.add(np.array([1.0, 0.0]), np.array([True, False]))
    assert calibration.count[[0, 9]].tolist() == [1, 1]
    assert calibration.error == 0


def test_background_row_has_no_shares() -> None:
    matrix = np.array([[3, 0, 1], [0, 0, 0], [5, 2, 0]])
    np.testing.assert_allclose(row_shares(matrix), [[0.75, 0, 0.25], [np.nan] * 3, [5 / 7, 2 / 7, 0]])
    np.testing.assert_allclose(row_shares(matrix, background=True), [[0.75, 0, 0.25], [np.nan] * 3, [np.nan] * 3])


def test_gallery_of_few_images_has_all_of_them() -> None:
    groups = gallery_groups([0.5, float("nan"), 0.2, 0.9])
    assert groups == [("image", "All 3 images", [2, 0, 3])]
    assert gallery_order(groups, "F1") == "All 3 images, the lowest F1 first."
    assert [(name, len(chosen)) for name, _, chosen in gallery_groups(np.linspace(0, 1, 20).tolist())] == [
        ("worst", 6),
        ("typical", 6),
    ]
    assert gallery_groups([float("nan")]) == []


def test_score_curves_and_best_threshold_by_hand() -> None:
    """Scores 0.9 right, 0.6 right, 0.4 wrong, of 3 objects: F1 is highest, 4 / 5, for thresholds from 0.41 to 0.6."""
    curve = ScoreCurves.of(np.array([0.4, 0.9, 0.6]), np.array([False, True, True]), 3)
    at = {round(float(t), 2): i for i, t in enumerate(THRESHOLDS)}
    assert [curve.hits[at[t]] for t in (0.0, 0.4, 0.5, 0.7, 0.95)] == [2, 2, 2, 1, 0]
    assert [curve.predicted[at[t]] for t in (0.0, 0.5, 0.7, 0.95)] == [3, 2, 1, 0]
    assert curve.precision[at[0.0]] == pytest.approx(2 / 3)
    assert np.isnan(curve.precision[at[0.95]])
    assert curve.recall[at[0.7]] == pytest.approx(1 / 3)
    threshold, best = curve.best
    assert best == pytest.approx(0.8)
    assert threshold == pytest.approx(0.5)  # the middle
    double = curve + curve
    assert double.total == 6
    assert double.best == pytest.approx(curve.best)


def test_f1_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(57), rng.random(57) < 0.3
    curve = ScoreCurves.of(scores, labels, float(labels.sum()))
    for i in (0, 13, 50, 88):
        assert curve.f1[i] == pytest.approx(f1_score(labels, scores >= THRESHOLDS[i], zero_division=0))


@pytest.mark.parametrize(("total", "f1"), [(0, float("nan")), (4, 0.0)])
def test_nothing_found_has_no_best_threshold(total: int, f1: float) -> None:
    best, value = ScoreCurves.of(np.zeros(0), np.zeros(0, bool), total).best
    assert np.isnan(best)
    assert value == pytest.approx(f1, nan_ok=True)


def test_confusion_matrix_has_rows_of_true_classes() -> None:
    found = confusion(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0]), 4)
    assert found.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]


def test_iou_by_hand() -> None:
    """Class 0: 3 right, 1 as class 1, 2 of class 1 as 0: 3 / 6; class 1: 4 / 7; class 2 does not occur."""
    assert iou(np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])) == pytest.approx([3 / 6, 4 / 7, np.nan], nan_ok=True)


def test_borders_are_two_pixels_on_each_side() -> None:
    labels = np.zeros((3, 9), np.uint8)
    labels[:, 5:] = 255
    assert borders(labels).tolist() == [[x in (3, 4, 5, 6) for x in range(9)]] * 3


def test_worst_and_typical_images() -> None:
    quality = np.array([0.9, np.nan, 0.1, 0.5, 0.2, 0.6, 0.7, 0.8, 1.0])
    worst, typical = worst_and_typical(quality, 2)
    assert worst == [2, 4]
    assert len(typical) == 2
    assert {quality[i] for i in typical} <= {0.5, 0.6, 0.7, 0.8}
    assert worst_and_typical(quality[:1], 2) == ([0], [])
    assert worst_and_typical(np.array([np.nan]), 2) == ([], [])


def test_spread_covers_the_whole_range() -> None:
    assert spread(3, 11) == [0, 5, 10]
    assert spread(5, 2) == [0, 1]
    assert spread(5, 0) == []
