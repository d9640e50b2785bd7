"""Implementations of some operations of the network.

:mod:`~mmgcvit.kernels.reference` defines them in plain PyTorch; :mod:`~mmgcvit.kernels.eager` and
:mod:`~mmgcvit.kernels.cpu` are faster implementations; :mod:`~mmgcvit.kernels.dispatch` chooses between them.
:mod:`~mmgcvit.kernels.fused`, in Triton, runs only under ``enabled("triton_attention")``.
"""

from mmgcvit.kernels.dispatch import (
    KERNELS,
    OPTIONAL,
    REFERENCE,
    Kernels,
    choose,
    choose_nchw,
    disabled,
    enabled,
    max_pack,
)
from mmgcvit.kernels.reference import Windows, convolution, plus
from mmgcvit.utils.capture import is_eager

__all__ = [
    "KERNELS",
    "OPTIONAL",
    "REFERENCE",
    "Kernels",
    "Windows",
    "choose",
    "choose_nchw",
    "convolution",
    "disabled",
    "enabled",
    "is_eager",
    "max_pack",
    "plus",
]
