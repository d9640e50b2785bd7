"""Implementations of some operations of the network.

:mod:`~mmgcvit.kernels.reference` defines them in plain PyTorch; :mod:`~mmgcvit.kernels.eager` and
:mod:`~mmgcvit.kernels.cpu` are faster implementations; :mod:`~mmgcvit.kernels.dispatch` chooses between them.
"""

from mmgcvit.kernels.dispatch import KERNELS, REFERENCE, Kernels, choose, disabled, max_pack
from mmgcvit.utils.capture import is_eager

__all__ = ["KERNELS", "REFERENCE", "Kernels", "choose", "disabled", "is_eager", "max_pack"]
