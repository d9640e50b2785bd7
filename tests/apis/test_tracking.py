"""Experiment trackers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from classification_run import config, make_tree
from mmengine.config import Config

from mmgcvit import apis
from mmgcvit.apis.tracking import TRACKERS, use_tracker
from mmgcvit.errors import UsageError


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (_, module, package) in TRACKERS.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UsageError, match=f"--track {name} needs .*pip install {package}"):
            use_tracker(Config(), name)
    with pytest.raises(UsageError, match="track='excel'; allowed: tensorboard, wandb, mlflow, clearml"):
        use_tracker(Config(), "excel")


def test_backends_are_added_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", object())
    cfg = Config()
    use_tracker(cfg, "wandb")
    assert [backend["type"] for backend in cfg.visualizer.vis_backends] == ["LocalVisBackend", "WandbVisBackend"]
    own = dict(type="WandbVisBackend", init_kwargs=dict(project="mine"))
    cfg = Config(dict(visualizer=dict(type="Visualizer", vis_backends=[own])))
    use_tracker(cfg, "wandb")
    assert cfg.visualizer.vis_backends == [own]


def test_tensorboard_gets_losses_and_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = config(make_tree(tmp_path / "tree"), tmp_path / "work", epochs=1, workers=0)
    cfg.default_hooks = dict(logger=dict(type="LoggerHook", interval=2))
    apis.train(cfg, track="tensorboard")
    (events,) = tmp_path.glob("work/*/vis_data/events.out.tfevents.*")
    found = EventAccumulator(str(events)).Reload()
    assert {"loss", "lr", "accuracy/top1"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("loss")] == [2, 4, 6]


def test_mlflow_gets_losses_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a database in the work directory: MLflow 3 refuses folders, mmengine's default."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    cfg = config(make_tree(tmp_path / "tree"), tmp_path / "work", epochs=1, workers=0)
    apis.train(cfg, track="mlflow")
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    mlflow.end_run()
    assert {"loss", "lr", "accuracy/top1"} <= set(run.data.metrics)
    assert mlflow.get_tracking_uri() == f"sqlite:///{tmp_path / 'work' / 'mlflow.db'}"
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "work"}


def test_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = config(make_tree(tmp_path / "tree"), tmp_path / "work", epochs=1, workers=0)
    apis.train(cfg, track="wandb")
    (file,) = tmp_path.glob("work/*/vis_data/wandb/offline-run-*/*.wandb")
    assert all(name in file.read_bytes() for name in (b"loss", b"lr", b"accuracy/top1"))


def test_mlflow_server_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", object())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    cfg = Config(dict(work_dir="work"))
    use_tracker(cfg, "mlflow")
    assert cfg.visualizer.vis_backends[1] == dict(
        type="MLflowVisBackend", exp_name="work", tracking_uri="http://localhost:1"
    )
