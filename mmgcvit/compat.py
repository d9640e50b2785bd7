"""Every private interface of torch, mmengine, mmcv, mmdet, mmseg and timm that the package uses.

Nothing else in the package imports a name that begins with an underscore from another library.
``tests/test_compat*.py`` check that each of them still exists and still means the same, so that a new release breaks a
test and not a user.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

try:
    is_compiling = torch.compiler.is_compiling
except AttributeError:  # torch 2.1
    from torch._dynamo.external_utils import is_compiling  # type: ignore[no-redef]  # noqa: F401

#: Attributes of a module that hold its hooks. A module with an entry in any of them must be called.
MODULE_HOOKS = tuple(
    name for name, value in vars(nn.Module()).items() if name.endswith("_hooks") and "state_dict" not in name
)
#: The dicts of hooks that run for every module of the process.
GLOBAL_HOOKS = tuple(
    value
    for name, value in vars(torch.nn.modules.module).items()
    if name.startswith("_global_") and name.endswith("_hooks") and "registration" not in name
)


def functorch_is_active() -> bool:
    """Whether a transform of ``torch.func`` (grad, vmap, jvp, ...) is running."""
    return torch._C._are_functorch_transforms_active()


def onednn_is_enabled() -> bool:
    """Whether torch may call oneDNN (``torch.backends.mkldnn.flags`` switches it off)."""
    return torch._C._get_mkldnn_enabled()


def has_own_call(module: nn.Module) -> bool:
    """Whether the ``forward`` of a module was replaced on the instance, as offloading does."""
    return "forward" in vars(module)


# Checkpoints: state dict hooks, and the unpickler whose steps can be restricted.

#: The unpickler in Python: its ``dispatch`` table and ``stack`` let a subclass check every step before it is taken.
PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]

StateDictHook = Callable[..., None]


def load_state_dict_pre_hooks(module: nn.Module) -> list[StateDictHook]:
    """The hooks that run before ``module`` takes a state dict."""
    return [getattr(known, "hook", known) for known in module._load_state_dict_pre_hooks.values()]


def add_load_state_dict_pre_hook(module: nn.Module, hook: StateDictHook) -> None:
    """Call ``hook(module, state_dict, prefix, ...)`` before ``module`` and its children take a state dict.

    The same hook is added once only, however often this is called.
    """
    if hook in load_state_dict_pre_hooks(module):
        return
    if hasattr(module, "register_load_state_dict_pre_hook"):
        module.register_load_state_dict_pre_hook(hook)
    else:  # before torch 2.5
        module._register_load_state_dict_pre_hook(hook, with_module=True)
