"""Steps of an optimizer whose parameters are sharded among processes (torch's FullyShardedDataParallel)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel


class _ClipsWholeNorm:
    """Clips by the norm of all shards.

    mmengine calls ``torch.nn.utils.clip_grad_norm_``, which in each process sees its own shards: their norms are
    smaller than the whole one and differ, so that processes clip by different factors or not at all. Of a model that
    FSDP wraps its own ``clip_grad_norm_`` is called, which adds the shards' norms up.
    """

    model: nn.Module | None = None

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Keep the model whose step this is: an optimizer knows its parameters alone."""
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
class FSDPOptimWrapper(_ClipsWholeNorm, OptimWrapper):
    """mmengine's OptimWrapper, which clips sharded gradients by their whole norm.

    Args:
        As OptimWrapper's; of ``clip_grad`` by norm ``max_norm`` and ``norm_type``.
    """


@OPTIM_WRAPPERS.register_module()
class FSDPAmpOptimWrapper(_ClipsWholeNorm, AmpOptimWrapper):
    """The same in mixed precision, with torch's ShardedGradScaler.

    Args:
        As AmpOptimWrapper's, ``use_fsdp`` being True by default.
    """

    def __init__(self, *args: Any, use_fsdp: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, use_fsdp=use_fsdp, **kwargs)
