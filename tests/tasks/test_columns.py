"""Annotations that are checked at once with arrays: the same results as one by one, for every kind of value."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgcvit.datasets import json_lists
from mmgcvit.tasks.detection import coco
from mmgcvit.tasks.detection.coco import Annotations, Evaluation, read_coco
from mmgcvit.tasks.detection.columns import Columns, columns

HUGE = 10**400
SQUARE = [10.5, 10, 30, 10, 30, 30, 10.5, 30]
RUNS = {"size": [48, 64], "counts": [100, 20, 48 * 64 - 120]}
#: Values for each key; the first ones are as they should be.
VALUES: dict[str, list[Any]] = {
    "id": [None, None, None, 7, 7.0, 0, "a", True, [], HUGE, -5],
    "image_id": [1, 2, 3, 9, "1", 2.0, None, HUGE],
    "category_id": [1, 2, 3, 4, "1", 1.0, False, {}],
    "bbox": [
        [10.5, 10, 19.5, 20], [10, 10, 20, 20], [10, 10, 30, 30], [0, 0, 64, 48], [-1.5, 0, 20, 20], [60, 40, 5, 8],
        [5, 5, 0.5, 9], [70, 5, 9, 9], [-30, 5, 20, 9], [1, 2, 3], [1, 2, 3, True], [1, 2, 3, "4"], None, "box",
        [float("nan"), 1, 5, 5], [1, 1, float("inf"), 5], [1, 1, 1e8, 5], [1, 1, HUGE, 5], [[1], 2, 3, 4],
    ],
    "area": [400, 390.5, 1e9, 0, -1, "400", None, float("nan"), True, HUGE, 1e301],
    "iscrowd": [0, 0, 1, True, 2, "0", None, 0.0],
    "ignore": [0, False, 1, None, True],
    "segmentation": [
        [SQUARE], [SQUARE, [1, 1, 9, 1, 9, 9]], [SQUARE, [1, 1, 9, 1]], [[1, 1, 9, 1]], [[*SQUARE, 1]], [[]], [], None,
        "mask", [SQUARE, "x"], [[*SQUARE[:7], True]], [[*SQUARE[:7], "1"]], [[*SQUARE[:7], float("nan")]],
        [[*SQUARE[:7], HUGE]], [[*SQUARE[:7], 1e8]], [[0, 0, 0, 9e6] * 3], [SQUARE * 40], [100, 200],
        RUNS, {**RUNS, "size": [64, 48]}, {**RUNS, "counts": [3, 4]}, {"size": [48, 64]}, {}, {**RUNS, "counts": "zzz"},
        {**RUNS, "size": [48, True]}, {**RUNS, "size": [48, HUGE]},
    ],
}  # fmt: skip
EVALUATIONS = [None, Evaluation(boxes=True, masks=True), Evaluation(True, False, True), Evaluation(True, True, True)]


def random_file(seed: int, odd: float) -> dict:
    """A file of 40 annotations; each value but the id is odd with a probability."""
    rng = np.random.default_rng(seed)
    annotations: list[Any] = []
    for i in range(40):
        entry: dict[str, Any] = {}
        for key, values in VALUES.items():
            value = values[rng.integers(len(values)) if rng.random() < odd else rng.integers(2)]
            entry[key] = i + 1 if value is None and key == "id" else value
        for key in VALUES:
            if rng.random() < odd / 4:
                del entry[key]
        annotations.append(entry if rng.random() > odd / 10 else [entry, None, 3][rng.integers(3)])
    images = [dict(id=i, file_name=f"{i}.jpg", width=64, height=48) for i in (1, 2, 3)]
    categories = [dict(id=i, name=name) for i, name in ((1, "a"), (2, "b"), (3, "c"))]
    return dict(annotations=annotations, images=images, categories=categories)


def one_by_one(part: list, masks: bool) -> Columns:
    """Columns without a usual row."""
    found = columns([*part, None], masks)  # an entry that is no object
    assert not found.usual.any()
    return columns(part and [None] * len(part), masks)


@pytest.mark.parametrize("odd", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("part", [1, 7, 512])
def test_same_results_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, odd: float):
    path = tmp_path / "a.json"
    monkeypatch.setattr(json_lists, "PART", part)
    kinds = set()
    for seed in range(25):
        path.write_text(json.dumps(random_file(seed, odd)))
        evaluated = EVALUATIONS[seed % len(EVALUATIONS)]
        classes = [None, ("a", "b"), ("c", "a")][seed % 3]

        def read(evaluated: Evaluation | None = evaluated, classes: Any = classes, seed: int = seed) -> Annotations:
            return read_coco(path, classes, "images", seed % 5 > 1, False, evaluated)

        found = read()
        with monkeypatch.context() as patch:
            patch.setattr(coco, "columns", one_by_one)
            expected = read()
        assert repr(found) == repr(expected)  # repr: types of numbers, too
        kinds |= {problem.kind for problem in found.problems}
    if odd > 0.1:
        assert kinds >= {
            "annotation",
            "image unknown",
            "ignore",
            "box",
            "area",
            "category",
            "iscrowd",
            "mask",
            "beyond",
        }


def test_most_annotations_are_checked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = random_file(0, 0)
    content["annotations"][7]["category_id"] = 3
    content["annotations"][11]["iscrowd"], content["annotations"][11]["segmentation"] = 1, RUNS
    content["annotations"][13]["bbox"] = [-1.5, 0, 20, 20]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=1))
    alone = []
    add = coco._Objects.add
    monkeypatch.setattr(coco._Objects, "add", lambda self, entry, i: (alone.append(i), add(self, entry, i))[1])
    found = read_coco(path, ("a", "b"), "", True)
    assert alone == [13]
    assert [problem.kind for problem in found.problems] == ["category", "beyond", "polygon"]
    assert (found.objects, found.crowds, sum(len(image.boxes) for image in found.images)) == (40, 1, 38)


def test_memory(tmp_path: Path):
    polygon = [float(value) for value in range(200)]  # 32 bytes for each number, once decoded
    entry = dict(image_id=1, category_id=1, bbox=[0, 0, 40, 40], area=9, iscrowd=0, segmentation=[polygon])
    content = random_file(0, 0)
    content["annotations"] = [dict(entry, id=i) for i in range(1, 4001)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    tracemalloc.start()
    try:
        found = read_coco(path, with_mask=True)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.images[0].boxes) == 4000
    assert peak < 2.5 * path.stat().st_size + 8e6  # the file as bytes and as text, boxes, and a part of the entries


def test_columns():
    entries = [
        dict(id=1, image_id=4, category_id=2, bbox=[1, 2, 3.5, 4], area=5, segmentation=[[1, 2, 9, 2.5, 4, 8]]),
        dict(id=2, image_id=4, category_id=2, bbox=[1, 2, 3, 4], area=5, iscrowd=1, segmentation=RUNS),
        dict(id=3, image_id=5, category_id=1, bbox=[1, 2, 3, 1e8], area=5, iscrowd=0, segmentation=[]),
    ]
    found = columns(entries, masks=True)
    assert (found.ids, found.image_ids, found.category_ids) == ([1, 2, 3], [4, 4, 5], [2, 2, 1])
    assert found.usual.tolist() == [True, True, False]
    assert found.boxes[0].tolist() == [1, 2, 3.5, 4]
    assert (found.crowds.tolist(), found.without_iscrowd.tolist()) == ([False, True, False], [True, False, False])
    np.testing.assert_array_equal(found.around, [[1, 2, 9, 8], [np.nan] * 4, [np.nan] * 4])
    assert found.run_sizes.tolist() == [[0, 0], [48, 64], [0, 0]]
    assert np.isnan(columns(entries, masks=False).around).all()
