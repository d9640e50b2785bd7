"""Length of a run: sampler, schedules, intervals, warm-ups, and resuming with another schedule."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from classification_run import config, make_tree
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgcvit import apis
from mmgcvit.apis import UsageError
from mmgcvit.engine.schedule import check_schedule, fit_warmups, shorten_warmups

ITERATIONS = dict(type="IterBasedTrainLoop", max_iters=100, val_interval=100)
EPOCHS = dict(type="EpochBasedTrainLoop", max_epochs=12)
WARM = dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50)
COSINE = dict(type="CosineAnnealingLR", by_epoch=False, begin=50)


def found(**parts) -> list[tuple[bool, str]]:
    return [(problem.breaks, str(problem)) for problem in check_schedule(Config(copy.deepcopy(parts)))]


@pytest.mark.parametrize(
    ("parts", "breaks", "text"),
    [
        (
            dict(train_cfg=EPOCHS, train_dataloader=dict(sampler=dict(type="InfiniteSampler"))),
            True,
            "InfiniteSampler with EpochBasedTrainLoop (train_cfg.max_epochs=12): the first epoch would never end",
        ),
        (
            dict(train_cfg=dict(EPOCHS, max_iters=600)),
            True,
            "max_iters=600 with EpochBasedTrainLoop; allowed: max_epochs",
        ),
        (dict(train_cfg=dict(by_epoch=False, max_iters=0)), True, "max_iters=0; allowed: a positive integer"),
        (dict(train_cfg=dict(ITERATIONS, val_interval=0)), True, "val_interval=0; allowed: a positive integer"),
        (
            dict(train_cfg=ITERATIONS, param_scheduler=[dict(type="MultiStepLR", milestones=[8, 11])]),
            True,
            "param_scheduler[0]: MultiStepLR has by_epoch=True, but the run counts iterations (train_cfg.max_iters",
        ),
        (
            dict(
                train_cfg=ITERATIONS,
                param_scheduler=dict(type="CosineAnnealingLR", T_max=9, convert_to_iter_based=True),
            ),
            True,
            "CosineAnnealingLR has no end, and the run counts iterations (train_cfg.max_iters=100)",
        ),
        (
            dict(train_cfg=ITERATIONS, param_scheduler=[dict(COSINE, end=50)]),
            True,
            "CosineAnnealingLR has begin=50, end=50; allowed: begin < end",
        ),
        (
            dict(train_cfg=dict(ITERATIONS, max_iters=40), param_scheduler=[COSINE]),
            True,
            "CosineAnnealingLR has begin=50, and train_cfg.max_iters=40",
        ),
        (
            dict(train_cfg=ITERATIONS, param_scheduler=[dict(WARM, end=1)]),
            True,
            "begin=0, end=1: the learning rate would",
        ),
        (
            dict(train_cfg=EPOCHS, param_scheduler=dict(type="mmgcvit.WarmupCosineLR", warmup=4, T_max=4)),
            True,
            "WarmupCosineLR has warmup=4, T_max=4; allowed: 0 <= warmup < T_max",
        ),
        (
            dict(train_cfg=ITERATIONS, param_scheduler=[dict(COSINE, end=600, T_max=550)]),
            False,
            "has end=600, but train_cfg.max_iters=100: the run ends before the schedule does",
        ),
        (
            dict(train_cfg=dict(EPOCHS, max_epochs=8), param_scheduler=dict(type="MultiStepLR", milestones=[8, 11])),
            False,
            "has milestones=[8, 11], but train_cfg.max_epochs=8: the run ends before the schedule does",
        ),
        (
            dict(train_cfg=dict(ITERATIONS, max_iters=900), param_scheduler=[dict(COSINE, end=600, T_max=550)]),
            False,
            "has end=600, but train_cfg.max_iters=900: the learning rate stays at its last value afterwards",
        ),
        (
            dict(train_cfg=dict(EPOCHS, val_begin=20), val_dataloader=dict(batch_size=1)),
            False,
            "val_begin=20, train_cfg.",
        ),
        (
            dict(train_cfg=ITERATIONS, default_hooks=dict(checkpoint=dict(interval=1))),
            False,
            "by_epoch=True, but the run counts iterations (train_cfg.max_iters=100): only the last checkpoint will",
        ),
        (
            dict(train_cfg=EPOCHS, default_hooks=dict(checkpoint=dict(interval=20, save_last=False))),
            False,
            "interval=20, save_last=False, train_cfg.max_epochs=12: no checkpoint will be written",
        ),
    ],
)
def test_contradictions(parts: dict, breaks: bool, text: str):
    ((really, message),) = found(**parts)
    assert really == breaks
    assert text in message


@pytest.mark.parametrize(
    "parts",
    [
        dict(
            train_cfg=ITERATIONS,
            param_scheduler=[WARM, COSINE],
            train_dataloader=dict(sampler=dict(type="InfiniteSampler")),
        ),
        dict(train_cfg=EPOCHS, param_scheduler=[WARM, dict(type="MultiStepLR", milestones=[8, 11], end=12)]),
        dict(
            train_cfg=dict(by_epoch=True, max_epochs=3),
            default_hooks=dict(checkpoint=dict(by_epoch=False, interval=500)),
        ),
        dict(train_cfg=ITERATIONS, param_scheduler=dict(type="ReduceOnPlateauLR", monitor="loss")),
        dict(
            train_cfg=EPOCHS,
            param_scheduler=dict(type="LinearLR", begin=0, end=1, by_epoch=True, convert_to_iter_based=True),
        ),
        dict(train_cfg=dict(type="TokenLoop", max_tokens=10, val_interval=-1), param_scheduler=[WARM, COSINE]),
        dict(),
    ],
)
def test_consistent_schedules(parts: dict):
    assert found(**parts) == []


@pytest.mark.parametrize(("length", "warmup"), [(400, 50), (51, 50), (50, 5), (20, 2), (19, 0), (10, 0), (1, 0)])
def test_warmup_longer_than_the_run_is_shortened(length: int, warmup: int):
    schedulers, messages = shorten_warmups([dict(WARM), dict(COSINE)], f"max_iters={length}", False, length)
    assert schedulers == ([dict(WARM, end=warmup)] if warmup else []) + [dict(COSINE, begin=warmup)]
    if warmup == 50:
        assert messages == []
    else:
        what = f"shortened to {warmup}" if warmup else "removed"
        assert messages == [
            "param_scheduler[0]: the warm-up (LinearLR, end=50) is not shorter than the run "
            f"(max_iters={length}) and is {what}"
        ]


def test_only_warmups_in_the_same_unit_are_shortened():
    steps = dict(type="MultiStepLR", milestones=[8], end=12)
    assert shorten_warmups([dict(WARM), steps], "max_epochs=12", True, 12) == ([WARM, steps], [])
    decay = dict(type="LinearLR", start_factor=1.0, end_factor=0.1, by_epoch=False, begin=0, end=500)
    assert shorten_warmups(decay, "max_iters=100", False, 100) == (decay, [])
    both, messages = shorten_warmups(dict(a=[dict(WARM)], b=dict(WARM)), "max_iters=30", False, 30)
    assert both == dict(a=[dict(WARM, end=3)], b=dict(WARM, end=3))
    assert len(messages) == 2


def test_schedule_over_the_whole_run_is_kept():
    ramp = dict(WARM, end=100)
    assert shorten_warmups([dict(ramp)], "max_iters=100", False, 100) == ([ramp], [])
    assert shorten_warmups(dict(ramp), "max_iters=99", False, 99)[0]["end"] == 9
    assert shorten_warmups([dict(ramp), dict(COSINE, begin=100)], "max_iters=100", False, 100)[0][1]["begin"] == 10


def test_warmup_of_the_classifiers_schedule(tmp_path: Path):
    cfg = Config(dict(train_cfg=dict(type="mmgcvit.ResumableTrainLoop", max_epochs=1)))
    cfg.param_scheduler = dict(type="mmgcvit.WarmupCosineLR", warmup=4, T_max=60, end=60, by_epoch=True)
    assert "warmup=4) is not shorter than the run (train_cfg.max_epochs=1) and is removed" in fit_warmups(cfg)[0]
    assert (cfg.param_scheduler.warmup, cfg.param_scheduler.T_max) == (0, 60)


@HOOKS.register_module()
class Rates(Hook):
    """Records the learning rate of each iteration."""

    kept: list[float]

    def before_train(self, runner) -> None:
        Rates.kept = []

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        Rates.kept += runner.optim_wrapper.get_lr()["lr"][:1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("colours"))


def short(tree: Path, folder: Path, **more) -> Config:
    """One epoch of six iterations; the warm-up counts iterations."""
    cfg = config(tree, folder, epochs=1, workers=0, auto_scale_lr=None, **more)
    cfg.custom_hooks = [dict(type="Rates")]
    cfg.param_scheduler = [dict(WARM, end=500), dict(type="ConstantLR", factor=0.5, by_epoch=False, begin=500, end=501)]
    return cfg


def test_warmup_in_iterations_of_a_short_run_by_epochs(tree: Path, tmp_path: Path, logged: list[str]):
    cfg = short(tree, tmp_path / "run")
    cfg.param_scheduler = [dict(WARM, end=500), dict(type="MultiStepLR", by_epoch=True, milestones=[1], end=1)]
    apis.train(cfg)
    assert Rates.kept == pytest.approx([2e-3] * 6)  # in the warm-up, it would be below 2.5e-5


def test_wrapped_training_data_of_a_classifier(tree: Path, tmp_path: Path):
    cfg = short(tree, tmp_path / "run")
    cfg.custom_hooks.append(dict(type="mmgcvit.ClassificationHook"))
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=cfg.train_dataloader.dataset)
    assert apis.train(cfg).iter == 12
    cfg.model.num_classes = 2
    with pytest.raises(UsageError, match=r"the train data .* has 3 classes; allowed: at most model.num_classes=2"):
        apis.train(cfg)


def test_resuming_with_another_schedule(tree: Path, tmp_path: Path):
    cfg = short(tree, tmp_path / "run")
    cfg.param_scheduler = dict(type="CosineAnnealingLR", by_epoch=False, T_max=6)
    apis.train(cfg)
    file = tmp_path / "run/iter_6.pth"
    longer = copy.deepcopy(cfg)
    longer.train_cfg.max_epochs, longer.param_scheduler.T_max = 2, 12
    with pytest.raises(
        UsageError,
        match=r"param_scheduler\[0\] \(CosineAnnealingLR\): T_max=12 \(checkpoint: 6\), end=12 \(checkpoint: 6\); "
        "mmengine would continue with the checkpoint's",
    ):
        apis.train(longer, resume=str(file))
    longer.param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False), dict(type="ExponentialLR", gamma=1.0)]
    with pytest.raises(UsageError, match="param_scheduler has 2 schedulers, the checkpoint to resume from 1"):
        apis.train(longer, resume=str(file))
    longer.param_scheduler = dict(type="CosineAnnealingLR", by_epoch=False, T_max=6, end=6)
    longer.optim_wrapper.optimizer.lr = 1.0
    apis.train(longer, resume=str(file))  # the schedule of the checkpoint is in the config: nothing is ignored
    assert len(Rates.kept) == 6
    content = torch.load(tmp_path / "run/iter_12.pth", weights_only=False)
    content["meta"].update(epoch=3, iter=18)
    torch.save(content, tmp_path / "later.pth")
    with pytest.raises(UsageError, match=r"from epoch 3; allowed: at most train_cfg\.max_epochs=2"):
        apis.train(longer, resume=str(tmp_path / "later.pth"))


def test_resuming_a_schedule_that_depends_on_results(tree: Path, tmp_path: Path):
    cfg = short(tree, tmp_path / "run")
    cfg.param_scheduler = dict(type="ReduceOnPlateauLR", monitor="accuracy/top1", rule="greater", end=9)
    apis.train(cfg)
    (state,) = torch.load(tmp_path / "run/iter_6.pth", weights_only=False)["param_schedulers"]
    assert state["best"] != float("-inf")
    cfg.train_cfg.max_epochs = 2
    assert apis.train(cfg, resume=str(tmp_path / "run/iter_6.pth")).epoch == 2
