"""timm's cosine learning-rate schedule as a parameter scheduler for mmengine."""

from __future__ import annotations

import math
from typing import Any

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin

from mmgcvit.compat import ParamScheduler
from mmgcvit.registry import PARAM_SCHEDULERS

LENGTHS = ("warmup", "T_max")


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, ParamScheduler):
    """Cosine schedule over the whole run, with its first part replaced by a linear warm-up (timm's CosineLRScheduler).

    With mmengine's LinearLR and CosineAnnealingLR, the cosine would start at the end of the warm-up: in the middle of
    310 epochs with 20 warm-up epochs, the learning rate would be 11 % higher.

    Args:
        optimizer: the optimizer or its wrapper.
        warmup: length of the warm-up, in epochs or iterations.
        T_max: length of the cosine including the warm-up; the learning rate is ``eta_min`` afterwards (cool-down).
        warmup_start: learning rate at the beginning.
        eta_min: learning rate at the end.
        **others: mmengine's arguments begin, end, by_epoch, convert_to_iter_based, last_step.

    Raises:
        ValueError: ``warmup`` is negative, or not below ``T_max``.
    """

    def __init__(
        self, optimizer: Any, *, warmup: int, T_max: int, warmup_start: float = 0.0, eta_min: float = 0.0, **others: Any
    ) -> None:
        if not 0 <= warmup < T_max:
            raise ValueError(f"warmup={warmup}; allowed: 0 to under T_max={T_max}")
        self.warmup, self.T_max, self.warmup_start, self.eta_min = warmup, T_max, warmup_start, eta_min
        super().__init__(optimizer, **others)

    @classmethod
    def build_iter_from_epoch(cls, *args: Any, epoch_length: int, **arguments: Any) -> WarmupCosineLR:
        """Build the same schedule in iterations (mmengine's ``convert_to_iter_based``)."""
        arguments.pop("by_epoch", None)
        lengths = {name: arguments[name] * epoch_length for name in (*LENGTHS, "begin", "end") if name in arguments}
        return cls(*args, by_epoch=False, **{**arguments, **lengths})

    def _get_value(self) -> list[float]:
        step = self.last_step
        if step < self.warmup:
            return [self.warmup_start + (base - self.warmup_start) * step / self.warmup for base in self.base_values]
        share = (1 + math.cos(math.pi * min(step / self.T_max, 1))) / 2
        return [self.eta_min + (base - self.eta_min) * share for base in self.base_values]
