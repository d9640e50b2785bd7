"""Optimizer wrapper for mixed precision on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmgcvit.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """mmengine's OptimWrapper with bfloat16 autocast on a CPU, where its AmpOptimWrapper refuses to run.

    The weights, their gradients and the optimizer stay in float32. There is no loss scale: bfloat16 has the range of
    float32.

    Args:
        Same as OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute the losses under autocast."""
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield
