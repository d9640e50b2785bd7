"""Optimizer steps with few kernels: torch's fused optimizers, and one call for all groups with the same settings."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIMIZERS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmgcvit.registry import HOOKS

#: Arguments that choose an implementation of torch's optimizers. Whoever sets one has chosen.
CHOICES = ("fused", "foreach", "capturable", "differentiable")


def with_fused_optimizer(optim_wrapper: Any) -> Any:
    """Let a config's optimizer use torch's fused implementation, where there is one for the optimizer and the device.

    Args:
        optim_wrapper: ``optim_wrapper`` of a config.

    Returns:
        A changed copy; ``optim_wrapper`` itself if its optimizer is not torch's, has no fused implementation, or names
        one already: ``optimizer=dict(type='AdamW', fused=False, ...)``.
    """
    optimizer = optim_wrapper.get("optimizer") if isinstance(optim_wrapper, Mapping) else None
    if not isinstance(optimizer, Mapping) or any(choice in optimizer for choice in CHOICES):
        return optim_wrapper
    kind = optimizer.get("type")
    kind = OPTIMIZERS.get(kind) if isinstance(kind, str) else kind
    if not supports_fused(kind, get_device()):
        return optim_wrapper
    changed: Any = copy.deepcopy(optim_wrapper)
    changed["optimizer"]["fused"] = True
    return changed


def supports_fused(kind: Any, device: str) -> bool:
    """Whether a class of optimizers is torch's own and has a fused implementation for a device.

    torch has none for CPUs before 2.4.
    """
    if not _is_torchs_own(kind) or "fused" not in inspect.signature(kind).parameters:
        return False
    try:
        build: Any = kind
        build([nn.Parameter(torch.zeros(1, device=device))], lr=0.1, fused=True)
    except RuntimeError:
        return False
    return True


def _is_torchs_own(kind: Any) -> bool:
    is_optimizer = inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    return is_optimizer and f"{kind.__module__}.".startswith("torch.optim.")


@HOOKS.register_module()
class MergedGroupsHook(Hook):
    """Let torch's optimizers update all parameters with the same settings in one call.

    With ``paramwise_cfg``, mmengine makes each parameter a group of its own, and torch launches its kernels once per
    group. Merged groups give the parameters the same values. They exist only while a step runs: schedules, logs and
    checkpoints have mmengine's groups. Hooks of the step itself (``register_step_pre_hook``) see the merged ones.
    Optimizers of other packages are left alone, as they may compute something over a whole group.

    Also for runs of mmdet's and mmseg's own tools: ``custom_hooks = [dict(type='mmgcvit.MergedGroupsHook')]``.
    """

    def __init__(self) -> None:
        self.optimizers: list[torch.optim.Optimizer] = []

    def before_run(self, runner: Runner) -> None:
        """Change the step of the run's optimizers."""
        for optimizer in _optimizers(runner.optim_wrapper):
            if _is_torchs_own(type(optimizer)) and optimizer not in self.optimizers:
                _merge_groups_in_steps(optimizer)
                self.optimizers.append(optimizer)


def _merge_groups_in_steps(optimizer: Any) -> None:
    step = optimizer.step

    @functools.wraps(getattr(step, "__func__", step))
    def merged_step(_: Any, *args: Any, **kwargs: Any) -> Any:
        groups = optimizer.param_groups
        optimizer.param_groups = _merged(optimizer)
        try:
            return step(*args, **kwargs)
        finally:
            optimizer.param_groups = groups

    optimizer.step = MethodType(merged_step, optimizer)  # schedulers ask for the object that a step belongs to


def _merged(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Merge groups with equal settings; if settings cannot be compared cheaply, return the groups themselves.

    Parameters that have no state yet, as they have had no gradient, stay apart: torch's fused SGD takes buffers for all
    parameters of a group, or for none.
    """
    merged: dict[tuple, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        settings = tuple(group.get(name) for name in optimizer.defaults)
        if any(isinstance(value, (Tensor, list)) for value in settings):
            return optimizer.param_groups
        states = [optimizer.state.get(parameter) for parameter in group["params"]]
        is_started = all(state and all(value is not None for value in state.values()) for state in states)
        merged.setdefault((is_started, *settings), {**group, "params": []})["params"].extend(group["params"])
    return list(merged.values())


def _optimizers(optim_wrapper: Any) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizers of a wrapper or of several; none if they are not built yet."""
    if isinstance(optim_wrapper, OptimWrapperDict):
        for part in optim_wrapper.values():
            yield from _optimizers(part)
    elif isinstance(optim_wrapper, OptimWrapper):
        yield optim_wrapper.optimizer
