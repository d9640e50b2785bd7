"""When the backbone may order its work for a CPU's caches: at once, not while a compiler or exporter looks on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

try:
    _is_compiling = torch.compiler.is_compiling
except AttributeError:  # torch 2.1
    from torch._dynamo.external_utils import is_compiling as _is_compiling


def eager_on_cpu(x: Tensor) -> bool:
    """Whether x lies on a CPU and is computed with at once: not compiled, exported, traced, or under torch.func."""
    if x.device.type != "cpu" or _is_compiling():
        return False
    return not (torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is what it was built as, so that its weight may be used without calling it.

    It is not where it was replaced or subclassed (as for low-rank adaptation), or has hooks (as pruning has).
    """
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks
