"""torch's fused optimizers and merged groups: where they are used, and that they do the same."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.registry import HOOKS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmgcvit.optim import MergedGroupsHook, fused, with_fused_optimizer

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


class Calls(TorchDispatchMode):
    """Names of the operations that run, and the groups of an optimizer meanwhile."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.optimizer, self.names, self.groups = optimizer, [], set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not name.startswith("_record_function"):  # of the profiler, around the step
            self.names.append(name)
            self.groups.add(len(self.optimizer.param_groups))
        return func(*args, **(kwargs or {}))


def wrapper_of(kind: Any, **options: Any) -> tuple[nn.Module, Any]:
    """Return a model with seven parameters, and mmengine's wrapper with a group for each; the head learns faster."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 6), nn.Linear(6, 3, bias=False))
    paramwise_cfg = dict(norm_decay_mult=0.0, custom_keys={"3.weight": dict(lr_mult=2.0)})
    cfg = dict(optimizer=dict(type=kind, lr=0.01, weight_decay=0.1, **options), paramwise_cfg=paramwise_cfg)
    return model, build_optim_wrapper(model, cfg)


def learn(model: nn.Module, wrapper: Any, steps: int = 5) -> list[torch.Tensor]:
    """Take steps with a falling rate; return the parameters."""
    torch.manual_seed(1)
    for _ in range(steps):
        wrapper.update_params(model(torch.randn(4, 5)).square().sum())
        for group in wrapper.optimizer.param_groups:
            group["lr"] *= 0.9
    return [p.detach() for p in model.parameters()]


def merged(wrapper: Any) -> MergedGroupsHook:
    hook = HOOKS.build(dict(type="mmgcvit.MergedGroupsHook"))
    hook.before_run(SimpleNamespace(optim_wrapper=wrapper))
    return hook


OPTIMIZERS = [
    ("AdamW", {}),
    ("Adam", dict(amsgrad=True, foreach=True)),
    ("SGD", dict(momentum=0.9)),
    pytest.param("SGD", dict(momentum=0.9, nesterov=True, fused=True), marks=on_cpu),
    ("RMSprop", {}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMIZERS)
def test_merged_groups_take_the_same_steps(kind: str, options: dict[str, Any]):
    """Also if one layer gets its first gradient later than the others."""
    found = []
    for is_merged in (False, True):
        model, wrapper = wrapper_of(kind, **options)
        hook = merged(wrapper) if is_merged else None
        before = wrapper.optimizer.param_groups
        model[2].requires_grad_(False)
        learn(model, wrapper, 2)
        model[2].requires_grad_(True)
        with Calls(wrapper.optimizer) as calls:
            weights = learn(model, wrapper, 3)
        assert wrapper.optimizer.param_groups is before
        assert len(before) == 7
        assert (min(calls.groups) == 3) == (hook is not None)
        found.append((weights, wrapper.optimizer.state_dict()))
    (weights, state), (merged_weights, merged_state) = found
    assert all(wanted.isfinite().all() for wanted in weights)
    assert all(torch.equal(got, wanted) for got, wanted in zip(merged_weights, weights, strict=True))
    assert merged_state["param_groups"] == state["param_groups"]
    assert merged_state["state"].keys() == state["state"].keys()
    for i, wanted in state["state"].items():
        assert merged_state["state"][i].keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(torch.as_tensor(merged_state["state"][i][name]), torch.as_tensor(value))


@on_cpu
def test_one_call_for_each_setting():
    """Seven parameters with three settings: three calls of the fused kernel instead of seven."""
    model, wrapper = wrapper_of("AdamW", fused=True)
    model(torch.randn(4, 5)).sum().backward()
    for count in (7, 3):
        with Calls(wrapper.optimizer) as calls:
            wrapper.optimizer.step()
        assert calls.names.count("_fused_adamw_") == count
        assert calls.groups == {count}
        merged(wrapper)


def test_a_rate_of_its_own_stays():
    """Parameters whose settings become different in the course of a run are not merged any more."""
    model, wrapper = wrapper_of("SGD")
    merged(wrapper)
    before = learn(model, wrapper, 1)[0].clone()
    wrapper.optimizer.param_groups[0]["lr"] = 0.0
    after = learn(model, wrapper, 1)
    assert torch.equal(after[0], before)
    assert len(wrapper.optimizer.param_groups) == 7


def test_an_error_in_a_step(monkeypatch: pytest.MonkeyPatch):
    model, wrapper = wrapper_of("SGD")
    merged(wrapper)
    groups = wrapper.optimizer.param_groups

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sys.modules["torch.optim.sgd"], "sgd", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        learn(model, wrapper, 1)
    assert wrapper.optimizer.param_groups is groups


def test_schedulers_of_the_optimizer_itself():
    """Theirs is a step that belongs to an object."""
    _, wrapper = wrapper_of("SGD")
    merged(wrapper)
    scheduler = torch.optim.lr_scheduler.StepLR(wrapper.optimizer, 1)
    wrapper.optimizer.step()
    scheduler.step()
    assert wrapper.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
    assert "closure" in inspect.signature(wrapper.optimizer.step).parameters


@pytest.mark.parametrize("name", ["Adafactor", "Muon", "SparseAdam"])
def test_all_optimizers_of_torch(name: str):
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.zeros(2, 2))])
    assert merged(OptimWrapper(optimizer)).optimizers == [optimizer]


def test_several_optimizers_and_a_second_run_of_the_same_runner():
    _, first = wrapper_of("SGD")
    _, second = wrapper_of("SGD")
    runner = SimpleNamespace(optim_wrapper=OptimWrapperDict(generator=first, critic=second))
    hook = MergedGroupsHook()
    hook.before_run(runner)
    steps = [first.optimizer.step, second.optimizer.step]
    assert all(step.__self__ is w.optimizer for step, w in zip(steps, (first, second), strict=True))
    hook.before_run(runner)
    assert steps == [first.optimizer.step, second.optimizer.step]


@pytest.mark.parametrize("optim_wrapper", [None, dict(optimizer=dict(type="AdamW"))])
def test_no_optimizer_yet(optim_wrapper: Any):
    assert not merged(optim_wrapper).optimizers


@pytest.mark.parametrize(
    ("kind", "setting"),
    [(OwnAdamW, {}), (torch.optim.AdamW, dict(lr=torch.tensor(0.1))), (torch.optim.AdamW, dict(betas=[0.9, 0.999]))],
)
def test_groups_that_are_not_merged(kind: Any, setting: dict[str, Any]):
    """Those of other packages' optimizers, and those whose settings cannot be compared cheaply."""
    model = nn.Linear(3, 2)
    optimizer = kind([dict(params=[p]) for p in model.parameters()])
    for group in optimizer.param_groups:
        group.update(setting)
    merged(OptimWrapper(optimizer))
    model(torch.randn(2, 3)).sum().backward()
    with Calls(optimizer) as calls:
        optimizer.step()
    assert calls.groups == {2}
