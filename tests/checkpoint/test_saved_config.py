"""The config in a checkpoint is read as data."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from mmengine.config import Config

from mmgcvit.checkpoint.saved_config import saved_model


def saved(text: object) -> dict:
    return saved_model({"meta": {"cfg": text}})


def test_model_of_a_written_config():
    model = dict(
        type="GCViTClassifier",
        backbone=dict(arch=dict(depths=(2, 2, 6, 2)), pad="window", window_size=7),
        data_preprocessor=dict(mean=[0.5, -0.5], std=(1.0,), mixup=None),
        options={"a.b": 1},
    )
    text = Config(dict(max_epochs=3, model=dict(model, bound=math.inf), work_dir="x")).pretty_text
    found = saved(text)
    assert found["backbone"] == dict(arch=dict(depths=[2, 2, 6, 2]), pad="window", window_size=7)
    assert found["data_preprocessor"] == dict(mean=[0.5, -0.5], std=[1.0], mixup=None)
    assert "bound" not in found


@pytest.mark.parametrize(
    "text",
    [
        None,
        3,
        "",
        "model = 3",
        "model = dict(",
        "other = dict(a=1)",
        "model = \0",
        "(" * 10_000,
        "model = " + "-" * 10_000,
    ],
    ids=repr,
)
def test_anything_else_has_no_model(text: object):
    assert saved(text) == {}
    assert saved_model({"meta": text}) == saved_model({}) == {}


def test_nothing_is_executed(tmp_path: Path):
    path = tmp_path / "written"
    call = f"__import__('pathlib').Path({str(path)!r}).touch()"
    assert saved(f"{call}\nmodel = dict(a={call}, b=[{call}], c=dict(d={call}, e=1), dict=2)") == dict(
        c=dict(e=1), dict=2
    )
    assert saved(f"model = {call}") == {}
    assert not path.exists()
