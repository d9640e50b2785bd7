"""Adaptation of configs for several GPUs to runs with one process or on a CPU."""

from __future__ import annotations

import logging
import os
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from torch import distributed as dist
from torch import nn

from mmgcvit.errors import UsageError
from mmgcvit.utils.text import counted

ORIGINAL = "original_base_batch_size"  # key of ``auto_scale_lr`` for the config's own value
#: Environment variables with the number of processes, by launcher.
PROCESSES = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}


def world_size(cfg: Config) -> int:
    """Number of processes of a run with this config, before or after they are connected."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get(PROCESSES.get(cfg.get("launcher", "none"), ""), 1))


def revert_sync_bn(runner: Any) -> int:
    """Replace SyncBN by BN in a runner's model at world size 1 or on a CPU, where SyncBN is useless or cannot run.

    Parameters, buffers and their names stay the same, so checkpoints are interchangeable.

    Args:
        runner: mmengine's Runner, with its model built.

    Returns:
        The number of replaced layers; it is also logged.
    """
    model = getattr(runner, "model", None)
    if not isinstance(model, nn.Module):  # FlexibleRunner builds it later
        return 0
    layers = [name for name, module in model.named_modules() if type(module).__name__ == "SyncBatchNorm"]
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    if not layers or (runner.world_size > 1 and not on_cpu):
        return 0
    if is_model_wrapper(model):
        model.module = revert_sync_batchnorm(model.module)
    else:
        runner.model = revert_sync_batchnorm(model)
    reason = "on a CPU" if on_cpu else "with one process"
    print_log(f"SyncBN is replaced by BN in {counted(len(layers), 'layer')}: the run is {reason}", logger="current")
    return len(layers)


def scale_single_device_lr(cfg: Config, requested: bool | None = None) -> bool:
    """Enable mmengine's learning-rate scaling if the config or the caller asks for it, or in a run with one process.

    The learning rate is multiplied by (global batch size including gradient accumulation) /
    ``auto_scale_lr.base_batch_size``. If neither decides (no ``auto_scale_lr.enable`` in the config, and ``requested``
    is None), the rate is scaled in a run with one process whose batch is smaller than ``base_batch_size``.

    Args:
        cfg: the config of the run, which is changed.
        requested: True: scale; False: scale only if the config's ``enable`` is True; None: also apply the rule above.

    Returns:
        Whether the learning rate will be scaled.

    Raises:
        UsageError: scaling was requested, but the config has no ``base_batch_size``.
    """
    settings = cfg.get("auto_scale_lr") or {}
    # A config dumped by an earlier run has the batch size that mmengine was given, and the original one.
    base = settings.get(ORIGINAL, settings.get("base_batch_size"))
    steps = (cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)
    if requested or settings.get("enable"):
        if base is None:
            raise UsageError(
                "--auto-scale-lr: the config has no auto_scale_lr.base_batch_size; add "
                "auto_scale_lr = dict(base_batch_size=<global batch size that its learning rate is tuned for>)"
            )
    else:
        batch = (cfg.get("train_dataloader") or {}).get("batch_size")
        if requested is not None or "enable" in settings or not base or not batch or world_size(cfg) > 1:
            return False
        if batch * steps >= base:
            return False
        rate = (cfg.optim_wrapper.get("optimizer") or {}).get("lr")
        change = "" if rate is None else f" from {rate:g} to {rate * batch * steps / base:g}"
        print_log(
            f"the learning rate is scaled{change}: one process trains on {counted(batch * steps, 'image')} per step, "
            f"and the config is tuned for auto_scale_lr.base_batch_size={base}; --cfg-options "
            "auto_scale_lr.enable=False keeps it",
            logger="current",
            level=logging.WARNING,
        )
    # mmengine compares the batch of all processes, without gradient accumulation, with base_batch_size
    cfg.auto_scale_lr = dict(settings, enable=True, base_batch_size=base / steps)
    if steps > 1:
        cfg.auto_scale_lr[ORIGINAL] = base
    return True
