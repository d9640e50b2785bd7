"""Boxes: conclusions from all boxes of a file."""

from __future__ import annotations

from mmgcvit.tasks.detection.boxes import BoxCounts


def counted(boxes: list[tuple], polygons: bool = False, corners: bool = False) -> list:
    counts = BoxCounts()
    for x, y, w, h in boxes:
        box = (x, y, x + w, y + h) if corners else (x, y, w, h)
        counts.add(box, 100, 60)
        if polygons:
            counts.compare(box, (x, y, x + w, y + h))
    return list(counts.problems("a.json"))


BOXES = [(40 + i, 20 + i, 30, 20) for i in range(10)]


def test_fitting_boxes():
    assert counted(BOXES, polygons=True) == []
    assert counted([(-1, 0, 102, 61)] * 9) == []  # rounded


def test_corners_in_the_place_of_sizes():
    (problem,) = counted(BOXES, corners=True)
    assert problem.breaks
    assert str(problem) == (
        "a.json: 10 of 10 boxes reach beyond their images; 10 fit into them if bbox is read as corners, "
        "[x1, y1, x2, y2]; allowed: [x, y, width, height]"
    )
    (problem,) = counted(BOXES, polygons=True, corners=True)
    assert problem.breaks
    assert "and 10 of 10 to their polygons, if bbox is read as corners" in problem.what
    small = [(8 + i, 8 + i, 10, 10) for i in range(10)]  # no box reaches beyond its image
    assert counted(small, corners=True) == []
    (problem,) = counted(small, polygons=True, corners=True)
    assert problem.breaks


def test_few_boxes_are_no_proof():
    (problem,) = counted(BOXES[:4], polygons=True, corners=True)
    assert not problem.breaks
    assert str(problem) == (
        "a.json: 4 of 4 boxes reach beyond their images, such as [40, 20, 70, 40] in an image of 100 x 60"
    )


def test_boxes_that_reach_beyond_images_on_purpose():
    (problem,) = counted([(-20, 5, 60, 80)] * 20)
    assert (problem.kind, problem.breaks) == ("beyond", False)


def test_boxes_that_do_not_fit_their_polygons():
    counts = BoxCounts()
    for x, y, w, h in BOXES:
        counts.add((x, y, w, h), 100, 60)
        counts.compare((x, y, w, h), (x, 60 - y - h, x + w, 60 - y))  # y counted from the bottom
    (problem,) = counts.problems("a.json")
    assert (problem.what, problem.breaks) == ("7 of 10 boxes do not fit their polygons", False)
