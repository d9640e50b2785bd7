"""The schedule equals timm's at every step."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from timm.scheduler import CosineLRScheduler

from mmgcvit import WarmupCosineLR


def optimizer() -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    return torch.optim.SGD([dict(params=parameters[:1]), dict(params=parameters[1:], lr=0.002)], lr=0.005)


def test_equals_timm():
    length, epochs = 7, 32
    ours, theirs = optimizer(), optimizer()
    schedule = PARAM_SCHEDULERS.build(
        dict(
            type="mmgcvit.WarmupCosineLR",
            warmup=2,
            T_max=31,
            warmup_start=1e-6,
            eta_min=5e-6,
            by_epoch=True,
            begin=0,
            end=epochs,
            convert_to_iter_based=True,
        ),
        default_args=dict(optimizer=ours, epoch_length=length),
    )
    timm = CosineLRScheduler(
        theirs, t_initial=31 * length, lr_min=5e-6, warmup_t=2 * length, warmup_lr_init=1e-6, t_in_epochs=False
    )
    for step in range(epochs * length):
        timm.step_update(step)
        for mine, wanted in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(wanted["lr"], rel=1e-9), step
        ours.step()
        schedule.step()
    assert ours.param_groups[0]["lr"] == 5e-6


def test_resumes_where_it_stopped():
    whole, parts = optimizer(), optimizer()
    arguments = dict(warmup=3, T_max=20, warmup_start=1e-6, by_epoch=False)
    schedule, first = WarmupCosineLR(whole, **arguments), WarmupCosineLR(parts, **arguments)
    for _ in range(8):
        schedule.step()
        first.step()
    second = WarmupCosineLR(parts, **arguments)
    second.load_state_dict(first.state_dict())
    for _ in range(10):
        schedule.step()
        second.step()
        assert whole.param_groups[1]["lr"] == parts.param_groups[1]["lr"]


def test_bad_lengths():
    with pytest.raises(ValueError, match="warmup=20; allowed: 0 to under T_max=20"):
        WarmupCosineLR(optimizer(), warmup=20, T_max=20)
