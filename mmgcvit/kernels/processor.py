"""What the CPU kernels need to know about the processor.

Implementations are chosen by what the processor is and has, never by a measurement, so that the results of two runs on
one machine do not differ.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from mmgcvit.compat import onednn_has_bfloat16, onednn_linear

LARGE_L2 = 2**21  # bytes


@cache
def convolutions_are_faster() -> bool:
    """Whether a 1x1 convolution is faster than a float32 matrix product.

    torch computes convolutions by oneDNN and matrix products by MKL, which uses only half the vector width of AMD
    processors with AVX-512.
    """
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and "AuthenticAMD" in _description()
    )


@cache
def onednn_linear_is_faster() -> bool:
    """Whether oneDNN's linear layer, which adds the bias as it writes the result, is faster than torch's own.

    torch's own copies the bias to each row first. Measured on an Intel Xeon with AVX-512 only.
    """
    has_it = onednn_linear is not None and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return has_it and not convolutions_are_faster()


@cache
def weight_gradients_are_slow() -> bool:
    """Whether oneDNN computes the weight gradient of a channels-last convolution slower than matrix products do.

    Measured on an AMD with AVX2 only; other processors are left to oneDNN.
    """
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX2"


@cache
def multiplies_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32 ones (AMX or AVX512-BF16).

    False if oneDNN may not use these instructions (``ONEDNN_MAX_CPU_ISA``).
    """
    has_instructions = "amx_bf16" in _description() or "avx512_bf16" in _description()
    return onednn_linear is not None and has_instructions and onednn_has_bfloat16()


@cache
def pack_bytes() -> int:
    """Size of the part of a map that a block processes at a time, by a core's second-level cache."""
    size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
    try:
        kilobytes = int(size.read_text().strip().removesuffix("K"))
    except (OSError, ValueError):
        kilobytes = 0
    return 2**22 if kilobytes * 1024 >= LARGE_L2 else 2**20


@cache
def _description() -> str:
    """What Linux says about the first processor; empty on other systems."""
    info = Path("/proc/cpuinfo")
    return info.read_text().partition("\n\n")[0] if info.exists() else ""
