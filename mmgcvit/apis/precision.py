"""Mixed precision of training, evaluation and inference."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from torch import Tensor, nn

from mmgcvit.errors import UsageError
from mmgcvit.registry import type_name

AMP = {"fp16": torch.float16, "bf16": torch.bfloat16}
ON_CPU = "mmgcvit.CPUAmpOptimWrapper"
FLOAT32 = {"AmpOptimWrapper": "OptimWrapper", "FSDPAmpOptimWrapper": "mmgcvit.FSDPOptimWrapper"}
MIXED = {"OptimWrapper": "AmpOptimWrapper", "FSDPOptimWrapper": "mmgcvit.FSDPAmpOptimWrapper"}


def use_mixed_precision(cfg: Config, kind: str) -> None:
    """Let a run train in mixed precision.

    Args:
        cfg: config with an ``optim_wrapper``.
        kind: 'fp16' on a GPU, with a dynamic loss scale and, unless the config clips gradients, clipping at a norm of
            35; 'bf16' on a GPU or a CPU.

    Raises:
        UsageError: an unknown kind, or 'fp16' without a GPU.
    """
    _check(kind, get_device())
    wrapper = cfg.optim_wrapper
    if get_device() == "cpu":
        _use_bfloat16_on_cpu(cfg)
        return
    wrapper.type = MIXED.get(type_name(wrapper).replace("CPUAmp", "").replace("Amp", ""), "AmpOptimWrapper")
    if kind == "bf16":
        wrapper.dtype = "bfloat16"
        return
    wrapper.setdefault("loss_scale", "dynamic")
    if not wrapper.get("clip_grad"):
        wrapper.clip_grad = dict(max_norm=35, norm_type=2)


def fit_precision_to_device(cfg: Config) -> None:
    """Let a config with mixed precision run on a CPU: bfloat16 stays mixed, anything else becomes float32."""
    wrapper = cfg.get("optim_wrapper") or Config()
    if type_name(wrapper) not in FLOAT32 or get_device() != "cpu":
        return
    if wrapper.get("dtype") in ("bfloat16", torch.bfloat16):
        _use_bfloat16_on_cpu(cfg)
        return
    print_log("the config's mixed precision is disabled: there is no GPU", level=logging.WARNING)
    wrapper.type = FLOAT32[type_name(wrapper)]
    for key in ("dtype", "loss_scale", "use_fsdp"):
        wrapper.pop(key, None)


def _use_bfloat16_on_cpu(cfg: Config) -> None:
    cfg.optim_wrapper.type = ON_CPU
    for key in ("dtype", "loss_scale", "use_fsdp"):
        cfg.optim_wrapper.pop(key, None)


def predict_in(kind: str | None, model: nn.Module, device: str | None = None) -> None:
    """Let the backbone of a model predict in mixed precision; its maps and all other parts are float32.

    Heads in bfloat16 would round the coordinates of boxes to 8 bits.

    Args:
        kind: 'fp16' (GPU only), 'bf16', or None for float32.
        model: a detector, segmentor or classifier, or a model around one.
        device: 'cpu', 'cuda:0', ...; by default a GPU if there is one.

    Raises:
        UsageError: an unknown kind, or 'fp16' without a GPU.
    """
    if kind is None:
        return
    device = device or get_device()
    _check(kind, device)
    for module in list(model.modules()):
        backbone = getattr(module, "backbone", None)
        if isinstance(backbone, nn.Module):
            context = torch.autocast(device.partition(":")[0], AMP[kind])
            backbone.forward = partial(_forward_in, context, backbone.forward)


def _forward_in(context: torch.autocast, forward: Callable, *args: Any, **kwargs: Any) -> Any:
    with context:
        maps = forward(*args, **kwargs)
    if isinstance(maps, Tensor):
        return maps.float()
    return type(maps)(m.float() for m in maps)


def _check(kind: str, device: str) -> None:
    if kind not in AMP:
        raise UsageError(f"amp={kind!r}; allowed: {', '.join(AMP)}")
    if device == "cpu" and kind != "bf16":
        raise UsageError(f"--amp {kind} needs a GPU; allowed on a CPU: --amp bf16")
