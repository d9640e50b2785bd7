"""Training that resumes in the middle of an epoch; validation of raw and averaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from classification_run import config, make_tree
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgcvit import apis


class Stopped(Exception):
    """The run was interrupted."""


@HOOKS.register_module()
class Interrupt(Hook):
    """Records the samples of each iteration, and stops the run before a given one."""

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


@pytest.mark.parametrize("workers", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_resumes_in_the_middle_of_an_epoch(tmp_path: Path, tree: Path, workers: int):
    expected, whole = run(tree, tmp_path / "whole", workers=workers)
    assert [(epoch, index) for epoch, index, _ in whole] == [(e, i) for e in range(2) for i in range(6)]
    for epoch in range(2):  # each image is seen once
        assert sorted(i for e, _, batch in whole if e == epoch for i in batch) == list(range(24))

    # checkpoints after 4 and 8 iterations; the second is in the middle of epoch 1
    for at, begin in ((5, 4), (9, 8)):
        run(tree, tmp_path / f"cut{at}", at=at, workers=workers)
        found, rest = run(tree, tmp_path / f"cut{at}", resume=True, workers=workers)
        assert rest == whole[begin:]
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        averages = [
            torch.load(tmp_path / folder / "iter_12.pth", weights_only=False)["ema_state_dict"]
            for folder in ("whole", f"cut{at}")
        ]
        assert all(torch.equal(value, averages[1][name]) for name, value in averages[0].items())


@pytest.mark.parametrize(
    ("batch_size", "length", "known"), [(2, 12, True), (6, 4, True), (12, 2, True), (2, 12, False), (12, 2, False)]
)
def test_epochs_of_another_length_are_not_resumed(
    tmp_path: Path, tree: Path, batch_size: int, length: int, known: bool
):
    """With another number of iterations per epoch, the rest of the epoch would have other samples, or none at all."""
    run(tree, tmp_path / "run", at=9, workers=0)
    path = tmp_path / "run" / "iter_8.pth"
    checkpoint = torch.load(path, weights_only=False)
    assert checkpoint["message_hub"]["runtime_info"]["epoch_length"] == 6
    if not known:  # an older checkpoint; 8 iterations in epoch 1 are possible with 4 to 8 iterations per epoch
        del checkpoint["message_hub"]["runtime_info"]["epoch_length"]
        torch.save(checkpoint, path)
    with pytest.raises(
        apis.UsageError,
        match=rf"epoch 1, iteration 8, with {'6' if known else 'another number of'} "
        rf"iterations per epoch; here an epoch has {length}\. Resume with",
    ):
        run(tree, tmp_path / "run", resume=True, workers=0, batch_size=batch_size)


def test_both_evaluations_know_image_names(tmp_path: Path, tree: Path):
    """ReaL labels are looked up by image name, also in the first evaluation, that of the raw weights."""
    cfg = config(tree, tmp_path / "run", workers=0)
    cfg.val_evaluator.update(out_csv=str(tmp_path / "table.csv"), real_labels="timm")
    with pytest.raises(ValueError, match=r"real_labels: 9 images such as blue/0.png; allowed: the 50000"):
        apis.train(cfg)
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("blue/0.png,blue,")


def test_raw_and_averaged_weights_are_evaluated(tmp_path: Path, tree: Path):
    def metrics(**more) -> dict:
        cfg = config(tree, tmp_path / f"run{len(more)}", workers=0, **more)
        runner = apis.train(cfg)
        return {
            key.removeprefix("val/"): runner.message_hub.get_scalar(key).current()
            for key in runner.message_hub.log_scalars
            if key.startswith("val/")
        }, runner

    found, runner = metrics()
    assert {"accuracy/top1", "accuracy/top2", "accuracy/top1_raw", "accuracy/top2_raw"} <= found.keys()
    # the saved weights are the averaged ones, those of the model are the raw ones
    raw = runner.model.state_dict()
    saved = torch.load(tmp_path / "run0" / "iter_12.pth", weights_only=False)["state_dict"]
    assert any(not torch.equal(raw[name], saved[name]) for name in raw)
    runner.custom_hooks = None
    evaluate = runner.val_loop._evaluate_raw
    assert evaluate() == {"accuracy/top1": found["accuracy/top1_raw"], "accuracy/top2": found["accuracy/top2_raw"]}
    runner.model.load_state_dict(saved)
    assert evaluate() == {"accuracy/top1": found["accuracy/top1"], "accuracy/top2": found["accuracy/top2"]}

    found, _ = metrics(custom_hooks=[dict(type="mmgcvit.ClassificationHook")])
    assert {"accuracy/top1", "accuracy/top2"} == {key for key in found if "top" in key}


def test_tables_of_raw_and_averaged_weights_have_titles(tmp_path: Path, tree: Path, capsys: pytest.CaptureFixture):
    cfg = config(tree, tmp_path / "work", workers=0, epochs=1)
    cfg.val_evaluator.classwise = True
    cfg.log_level = "INFO"
    with apis.short_output():
        apis.train(cfg)
    titles = ("weights without averaging (_raw):", "averaged weights:", "results by class, in percent")
    lines = [line for line in capsys.readouterr().out.splitlines() if line in titles]
    assert lines == [titles[0], titles[2], titles[1], titles[2]]


def test_stops_early(tmp_path: Path, tree: Path):
    """An improvement by 1000 % is impossible: the run ends after the first validation that does not bring it."""
    stopping = dict(type="EarlyStoppingHook", monitor="accuracy/top1", rule="greater", min_delta=1000, patience=1)
    cfg = config(tree, tmp_path / "work", epochs=4, workers=0)
    cfg.train_cfg.val_interval = 1
    cfg.custom_hooks = [*cfg.custom_hooks, stopping]
    runner = apis.train(cfg)
    assert runner.epoch == 2
