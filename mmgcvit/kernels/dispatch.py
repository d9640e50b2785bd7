"""Choice of the implementations by device, mode, and whether a module was modified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmgcvit.compat import (
    autocast_is_enabled,
    compute_dtype,
    forward_ad_level,
    functorch_is_active,
    is_built_from,
    is_compiling,
    is_tracing,
)
from mmgcvit.kernels import cpu, cpu_attention, cpu_convolution, eager, reference
from mmgcvit.utils.capture import is_eager


@dataclass(frozen=True)
class Kernels:
    """One implementation of each operation; see :mod:`mmgcvit.kernels.reference` for what they compute."""

    linear: Callable = reference.linear
    mlp: Callable = reference.mlp
    residual: Callable = reference.residual
    convolution: Callable = reference.convolution
    mbconv_tail: Callable = reference.mbconv_tail
    attention: Callable = reference.attention
    position_biases: Callable = reference.position_biases


REFERENCE = Kernels()
EAGER = Kernels(
    mlp=eager.mlp,
    residual=eager.residual,
    mbconv_tail=eager.mbconv_tail,
    position_biases=eager.position_biases,
)
CPU = Kernels(
    linear=cpu.linear,
    mlp=cpu.mlp,
    residual=cpu.residual,
    convolution=cpu_convolution.convolution,
    mbconv_tail=cpu.mbconv_tail,
    attention=cpu_attention.attention,
    position_biases=cpu_attention.position_biases,
)
#: Names that can be disabled, and the operations that belong to each.
KERNELS = {
    "linear": ("linear",),
    "mlp": ("mlp",),
    "residual": ("residual",),
    "convolution": ("convolution",),
    "mbconv_tail": ("mbconv_tail",),
    "window_attention": ("attention", "position_biases"),
    "packs": (),  # processing some of the windows at a time
}
#: Implementations that run only under :func:`enabled`, as no measurement has shown yet where they pay.
OPTIONAL = ("triton_attention",)
_disabled: set[str] = set()
_tables: dict[str, Kernels] = {"cpu": CPU, "eager": EAGER}


def choose(x: Tensor, module: nn.Module) -> Kernels:
    """Choose the implementations for what ``module`` computes of x.

    While a graph is captured, and if the module or a part of it was modified, this is the reference, which calls every
    module.
    """
    captured = is_compiling() or is_tracing() or functorch_is_active() or forward_ad_level() >= 0  # is_eager(), inlined
    if captured or not is_built_from(module, _BUILT_FROM, _OWN):
        return REFERENCE
    if x.device.type != "cpu":
        return _tables["eager"]
    return cpu.with_cast_weights(_tables["cpu"]) if autocast_is_enabled("cpu") else _tables["cpu"]


def choose_nchw(x: Tensor) -> Callable[[Tensor], Tensor]:
    """Choose the implementation of :func:`mmgcvit.kernels.reference.nchw` for maps that are computed from x."""
    return (cpu if x.device.type == "cpu" and is_eager() else reference).nchw


def max_pack(x: Tensor) -> int | None:
    """Preferred number of elements of a map that a block processes at a time in eager mode; None for all."""
    if x.device.type != "cpu" or "packs" in _disabled:
        return None
    return cpu.pack_elements(compute_dtype(x), kept=torch.is_grad_enabled())


#: What blocks and MBConvs are built from. A subclass, of these or of the network's own classes, counts as modified.
_BUILT_FROM = (nn.Linear, nn.LayerNorm, nn.Conv2d)
_OWN = "mmgcvit.backbone."


@contextmanager
def disabled(*names: str) -> Iterator[None]:
    """Use the reference for some operations, e.g. ``disabled("linear")``; for tests and ablations.

    Args:
        *names: keys of :data:`KERNELS`.

    Raises:
        ValueError: an unknown name.
    """
    unknown = [name for name in names if name not in KERNELS]
    if unknown:
        raise ValueError(f"disabled: {', '.join(map(repr, unknown))}; allowed: {', '.join(KERNELS)}")
    before = dict(_tables), set(_disabled)
    operations = [operation for name in names for operation in KERNELS[name]]
    for key, kernels in _tables.items():
        _tables[key] = replace(kernels, **{operation: getattr(REFERENCE, operation) for operation in operations})
    _disabled.update(names)
    try:
        yield
    finally:
        _tables.update(before[0])
        _disabled.clear()
        _disabled.update(before[1])


@contextmanager
def enabled(*names: str) -> Iterator[None]:
    """Use optional implementations in eager mode on a GPU: ``enabled("triton_attention")``.

    Args:
        *names: of :data:`OPTIONAL`.

    Raises:
        ValueError: an unknown name.
        ImportError: Triton is not installed.
    """
    unknown = [name for name in names if name not in OPTIONAL]
    if unknown:
        raise ValueError(f"enabled: {', '.join(map(repr, unknown))}; allowed: {', '.join(OPTIONAL)}")
    before = _tables["eager"]
    if "triton_attention" in names:
        from mmgcvit.kernels import fused  # needs Triton, which torch has on Linux with a GPU

        _tables["eager"] = replace(before, attention=fused.attention)
    try:
        yield
    finally:
        _tables["eager"] = before
