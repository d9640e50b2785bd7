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
#: What PyTorch, cuBLAS and cuDNN say when memory is used up: cuDNN then has no algorithm that it supports.
OUT_OF_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_SUPPORTED", "can't allocate memory")
PART = 0.85  # of the memory that may be used: later batches may be larger


def largest_batch(trial: Callable[[int], bool], limit: int, least: int = 1) -> int:
    """Return the largest power of two times the least size, or the limit, that a trial succeeds with.

    Args:
        trial: batch size -> whether it fits.
        limit: largest batch size.
        least: the first one to try.

    Raises:
        UsageError: not even that one fits.
    """
    best, batch = 0, min(least, limit)
    while trial(batch):
        best = batch
        if batch == limit:
            break
        batch = min(2 * batch, limit)
    if not best:
        raise UsageError(
            f"not even a batch of {min(least, limit)} fits into the memory of the GPU; use a smaller --size or --arch"
        )
    return best


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory was used up: torch's own class, or the words of a library that torch calls."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(said in str(error) for said in OUT_OF_MEMORY)


def fits(cfg: Config, batch: int, device: str = "cuda") -> bool:
    """Whether a few training steps with a batch size fit into the memory of a GPU; on a CPU they only run."""
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    cfg.train_dataloader.update(batch_size=batch, num_workers=0, persistent_workers=False)
    for part in (cfg.model, cfg.model.backbone):
        part.init_cfg = None
    if on_gpu := device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
    model = loader = wrapper = None
    try:
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).to(device).train()
        loader = Runner.build_dataloader(cfg.train_dataloader)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        for data in islice(loader, STEPS):
            model.train_step(data, wrapper)
        total = torch.cuda.get_device_properties(device).total_memory if on_gpu else 0
        return not on_gpu or torch.cuda.max_memory_reserved(device) <= PART * total
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        del model, loader, wrapper
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()
