"""The largest batch that fits into a GPU's memory."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from itertools import islice

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmgcvit.errors import UsageError

STEPS = 3  # training steps of a trial: augmented images differ in size
PART = 0.85  # of the memory that may be used: later batches may be larger


def largest_batch(trial: Callable[[int], bool], limit: int) -> int:
    """Return the largest power of two, or the limit, that a trial succeeds with.

    Args:
        trial: batch size -> whether it fits.
        limit: largest batch size.

    Raises:
        UsageError: not even one image fits.
    """
    best, batch = 0, 1
    while trial(batch):
        best = batch
        if batch == limit:
            break
        batch = min(2 * batch, limit)
    if not best:
        raise UsageError("not even one image fits into the memory of the GPU; use a smaller --size or --arch")
    return best


def fits(cfg: Config, batch: int) -> bool:
    """Whether a few training steps with a batch size fit into the memory of the GPU."""
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    cfg.train_dataloader.update(batch_size=batch, num_workers=0, persistent_workers=False)
    for part in (cfg.model, cfg.model.backbone):
        part.init_cfg = None
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    model = loader = wrapper = None
    try:
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).train()
        loader = Runner.build_dataloader(cfg.train_dataloader)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        for data in islice(loader, STEPS):
            model.train_step(data, wrapper)
        return torch.cuda.max_memory_reserved() <= PART * torch.cuda.get_device_properties(device).total_memory
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        del model, loader, wrapper
        gc.collect()
        torch.cuda.empty_cache()
