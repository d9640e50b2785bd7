"""Finding the checkpoint to resume from."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from mmengine.logging import print_log

from mmgcvit.checkpoint.limits import RefusedError
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.errors import CheckpointError, UsageError
from mmgcvit.utils.files import require_file

POINTER = "last_checkpoint"  # the file in which mmengine names the newest checkpoint


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the newest checkpoint of a run: the one named in ``last_checkpoint``, or else the newest complete one.

    A run killed while writing leaves a truncated file or an empty ``last_checkpoint``; these are skipped. Only the end
    of the files is read.
    """
    for path in _candidates(Path(work_dir)):
        if "://" in path or zipfile.is_zipfile(path):  # the zip directory is at the end, so this file is complete
            return path
    return None


def checkpoint_to_resume(work_dir: str | Path) -> str | None:
    """Return the newest checkpoint of a run that is whole and has finite weights.

    Each damaged file is named in a warning, and the one before is taken.

    Raises:
        UsageError: there are checkpoints, and all are damaged.
    """
    damaged = []
    for path in _candidates(Path(work_dir)):
        reason = None if "://" in path else find_damage(path)
        if reason is None:
            return path
        damaged.append(path)
        print_log(
            f"--resume: checkpoint {path!r} is damaged and not used: {reason}. Trying the one before it",
            logger="current",
            level=logging.WARNING,
        )
    if damaged:
        raise UsageError(
            f"--resume: all checkpoints in {str(work_dir)!r} are damaged ({', '.join(map(repr, damaged))}). To start "
            "from scratch, use another --work-dir or move them"
        )
    return None


def require_whole(checkpoint: str) -> str:
    """Return the name of a checkpoint to resume from, unless it is a damaged local file.

    Raises:
        UsageError: it does not exist or is damaged.
    """
    require_file("checkpoint to resume from", checkpoint)
    if "://" not in checkpoint and (reason := find_damage(checkpoint)):
        raise UsageError(f"checkpoint to resume from {checkpoint!r}: {reason}")
    return checkpoint


def find_damage(path: str | Path) -> str | None:
    """Return why a run cannot be resumed from a local file; None if it is whole and has finite weights.

    All of the file is read, and compared with the checksums in it.

    Raises:
        UsageError: the file asks for something that the reader refuses. It may be whole, so no other file is taken.
    """
    try:
        found = read_checkpoint(path)
    except RefusedError as error:
        raise UsageError(f"--resume: {error}") from error
    except CheckpointError as error:
        return str(error)
    weights, meta = found.get("state_dict"), found.get("meta")
    if not isinstance(weights, Mapping) or not isinstance(meta, Mapping) or not {"epoch", "iter"} <= meta.keys():
        return "it has weights, but not the state of a run (load_from takes it)"
    for name, value in weights.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
            return f"{name} has NaN or infinite values"
    return None


def _candidates(folder: Path) -> Iterator[str]:
    """Yield the checkpoint that ``last_checkpoint`` names, and those in the folder, the newest first."""
    # not best_*.pth, which have no optimizer
    found = [path for pattern in ("epoch_*.pth", "iter_*.pth") for path in folder.glob(pattern) if path.is_file()]
    candidates = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    named = _named(folder / POINTER)
    if "://" in named:
        yield named
        return
    # the work directory may have been moved in the meantime
    first = [path for path in (Path(named), folder / Path(named).name) if named and path.is_file()]
    seen = set()
    for path in first + candidates:
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield str(path)


def _named(pointer: Path) -> str:
    """The path or URL in a ``last_checkpoint``; '' if it holds anything else."""
    try:
        if not pointer.is_file() or pointer.stat().st_size > 10_000:
            return ""
        named = pointer.read_bytes().decode().strip()
        if not named.isprintable() or ("://" in named and not re.match(r"[a-z][a-z0-9+.:-]*://\S+$", named)):
            return ""
        Path(named).is_file()  # the system may not allow the name
    except (OSError, ValueError):
        return ""
    return named
