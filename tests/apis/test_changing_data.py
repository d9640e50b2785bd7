"""Data that vanishes or changes while a run goes on, and workers that are killed: one message, a whole checkpoint."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

pytest.importorskip("mmcv._ext")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
pytest.importorskip("hypothesis")

import test_faulty_data as small
from classification_run import config as classification
from classification_run import make_tree

from mmgcvit import apis
from mmgcvit.apis import UsageError
from mmgcvit.datasets import loading

Event = tuple[str, int, Callable[[], None]]  # 'train' or 'val', iteration, what happens before it
GOES_ON = "To go on from it: the same command with --resume"


@HOOKS.register_module()
class Happens(Hook):
    """Calls functions before iterations of the training or the validation, while the worker for training is idle.

    The worker has loaded one batch ahead by then.
    """

    events: tuple[Event, ...] = ()  # not in the config, which mmengine writes to a file

    def _call(self, phase: str, runner) -> None:
        for when, at, what in self.events:
            if (when, at) == (phase, runner.iter):
                loaded = runner.train_loop.dataloader._iterator
                while loaded._tasks_outstanding and loaded._data_queue.empty():
                    time.sleep(0.01)
                what()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._call("train", runner)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if batch_idx == 0:
            self._call("val", runner)


def make(task: str, folder: Path) -> Config:
    """Config of a run with a worker, a checkpoint after every second iteration, and a validation after some."""
    if task == "classification":
        cfg = classification(make_tree(folder, train=5, val=2), folder / "run", workers=1, batch_size=4)
        cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
        cfg.custom_hooks = [dict(type="mmgcvit.ClassificationHook")]
    elif task == "detection":
        small.write(folder, dict(train=small.coco(0, 3), val=small.coco(3, 2)))
        cfg = small.config(folder)
    else:
        small.write_pairs(folder)
        cfg = small.segmentation(folder)
    if task != "classification":
        cfg.train_cfg.update(max_iters=8, val_interval=4)
    cfg.train_dataloader.update(num_workers=1, persistent_workers=True, prefetch_factor=1)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=2)
    cfg.randomness = dict(seed=0, deterministic=True)
    return cfg


def train(cfg: Config, *events: Event, resume: bool = False, **options) -> dict[str, torch.Tensor]:
    """Train with events; returns the weights."""
    Happens.events = events
    cfg = copy.deepcopy(cfg)
    cfg.experiment_name += f"-{resume}-{len(events)}-{Path(cfg.work_dir).name}"
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), dict(type="Happens")]
    return apis.train(cfg, resume=resume, **options).model.state_dict()


FILES = {
    "classification": ["train/*/*.png", "val/*/*.png"],
    "detection": ["images/*.png", "images/*.png"],
    "segmentation": ["images/train/*.png", "images/val/*.png"],
    "label maps": ["annotations/train/*.png", "annotations/val/*.png"],
}


@pytest.mark.parametrize(("kind", "phase"), [
    pytest.param(kind, phase, marks=[] if (kind, phase) == ("classification", "train") else pytest.mark.slow)
    for kind in FILES for phase in ("train", "val")
])  # fmt: skip
def test_files_vanish(tmp_path: Path, kind: str, phase: str):
    """The files of a split go during training or before the validation, and come back."""
    cfg = make("segmentation" if kind == "label maps" else kind, tmp_path)
    pattern = FILES[kind][phase == "val"]
    gone = tmp_path / "gone"
    moved = list(tmp_path.glob(pattern))

    def vanish() -> None:
        gone.mkdir()
        for i, path in enumerate(moved):
            path.rename(gone / str(i))

    with pytest.raises(UsageError) as error:
        train(cfg, ("train", 2 if phase == "train" else 3, vanish))
    said = str(error.value)
    assert said.count("\n") == 0
    what = "label map" if kind == "label maps" else "image"
    assert said.startswith(what)
    assert any(path.name in said.split(": ")[0] for path in moved)
    assert "No such file or directory" in said
    last = max((tmp_path / "run").glob("iter_*.pth"), key=lambda path: path.stat().st_mtime)
    assert said.endswith(f". Last checkpoint: {last}. {GOES_ON}")
    for i, path in enumerate(moved):
        (gone / str(i)).rename(path)
    resumed = train(cfg, resume=True)
    cfg.work_dir += "-whole"
    for name, value in train(cfg).items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("task", ["classification", pytest.param("detection", marks=pytest.mark.slow)])
def test_all_images_vanish_from_a_run_that_skips(tmp_path: Path, task: str, monkeypatch, capfd):
    """Each skipped image is named, and the run does not go on without any."""
    monkeypatch.setattr(loading, "MAX_SKIPPED", 10)
    monkeypatch.setattr("mmgcvit.tasks.classification.dataset.MAX_REFETCH", 10)
    cfg = make(task, tmp_path)
    pattern = FILES[task][0]

    def vanish() -> None:
        for path in tmp_path.glob(pattern):
            path.unlink()

    words = r"10 (images one after|consecutive images).*Last checkpoint: .*iter_2\.pth\. To go on"
    with pytest.raises(UsageError, match=words):
        train(cfg, ("train", 1, vanish), corrupt="skip")
    said = "".join([*capfd.readouterr(), *(path.read_text() for path in (tmp_path / "run").rglob("*.log"))])
    assert said.count("skipped image ") >= 9


@pytest.mark.slow
def test_annotation_file_changes(tmp_path: Path, capfd: pytest.CaptureFixture):
    """During the run or a validation, which go on with what they have read, and before it is resumed."""
    cfg = make("detection", tmp_path)
    cfg.log_level = "WARNING"
    content = {split: json.loads((tmp_path / f"{split}.json").read_text()) for split in ("train", "val")}

    def change(split: str) -> None:
        content[split]["annotations"].pop()
        (tmp_path / f"{split}.json").write_text(json.dumps(content[split]))

    train(cfg, ("train", 3, lambda: change("train")), ("val", 4, lambda: change("val")))
    said = capfd.readouterr().out
    for split, name in (("train", "training"), ("val", "validation")):
        warning = f"{name} data[0].annotation file, SHA-256: {tmp_path}/{split}.json has changed since the start of the"
        assert said.count(warning) == 1
    cfg.train_cfg.max_iters = 9
    train(cfg, resume=True)
    said = next(line for line in capfd.readouterr().out.splitlines() if "the resumed run differs" in line)
    for name in ("training", "validation"):
        assert f"{name} data[0].annotation file, SHA-256=" in said
    assert "max_iters=9 (checkpoint: 8)" in said
    assert "samples" not in said


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSEGV, marks=pytest.mark.slow)])
def test_a_killed_worker(tmp_path: Path, number: int):
    cfg = make("classification", tmp_path)

    def kill() -> None:
        os.kill(max(worker.pid for worker in active_children()), number)  # those of earlier tests may still be there

    start = time.monotonic()
    with pytest.raises(UsageError) as error:
        train(cfg, ("train", 2, kill))
    assert time.monotonic() - start < 30
    said = str(error.value)
    assert said.startswith("a process that loads data has ended: DataLoader worker (pid")
    assert "memory" in said
    assert said.endswith(f". Last checkpoint: {tmp_path}/run/iter_2.pth. {GOES_ON}")
    assert train(cfg, resume=True)
