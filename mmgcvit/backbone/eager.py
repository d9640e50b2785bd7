"""When the backbone may order its work for a CPU's caches: at once, not while a compiler or exporter looks on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

try:
    _is_compiling = torch.compiler.is_compiling
except AttributeError:  # torch 2.1
    from torch._dynamo.external_utils import is_compiling as _is_compiling

# Where torch keeps the hooks of a module, and those of all modules.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(getattr(torch.nn.modules.module, f"_global{name}") for name in _HOOKS)


def eager_on_cpu(x: Tensor) -> bool:
    """Whether x lies on a CPU and is computed with at once: not compiled, exported, traced, or under torch.func."""
    if x.device.type != "cpu" or _is_compiling():
        return False
    return not (torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())


def autocasts_on_cpu() -> bool:
    """Whether operations on a CPU are under autocast."""
    return torch.is_autocast_enabled("cpu") if hasattr(torch, "get_autocast_dtype") else torch.is_autocast_cpu_enabled()


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is what it was built as, so that its weight may be used without calling it.

    It is not where it was replaced or subclassed (as for low-rank adaptation or a parametrization), where its forward
    was replaced (as by offloading), where there are hooks (as for sharding or for watching), or where a weight computes
    in its own way (as a quantised one does).
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in _HOOKS)
        and not any(_GLOBAL_HOOKS)
        and all(p is None or is_ordinary(p) for p in module._parameters.values())
    )


def is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor is of no class that computes in its own way."""
    return type(tensor) in (Tensor, nn.Parameter)
