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
from torch import Tensor, nn

try:
    is_compiling = torch.compiler.is_compiling
except AttributeError:  # torch 2.1
    from torch._dynamo.external_utils import is_compiling  # noqa: F401

#: Whether ``torch.jit.trace`` is running.
is_tracing: Callable[[], bool] = torch._C._is_tracing

#: Whether a transform of ``torch.func`` (grad, vmap, jvp, ...) is running.
functorch_is_active: Callable[[], bool] = torch._C._are_functorch_transforms_active

#: Whether torch may call oneDNN (``torch.backends.mkldnn.flags`` switches it off).
onednn_is_enabled: Callable[[], bool] = torch._C._get_mkldnn_enabled

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


def does_more_than_forward(module: nn.Module) -> bool:
    """Whether calling a module, or a part of it, is more than running the ``forward`` of its class.

    It is with hooks (sharding, observers), with a ``forward`` replaced on the instance (offloading), and after
    ``module.compile()``.
    """
    for hooks in GLOBAL_HOOKS:
        if hooks:
            return True
    for part in module.modules():
        attributes = vars(part)
        if "forward" in attributes or attributes.get("_compiled_call_impl") is not None:
            return True
        for name in MODULE_HOOKS:
            if attributes[name]:
                return True
    return False


def autocast_is_enabled(device: str) -> bool:
    """Whether autocast is on for a device type; torch 2.1 has a function for each."""
    if hasattr(torch, "get_autocast_dtype"):
        return torch.is_autocast_enabled(device)
    return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that matrix products with x are computed in: x's own, or that of autocast."""
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not autocast_is_enabled(device):
        return x.dtype
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype(device)
    return torch.get_autocast_cpu_dtype() if device == "cpu" else torch.get_autocast_gpu_dtype()


def storage_id(tensor: Tensor) -> int:
    """What tells the memory behind a tensor from other memory, on the meta device too."""
    return tensor.untyped_storage()._cdata


def softmax_backward(gradient: Tensor, output: Tensor) -> Tensor:
    """Gradient of a softmax over the last dimension, from that of its output."""
    return torch._softmax_backward_data(gradient, output, -1, output.dtype)


# Checkpoints: state dict hooks, and the unpickler whose steps can be restricted.

#: The unpickler in Python: its ``dispatch`` table and ``stack`` let a subclass check every step before it is taken.
PythonUnpickler: Any = vars(pickle)["_Unpickler"]

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
