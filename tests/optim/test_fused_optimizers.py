"""torch's fused optimizers: where they are chosen, and that they do the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmgcvit.optim import fused, with_fused_optimizer

on_cpu = pytest.mark.skipif(
    not fused.supports_fused(torch.optim.AdamW, "cpu"), reason="torch before 2.4 has no fused optimizers for CPUs"
)


class OwnAdamW(torch.optim.AdamW):
    """An optimizer that is not torch's own."""


@on_cpu
@pytest.mark.parametrize("kind", ["AdamW", "SGD", torch.optim.Adam])
def test_a_fused_optimizer_takes_the_same_steps(kind: Any):
    def weights(**options: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))
        optimizer = dict(type=kind, lr=0.1, weight_decay=0.1, **options)
        cfg: dict[str, Any] = dict(type="OptimWrapper", optimizer=optimizer, paramwise_cfg=dict(norm_decay_mult=0.0))
        wrapper = build_optim_wrapper(model, with_fused_optimizer(cfg))
        assert "fused" in options or "fused" not in cfg["optimizer"]
        assert all(group["fused"] is options.get("fused", True) for group in wrapper.param_groups)
        for _ in range(5):
            wrapper.update_params(model(torch.randn(4, 5)).square().sum())
        return [p.detach() for p in model.parameters()]

    for got, wanted in zip(weights(), weights(fused=False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "optim_wrapper",
    [
        dict(optimizer=dict(type="AdamW", lr=0.1, fused=False)),
        dict(optimizer=dict(type="AdamW", lr=0.1, foreach=True)),
        dict(optimizer=dict(type="LBFGS", lr=0.1)),
        dict(optimizer=dict(type=OwnAdamW, lr=0.1)),
        dict(optimizer=dict(type="an unknown one", lr=0.1)),
        dict(optimizer=dict(lr=0.1)),
        dict(constructor="Several", generator=dict(optimizer=dict(type="AdamW"))),
        None,
    ],
)
def test_other_optimizers_stay_as_they_are(optim_wrapper: Any):
    assert with_fused_optimizer(optim_wrapper) is optim_wrapper


def test_only_on_devices_that_have_one(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, fused: bool, **__: Any) -> None:
        raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of supported devices")

    monkeypatch.setattr(torch.optim.AdamW, "__init__", refuse)
    assert not fused.supports_fused(torch.optim.AdamW, "cpu")
