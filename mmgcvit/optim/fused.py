"""torch's fused optimizers: one kernel for many parameters instead of several for each."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.registry import OPTIMIZERS
from torch import nn

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
    if not inspect.isclass(kind) or not issubclass(kind, torch.optim.Optimizer):
        return False
    if not kind.__module__.startswith("torch.optim.") or "fused" not in inspect.signature(kind).parameters:
        return False
    try:
        build: Any = kind
        build([nn.Parameter(torch.zeros(1, device=device))], lr=0.1, fused=True)
    except RuntimeError:
        return False
    return True
