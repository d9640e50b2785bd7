"""Training that goes on in the middle of an epoch; validation of raw and averaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from runs import config, make_tree

from mmgcvit import apis


class Stopped(Exception):
    """The run was interrupted."""


@HOOKS.register_module()
class Interrupt(Hook):
    """Notes the samples of each iteration, and stops before one."""

    seen: list[list[int]]

    def __init__(self, at: int = -1) -> None:
        self.at = at
        Interrupt.seen = []

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if runner.iter == self.at:
            raise Stopped
        Interrupt.seen.append((runner.epoch, batch_idx, sorted(data_batch["sample_idx"].tolist())))


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("colours"))


def run(tree: Path, work_dir: Path, at: int = -1, resume: bool = False, **more) -> tuple[dict, list]:
    cfg = config(tree, work_dir, **more)
    cfg.custom_hooks.append(dict(type="Interrupt", at=at))
    cfg.experiment_name += f"-{at}-{resume}"
    try:
        runner = apis.train(cfg, resume=resume)
    except Stopped:
        return {}, Interrupt.seen
    return runner.model.state_dict(), Interrupt.seen


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_resumes_in_the_middle_of_an_epoch(tmp_path: Path, tree: Path, workers: int):
    expected, whole = run(tree, tmp_path / "whole", workers=workers)
    assert [(epoch, index) for epoch, index, _ in whole] == [(e, i) for e in range(2) for i in range(6)]
    for epoch in range(2):  # each picture once
        assert sorted(i for e, _, batch in whole if e == epoch for i in batch) == list(range(24))

    # checkpoints after 4 and 8 iterations: the second in the middle of epoch 1
    for at, begin in ((5, 4), (9, 8)):
        run(tree, tmp_path / f"cut{at}", at=at, workers=workers)
        found, rest = run(tree, tmp_path / f"cut{at}", resume=True, workers=workers)
        assert rest == whole[begin:]
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        averages = [torch.load(tmp_path / folder / "iter_12.pth", weights_only=False)["ema_state_dict"]
                    for folder in ("whole", f"cut{at}")]
        assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())


def test_raw_weights_are_evaluated_beside_the_averaged(tmp_path: Path, tree: Path):
    def metrics(**more) -> dict:
        cfg = config(tree, tmp_path / f"run{len(more)}", epochs=4, **more)
        runner = apis.train(cfg)
        return {key.removeprefix("val/"): runner.message_hub.get_scalar(key).current()
                for key in runner.message_hub.log_scalars if key.startswith("val/")}, runner

    found, runner = metrics()
    assert {"accuracy/top1", "accuracy/top2", "accuracy/top1_raw", "accuracy/top2_raw"} <= found.keys()
    # the saved weights are the averaged ones, the model's are the raw ones: each gives its figure
    raw = runner.model.state_dict()
    saved = torch.load(tmp_path / "run0" / "iter_24.pth", weights_only=False)["state_dict"]
    assert any(not torch.equal(raw[name], saved[name]) for name in raw)
    runner.custom_hooks = None
    evaluate = runner.val_loop._evaluate_raw
    assert evaluate() == {"accuracy/top1": found["accuracy/top1_raw"], "accuracy/top2": found["accuracy/top2_raw"]}
    runner.model.load_state_dict(saved)
    assert evaluate() == {"accuracy/top1": found["accuracy/top1"], "accuracy/top2": found["accuracy/top2"]}

    found, _ = metrics(custom_hooks=[dict(type="ClassificationHook")])
    assert {"accuracy/top1", "accuracy/top2"} == {key for key in found if "top" in key}
