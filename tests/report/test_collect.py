"""What is read from work directories: resumed, interrupted and odd ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mmgcvit.engine.evaluation import is_of_class
from mmgcvit.errors import UsageError
from mmgcvit.report.collect import best_checkpoint, collect, may_go_on, metric_names, series

ITERATIONS = "train_cfg = dict(type='IterBasedTrainLoop', max_iters=100, val_interval=30)"
LOG = """2026/11/28 08:24:58 - mmengine - INFO -
------------------------------------------------------------
System environment:
    Python: 3.11
    PyTorch compiling details: PyTorch built with:
  - GCC 13.3

    MMEngine: 0.10.12
------------------------------------------------------------
11/28 08:34:59 - mmengine - INFO - Iter(train) [100/100]
"""


def start(folder: Path, stamp: str, rows: list[dict], config: str = ITERATIONS, tail: str = "") -> None:
    """Write what one start of a run leaves."""
    data = folder / stamp / "vis_data"
    data.mkdir(parents=True)
    (data / "config.py").write_text(config + "\n")
    (data / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    (folder / stamp / f"{stamp}.log").write_text(LOG)


def training(*iterations: int, loss: float = 1.0) -> list[dict]:
    return [dict(loss=loss, lr=0.1, time=0.5, iter=i, step=i) for i in iterations]


def test_resumed_run_replaces_what_was_repeated(tmp_path: Path) -> None:
    """The first start went on until iteration 60 after the checkpoint of iteration 30; both validated at 60."""
    metric = dict(mIoU=50.0, step=0)
    start(
        tmp_path, "20260101_000000", [*training(20), *training(30), metric, *training(40, 60), {**metric, "mIoU": 1.0}]
    )
    start(tmp_path, "20260102_000000", [*training(40, 60, loss=2.0), {**metric, "mIoU": 60.0}, *training(80, loss=2.0)])
    run = collect(tmp_path)
    assert series(run.training, "loss") == ([20, 30, 40, 60, 80], [1, 1, 2, 2, 2])
    assert series(run.validations, "mIoU") == ([30, 60], [50, 60])
    assert len(run.starts) == 2
    assert "MMEngine: 0.10.12" in run.environment
    assert "GCC" not in run.environment


def test_validations_without_a_step_are_at_multiples_of_the_interval(tmp_path: Path) -> None:
    """mmdet logs step 0 with an endless sampler. The log has rows at 25 and 50 only; the last validation is at 100."""
    metric = {"coco/bbox_mAP": 0.1, "step": 0}
    start(tmp_path, "20260101_000000", [*training(25), metric, *training(50), metric, *training(75), metric, metric])
    assert [row["iter"] for row in collect(tmp_path).validations] == [30, 60, 90, 100]


def test_validations_of_epochs_are_at_the_last_iteration(tmp_path: Path) -> None:
    rows = [
        *training(20, 42),
        {"accuracy/top1": 40.0, "step": 1},
        *training(62, 84),
        {"accuracy/top1": 30.0, "step": 2},
    ]
    start(tmp_path, "20260101_000000", rows, "train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)")
    assert series(collect(tmp_path).validations, "accuracy/top1") == ([42, 84], [40, 30])


def test_interrupted_run(tmp_path: Path) -> None:
    """The last line of a killed run is cut off, and values may be NaN."""
    rows = [*training(10), dict(loss=float("nan"), iter=20, step=20)]
    start(tmp_path, "20260101_000000", rows, tail='{"loss": 1.0, "it')
    run = collect(tmp_path)
    assert series(run.training, "loss") == ([10], [1])
    assert run.checkpoint is None
    assert not run.validations
    assert run.best_metric is None


def test_main_metrics_are_not_those_of_sizes_and_never_computed_ones(tmp_path: Path) -> None:
    row = {"coco/bbox_mAP": 0.5, "coco/bbox_mAP_50": 0.6, "coco/bbox_mAP_s": 0.1, "coco/bbox_mAP_l": -1.0,
           "coco/cat_precision": 0.1, "coco/segm_mAP": -1.0, "step": 0, "time": 1.0}  # fmt: skip
    start(tmp_path, "20260101_000000", [*training(30), row])
    run = collect(tmp_path)
    assert metric_names(run) == ["coco/bbox_mAP", "coco/bbox_mAP_50"]
    assert run.best_metric == "coco/bbox_mAP"


def test_best_checkpoint_is_preferred_to_the_last_one(tmp_path: Path) -> None:
    for age, name in enumerate(("iter_100.pth", "best_mIoU_iter_60.pth", "best_mIoU_iter_30.pth")):
        (tmp_path / name).write_bytes(b"")
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    assert best_checkpoint(tmp_path) == str(tmp_path / "best_mIoU_iter_60.pth")


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        collect(tmp_path / "absent")
    with pytest.raises(UsageError, match="has no config; allowed"):
        collect(tmp_path)
    (tmp_path / "broken.py").write_text("model = dict(")
    with pytest.raises(UsageError, match=r"broken\.py.*cannot be loaded"):
        collect(tmp_path)
    (tmp_path / "broken.py").write_text("model = dict()")
    with pytest.raises(UsageError, match=r"checkpoint 'absent\.pth': no such file"):
        collect(tmp_path, "absent.pth")


@pytest.mark.parametrize(
    ("rates", "values", "wanted"),
    [
        ([0.1, 0.5, 0.4], [0.2, 0.4, 0.5], True),
        ([0.1, 0.5, 0.04], [0.2, 0.4, 0.5], False),  # the schedule has ended
        ([0.1, 0.5, 0.4], [0.2, 0.425, 0.433], False),  # within the noise
        ([0.1, 0.5, 0.4], [0.2, 0.49, 0.4, 0.495], False),  # not clearly above the best one before
        ([0.1, 0.5, 0.4], [0.2], False),
        ([], [0.2, 0.4, 0.5], False),
    ],
)
def test_a_longer_run_may_help_while_the_rate_is_high_and_the_gain_clear(
    tmp_path: Path, rates: list[float], values: list[float], wanted: bool
) -> None:
    rows = [dict(loss=1.0, lr=rate, iter=i + 1, step=i + 1) for i, rate in enumerate(rates)]
    for name, found in (("mIoU", values), ("val_loss", [1 - value for value in values])):
        start(tmp_path / name, "20260101_000000", [*rows, *({name: value, "step": 0} for value in found)])
        assert may_go_on(collect(tmp_path / name), name) == wanted


def test_metrics_of_classes() -> None:
    names = ["coco/fig_precision", "fig_precision", "coco/segm_fig_precision", "IoU.fig", "val/Acc.fig"]
    names += [f"{name}_raw" for name in names]
    others = ["coco/bbox_mAP", "coco/bbox_mAP_raw", "IoU.other", "figure"]
    assert [name for name in names + others if is_of_class(name, ("date", "fig"))] == names
