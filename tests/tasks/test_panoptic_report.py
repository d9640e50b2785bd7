"""Numbers of a panoptic report: crowds and pixels without a class do not count, as in the PQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from panoptic_fixtures import METAINFO, dataset_of, write_panoptic

pytest.importorskip("mmdet")

from mmdet.structures import DetDataSample
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import PixelData

from mmgcvit.report.page import Section
from mmgcvit.runtime.drawing import DISTINCT
from mmgcvit.tasks.panoptic import report as module
from mmgcvit.tasks.panoptic.annotations import ids_of
from mmgcvit.tasks.panoptic.report import PanopticReport

VALUES = {70_001: 2, 70_002: 2, 300: 3, 4_000_000: 1000, 7: 2001, 9: 3001}  # mmdet's prediction of each segment


@pytest.fixture
def found(tmp_path: Path, monkeypatch) -> tuple[PanopticReport, dict[str, np.ndarray]]:
    """The report on perfect predictions but for a corner of the sky, and a wrong class on crowds and unknown pixels."""
    init_default_scope("mmdet")
    write_panoptic(tmp_path)
    data = DATASETS.build(dataset_of(tmp_path, test_mode=True, pipeline=[]))
    report = PanopticReport(METAINFO["classes"], DISTINCT[:4])
    samples = []
    for number in (1, 2):
        ids = ids_of((tmp_path / f"panoptic/{number}.png").read_bytes())
        prediction = np.full(ids.shape, 3, np.int32)  # grass where there is no class
        for key, value in VALUES.items():
            prediction[ids == key] = value
        if number == 2:
            prediction[40:50, 10:21] = 3  # on the crowd
        prediction[3:5, :10] = 3  # 20 pixels of sky
        segments = PixelData(sem_seg=torch.from_numpy(prediction)[None])
        samples.append(DetDataSample(metainfo=dict(img_id=number, img_path=""), pred_panoptic_seg=segments))
    report.add({}, samples, data)
    counts: dict[str, np.ndarray] = {}
    monkeypatch.setattr(module, "class_counts", lambda given, *_: counts.update(given))
    report.count(Section("data", "Data"), DATASETS.build(dataset_of(tmp_path, pipeline=[])))
    return report, counts


def test_pixels_that_do_not_count_are_not_wrong(found):
    report, _ = found
    first, second = 101 * (75 - 3), 97 * (64 - 3) - 10 * 11
    np.testing.assert_allclose(report.wrong, [100 * 20 / first, 100 * 20 / second])
    for (*_, packed), height in zip(report.kept, (75, 64), strict=True):
        wrong = module.labels_of(packed)
        assert wrong.shape[0] == height
        assert wrong[3:5, :10].all()
        assert wrong.sum() == 20


def test_segments_of_both_splits_are_counted_without_crowds(found):
    """The crowd is one of four boxes."""
    assert {name: list(row) for name, row in found[1].items()} == {"training": [2, 3, 2, 2], "validation": [2, 3, 2, 2]}
