"""Options of a prediction that a task does not have."""

from __future__ import annotations

from typing import Any

import pytest

from mmgcvit.errors import UsageError
from mmgcvit.tasks.base import PredictionOptions

NAMES = ("tta", "tile", "ann_file")


def test_options_that_are_not_given_are_not_refused():
    PredictionOptions("cpu", overlap=0.5, batch_size=4).refuse(NAMES, "no")
    PredictionOptions(tta=True).refuse(("tile", "ann_file"), "no")


@pytest.mark.parametrize(
    ("given", "shown"),
    [(dict(tta=True), "--tta"), (dict(tile=64), "--tile 64"), (dict(ann_file=""), "--ann-file ''")],
    ids=["tta", "tile", "ann_file"],
)
def test_given_options_are_refused(given: dict[str, Any], shown: str):
    with pytest.raises(UsageError) as caught:
        PredictionOptions(**given).refuse(NAMES, "not supported for these models")
    assert str(caught.value) == f"{shown}: not supported for these models; omit it"
