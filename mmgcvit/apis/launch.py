"""Building a runner in processes that were started by a launcher."""

from __future__ import annotations

import datetime
import logging
import os
import subprocess
import sys
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed as dist
from torch import nn

from mmgcvit.checkpoint.loading import accept_bare_network
from mmgcvit.engine.progress import Output, ProgressHook
from mmgcvit.engine.workers import guard_workers
from mmgcvit.errors import UsageError
from mmgcvit.utils.cores import usable_cores
from mmgcvit.utils.memory import paused_collector
from mmgcvit.utils.text import counted

TIMEOUT = 1800  # seconds without an answer of another process, after which a process gives up
#: What torch says about a process that has ended or hangs.
LOST = ("timed out", "connection closed by peer", "connection reset by peer", "broken pipe")


def use_available_cores(cfg: Config | None = None) -> None:
    """Use no more threads, and no more loader workers, than this process has cores.

    torch counts the cores of the machine, also in a container that may use two of them. ``OMP_NUM_THREADS`` overrides
    the number of threads.

    Args:
        cfg: config whose loaders are limited, with a warning. More processes than cores only take turns.
    """
    cores = usable_cores()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
    for name in ("train", "val", "test"):
        loader: Any = (cfg or {}).get(f"{name}_dataloader") or {}
        workers = loader.get("num_workers", 0)
        if workers > cores:
            loader["num_workers"] = cores
            print_log(
                f"{name}_dataloader.num_workers={workers}: this process may use "
                f"{counted(cores, 'core')}, so it is {cores}",
                logger="current",
                level=logging.WARNING,
            )


def build_runner(cfg: Config) -> Runner:
    """Build mmengine's runner for a config; several processes on a CPU are connected by gloo.

    A process that gets no answer of another one for ``env_cfg.dist_cfg.timeout`` seconds, by default :data:`TIMEOUT`,
    ends with an error, and the launcher ends the others.

    Inside :func:`~mmgcvit.engine.progress.short_output`, the runner shows its progress in short lines.
    """
    use_available_cores(cfg)
    timeout = TIMEOUT
    if cfg.launcher != "none":
        environment = cfg.setdefault("env_cfg", {})
        timeout = environment.setdefault("dist_cfg", {"backend": "nccl"}).setdefault("timeout", TIMEOUT)
    if cfg.launcher in ("pytorch", "slurm") and get_device() == "cpu":
        # mmengine would assign a GPU to each process. It reuses an existing process group, and the arguments of the
        # wrapper in the config take precedence over its defaults.
        if not dist.is_initialized():
            if cfg.launcher == "slurm":
                set_slurm_environment()
            dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel", "broadcast_buffers": False,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
            **cfg.get("model_wrapper_cfg", {}), "device_ids": None}  # fmt: skip
    runner = Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)
    guard_workers(runner)
    for build in ("build_dataloader", "build_evaluator"):  # they read annotation files
        setattr(runner, build, paused_collector()(getattr(runner, build)))
    if isinstance(sys.stdout, Output) and is_main_process():
        runner.register_hook(ProgressHook(sys.stdout))
    if isinstance(runner.model, nn.Module):  # FlexibleRunner builds it later
        accept_bare_network(runner.model)
    return runner


def set_slurm_environment() -> None:
    """Set torch's environment variables from Slurm's, by mmengine's rules.

    Raises:
        UsageError: this process was not started by Slurm.
    """
    missing = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in os.environ]
    if missing:
        raise UsageError(
            f"launcher='slurm': {', '.join(missing)} not in the environment; start the processes with srun, as "
            "tools/slurm_train.sh does"
        )
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_NTASKS"],
        LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"),
    )
    if "MASTER_ADDR" not in os.environ:
        nodes = subprocess.run(
            ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]], capture_output=True, text=True, check=True
        ).stdout.split()
        os.environ["MASTER_ADDR"] = nodes[0]
    os.environ.setdefault("MASTER_PORT", "29500")


def lost_process(error: RuntimeError, cfg: Config) -> str | None:
    """Message if an error says that another process of the run has ended or hangs; None for any other error."""
    text = str(error).strip()
    if cfg.launcher == "none" or not any(words in text.lower() for words in LOST):
        return None
    timeout = (cfg.get("env_cfg") or {}).get("dist_cfg", {}).get("timeout", TIMEOUT)
    return (
        f"process {os.environ.get('RANK', '?')}: another process of the run has ended, or has not answered for "
        f"{timeout} s (env_cfg.dist_cfg.timeout); its own output may say why. torch says: {text.splitlines()[0]}"
    )
