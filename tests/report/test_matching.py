"""Kinds of errors, confusion matrix and AP from constructed boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mmgcvit.report.matching import Objects, compare, evaluate_objects

Row = tuple[float, float, float, float, int, float]


def objects(rows: Sequence[Row] = (), ignored: Sequence[int] = (), side: int = 200) -> Objects:
    """Objects from rows of x1, y1, x2, y2, label, score."""
    table = np.array(rows, float).reshape(-1, 6)
    there = np.isin(np.arange(len(table)), ignored)
    return Objects(table[:, :4], table[:, 4].astype(int), table[:, 5], there, None, side, side)


NAN = float("nan")
OBJECT = (0, 0, 100, 100, 0, NAN)


@pytest.mark.parametrize(
    ("box", "kind", "missed", "pairs"),
    [
        ((0, 0, 100, 60, 0, 0.9), None, 0, [(0, 0)]),  # IoU 0.6
        ((0, 0, 100, 60, 1, 0.9), "class", 0, [(0, 1)]),
        ((0, 0, 100, 40, 0, 0.9), "localisation", 0, [(2, 0), (0, 2)]),  # IoU 0.4
        ((0, 0, 100, 40, 1, 0.9), "class and localisation", 1, [(2, 1), (0, 2)]),
        ((150, 150, 190, 190, 0, 0.9), "background", 1, [(2, 0), (0, 2)]),
        ((0, 0, 100, 60, 0, 0.1), None, 1, [(0, 2)]),  # below the threshold
    ],
)
def test_kind_of_error_and_pairs(box: Row, kind: str | None, missed: int, pairs: list[tuple[int, int]]) -> None:
    found = compare(objects([OBJECT]), objects([box]), 2, 0.3)
    assert {name: n for name, n in found.errors.items() if n and name != "missed"} == ({kind: 1} if kind else {})
    assert found.errors["missed"] == missed
    assert found.pairs == pairs


def test_second_box_of_an_object_is_a_duplicate() -> None:
    boxes = [(0, 0, 100, 90, 0, 0.6), (0, 0, 100, 100, 0, 0.9)]
    found = compare(objects([OBJECT]), objects(boxes), 1, 0.3)
    assert +found.errors == {"duplicate": 1}
    assert (found.hits, found.objects, found.predictions) == (1, 1, 2)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.pairs == [(0, 0), (1, 0)]


def test_right_class_comes_before_a_wrong_one_that_overlaps_more() -> None:
    boxes = [(0, 0, 100, 100, 1, 0.95), (0, 0, 100, 80, 0, 0.5)]
    found = compare(objects([OBJECT]), objects(boxes), 2, 0.3)
    assert found.hits == 1
    assert sorted(found.pairs) == [(0, 0), (2, 1)]
    assert +found.errors == {"class": 1}


def test_predictions_inside_ignored_regions_do_not_count() -> None:
    truth = objects([OBJECT, (0, 120, 200, 200, 0, NAN)], ignored=[1])
    found = compare(truth, objects([(10, 130, 40, 160, 0, 0.9), (0, 0, 99, 99, 0, 0.8)]), 1, 0.3)
    assert (found.hits, found.objects, found.predictions) == (1, 1, 1)
    assert not +found.errors
    assert found.f1 == 1


def test_images_without_objects_or_predictions() -> None:
    assert np.isnan(compare(objects(), objects(), 2, 0.3).f1)
    assert compare(objects(), objects([(0, 0, 9, 9, 1, 0.9)]), 2, 0.3).pairs == [(2, 1)]
    assert compare(objects([OBJECT]), objects(), 2, 0.3).errors["missed"] == 1


def test_ap_and_counts_by_hand() -> None:
    """Two objects of class 0, one found exactly (0.9), one at an IoU of 0.6 (0.8); one box on the background (0.7).

    AP50 is 1; at IoU 0.65 and above one of two is found with precision 1: 51 of the 101 recalls. Class 1 has one object
    that is not found, class 2 none.
    """
    truth = [objects([OBJECT, (0, 0, 50, 50, 1, NAN)]), objects([OBJECT])]
    found = [
        objects([(0, 0, 100, 100, 0, 0.9)]),
        objects([(0, 0, 100, 60, 0, 0.8), (150, 150, 190, 190, 0, 0.7), (150, 0, 190, 90, 2, 0.6)]),
    ]
    result = evaluate_objects(truth, found, 3)
    assert result.ap50 == pytest.approx([1, 0, np.nan], nan_ok=True)
    assert result.ap == pytest.approx([(3 * 1 + 7 * 51 / 101) / 10, 0, np.nan], nan_ok=True)
    assert [curve.total for curve in result.curves] == [2, 1, 0]
    assert result.curves[0].hits[[0, 75, 85, 95]].tolist() == [2, 2, 1, 0]
    assert result.curves[0].predicted[[0, 75, 85, 95]].tolist() == [3, 2, 1, 0]
    assert sorted(zip(result.scores, result.correct, strict=True)) == [(0.6, 0), (0.7, 0), (0.8, 1), (0.9, 1)]


def test_no_predictions_at_all() -> None:
    result = evaluate_objects([objects([OBJECT])], [objects()], 2)
    assert result.ap == pytest.approx([0, np.nan], nan_ok=True)
    assert len(result.scores) == 0
