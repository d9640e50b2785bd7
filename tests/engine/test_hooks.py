"""Hooks, with a toy model and mmengine's own Runner."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, RepeatDataset
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmgcvit.engine import InvalidLossError, InvalidLossHook


class Toy(BaseModel):
    """Model whose loss is a random number; records all random numbers."""

    def __init__(self, bad_at: int = -1, value: float = float("nan")) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.bad_at, self.value, self.calls = bad_at, value, 0
        self.drawn: list[float] = []

    def forward(self, inputs: list, mode: str = "loss") -> dict:
        self.calls += 1
        self.drawn.append((round(torch.rand(1).item(), 6), *[round(float(x), 6) for x in inputs]))
        loss = self.weight.sum() * torch.tensor(float(inputs[0]))
        if self.calls == self.bad_at:
            loss = loss * self.value
        return dict(loss_a=loss, acc=torch.tensor(float("nan")))  # only entries named loss are checked


class Numbers(BaseDataset):
    """Data set whose samples are random numbers drawn in its pipeline."""

    def load_data_list(self) -> list[dict]:
        return [dict(n=i) for i in range(6)]


def draw(results: dict) -> float:
    return random.random() + np.random.rand() + torch.rand(1).item()


def build(folder: Path, epochs: int, hooks: list, model: nn.Module, repeat: int = 1, **more) -> Runner:
    dataset = RepeatDataset(Numbers(ann_file="", pipeline=[draw]), repeat)
    return Runner(
        model=model,
        work_dir=str(folder),
        experiment_name=f"{folder.name}{epochs}{more.get('resume')}",
        train_dataloader=dict(
            dataset=dataset,
            batch_size=2,
            num_workers=2,
            persistent_workers=True,
            sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        custom_hooks=hooks,
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.001)),
        log_level="WARNING",
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
        randomness=dict(seed=5),
        **more,
    )


class Batched(Toy):
    def forward(self, inputs: list | None = None, mode: str = "loss", **_: object) -> dict:
        return super().forward(inputs, mode)

    def train_step(self, data: list, optim_wrapper: object) -> dict:
        losses = self(data)
        loss, log = self.parse_losses({"loss_a": losses["loss_a"]})
        optim_wrapper.update_params(loss)
        return {**log, "acc": losses["acc"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_loss(tmp_path: Path, value: float):
    runner = build(tmp_path, 4, [InvalidLossHook()], Batched(bad_at=8, value=value))  # 3 iterations per epoch
    with pytest.raises(InvalidLossError) as error:
        runner.train()
    assert str(error.value).startswith(f"iteration 8: the loss is not finite: loss={value:g}, loss_a={value:g}. Last ")
    assert f"Last good checkpoint: {tmp_path}/epoch_2.pth. " in str(error.value)
    assert not (tmp_path / "epoch_3.pth").exists()


def test_checkpoint_with_nan_is_not_recommended(tmp_path: Path):
    """The update after the last finite loss can make weights NaN."""
    runner = build(tmp_path, 4, [InvalidLossHook()], Batched(bad_at=7))
    torch.save(dict(state_dict=dict(weight=torch.tensor(float("nan"))), optimizer={}), tmp_path / "epoch_9.pth")
    torch.save(dict(weight=torch.ones(1)), tmp_path / "exported.pth")
    (tmp_path / "epoch_8.pth").write_bytes(b"half")

    train_step = runner.model.train_step

    def spoil(*args: object, **kwargs: object) -> dict:
        for path in (*tmp_path.glob("epoch_[89].pth"), tmp_path / "exported.pth"):
            path.touch()
        return train_step(*args, **kwargs)

    runner.model.train_step = spoil
    with pytest.raises(InvalidLossError, match=r"epoch_2\.pth\. "):
        runner.train()


def test_no_checkpoint_yet(tmp_path: Path):
    with pytest.raises(InvalidLossError, match=r"iteration 1: .*Last good checkpoint: none yet"):
        build(tmp_path, 1, [InvalidLossHook()], Batched(bad_at=1)).train()


def test_finite_losses_pass(tmp_path: Path):
    runner = build(tmp_path, 1, [InvalidLossHook()], Batched())
    runner.train()
    assert runner.iter == 3


@pytest.mark.parametrize("with_hook", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_random_numbers_after_resuming(tmp_path: Path, with_hook: bool):
    """Only with the hook, random numbers in the model and the workers equal those of an uninterrupted run."""
    hooks = [HOOKS.build(dict(type="mmgcvit.ReproducibleHook"))] if with_hook else []
    whole = Batched()
    build(tmp_path / "whole", 3, hooks, whole).train()
    hooks = [HOOKS.build(dict(type="mmgcvit.ReproducibleHook"))] if with_hook else []
    build(tmp_path / "parts", 1, hooks, Batched()).train()
    resumed = Batched()
    hooks = [HOOKS.build(dict(type="mmgcvit.ReproducibleHook"))] if with_hook else []
    build(tmp_path / "parts", 3, hooks, resumed, resume=True).train()
    assert len(whole.drawn) == 9
    assert len(resumed.drawn) == 6
    assert (resumed.drawn == whole.drawn[3:]) == with_hook
    numbers = [number for drawn in whole.drawn for number in drawn]
    assert len(set(numbers)) == len(numbers)  # all random numbers differ
    assert torch.equal(whole.weight, resumed.weight) == with_hook


def test_repeated_samples_differ(tmp_path: Path):
    model = Batched()
    runner = build(tmp_path, 1, [HOOKS.build(dict(type="mmgcvit.ReproducibleHook"))], model, repeat=3)
    runner.train()
    numbers = [number for drawn in model.drawn for number in drawn[1:]]
    assert len(set(numbers)) == len(numbers) == 18
