"""Optimizer wrappers for parameters that are sharded across processes (torch's FullyShardedDataParallel)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmgcvit.registry import OPTIM_WRAPPERS


class _ClipsGlobalNorm(OptimWrapper):
    """Mixin that clips gradients by their global norm over all shards.

    mmengine calls ``torch.nn.utils.clip_grad_norm_``, which sees only the shards of its own process: their norms are
    smaller than the global norm and differ, so that processes would clip by different factors. FSDP's own
    ``clip_grad_norm_`` combines the norms of all shards.
    """

    model: nn.Module | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Keep a reference to the model for this step: the optimizer has only its parameters."""
        self.model = model
        with super().optim_context(model):
            yield

    def _clip_grad(self) -> None:
        if isinstance(self.model, FullyShardedDataParallel) and self.clip_func is torch.nn.utils.clip_grad_norm_:
            norm = self.model.clip_grad_norm_(**self.clip_grad_kwargs)
            self.message_hub.update_scalar(f"train/{self.grad_name}", float(norm))
        else:
            super()._clip_grad()


@OPTIM_WRAPPERS.register_module()
class FSDPOptimWrapper(_ClipsGlobalNorm, OptimWrapper):
    """mmengine's OptimWrapper that clips sharded gradients by their global norm.

    Args:
        Same as OptimWrapper; ``clip_grad`` by norm supports ``max_norm`` and ``norm_type``.
    """


@OPTIM_WRAPPERS.register_module()
class FSDPAmpOptimWrapper(_ClipsGlobalNorm, AmpOptimWrapper):
    """mmengine's AmpOptimWrapper that clips sharded gradients by their global norm, with torch's ShardedGradScaler.

    Args:
        Same as AmpOptimWrapper, with ``use_fsdp`` True by default.
    """

    def __init__(self, *args: Any, use_fsdp: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, use_fsdp=use_fsdp, **kwargs)
