"""The number of processor cores that a process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: str | Path = "/") -> int:
    """Number of cores that this process may use: at least 1, and often fewer than ``os.cpu_count()``.

    Respects the CPU affinity (``taskset``, Slurm) and, on Linux, the CPU quota of the process's cgroups, versions 1
    and 2 (``docker run --cpus``, Kubernetes). A quota of 1.5 cores counts as 2: with one thread, half a core would be
    idle.

    Args:
        root: folder in the place of ``/``, for tests.
    """
    # Systems other than Linux have no affinity of processes.
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([there, *(math.ceil(quota) for quota in _quotas(Path(root)))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas of the process's cgroups and those around them, in cores."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:  # version 2
            for folder in (*_with_parents(mounted, group), *_with_parents(mounted / "unified", group)):
                yield from _quota(*(_read(folder / "cpu.max").split() + ["", ""])[:2])
        elif "cpu" in controllers.split(","):  # version 1; the folder may have the names of several controllers
            for name in {controllers, "cpu"}:
                for folder in _with_parents(mounted / name, group):
                    yield from _quota(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _with_parents(mounted: Path, group: str) -> Iterator[Path]:
    """Yield the folder of a cgroup and those around it, up to the mount point.

    A container may see a path of its host here, which does not exist; its own cgroup is the mount point then.
    """
    names = [name for name in group.split("/") if name not in ("", "..")]
    for count in range(len(names), -1, -1):
        yield mounted.joinpath(*names[:count])


def _quota(quota: str, period: str) -> Iterator[float]:
    """Yield the cores of a quota, unless it is 'max' or -1 (no limit), or the file does not exist."""
    try:
        cores = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return
    if cores > 0:
        yield cores


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
