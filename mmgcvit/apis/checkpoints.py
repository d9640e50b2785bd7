"""Checkpoints of runs: the one to resume from, and mmengine's reading of them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader

from mmgcvit.checkpoint.layouts import unwrap_checkpoint
from mmgcvit.checkpoint.loading import resolve_source
from mmgcvit.checkpoint.reader import read_checkpoint

READER = "mmgcvit-reader://"  # prefix of a checkpoint's name: mmengine reads it with the package's own reader


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint to resume from: the one that ``last_checkpoint`` names, or else the newest intact one.

    A run that is killed while writing leaves a truncated file or an empty ``last_checkpoint``; these are skipped.
    """
    folder = Path(work_dir)
    # not best_*.pth, which have no optimizer
    found = [path for pattern in ("epoch_*.pth", "iter_*.pth") for path in folder.glob(pattern)]
    candidates = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        named = pointer.read_text().strip()
        if "://" in named:
            return named
        # work_dir may have been moved since
        candidates = [path for path in (Path(named), folder / Path(named).name) if named] + candidates
    for path in candidates:
        if path.is_file() and zipfile.is_zipfile(path):  # its directory is at the end of the file
            return str(path)
    return None


@CheckpointLoader.register_scheme(prefixes=READER, force=True)
def load_from_mmgcvit_reader(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint for mmengine with the package's reader; the weights are under ``state_dict``."""
    found = read_checkpoint(resolve_source(filename.removeprefix(READER)), map_location or "cpu")
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        return dict(found)
    return {"state_dict": unwrap_checkpoint(found)}
