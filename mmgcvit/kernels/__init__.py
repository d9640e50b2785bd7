"""How a few operations of the network are computed.

:mod:`~mmgcvit.kernels.reference` says what they are, in plain PyTorch; :mod:`~mmgcvit.kernels.eager` and
:mod:`~mmgcvit.kernels.cpu` do the same faster; :mod:`~mmgcvit.kernels.dispatch` picks one.
"""

from mmgcvit.kernels.dispatch import KERNELS, REFERENCE, Kernels, choose, disabled, is_unmodified, max_pack
from mmgcvit.utils.capture import is_eager

__all__ = ["KERNELS", "REFERENCE", "Kernels", "choose", "disabled", "is_eager", "is_unmodified", "max_pack"]
