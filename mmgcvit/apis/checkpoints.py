"""Finding the checkpoint to resume from, and reading checkpoints for mmengine."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader

from mmgcvit.checkpoint.layouts import unwrap_checkpoint
from mmgcvit.checkpoint.loading import resolve_source
from mmgcvit.checkpoint.reader import read_checkpoint

READER = "mmgcvit-reader://"  # prefix of file names that mmengine reads with the package's own reader


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """Return the checkpoint to resume from: the one named in ``last_checkpoint``, or else the newest intact one.

    A run killed while writing leaves a truncated file or an empty ``last_checkpoint``; these are skipped.
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
        # the work directory may have been moved in the meantime
        candidates = [path for path in (Path(named), folder / Path(named).name) if named] + candidates
    for path in candidates:
        if path.is_file() and zipfile.is_zipfile(path):  # the zip directory is at the end, so this file is complete
            return str(path)
    return None


@CheckpointLoader.register_scheme(prefixes=READER, force=True)
def load_from_mmgcvit_reader(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint for mmengine with the package's reader; the weights are under ``state_dict``."""
    found = read_checkpoint(resolve_source(filename.removeprefix(READER)), map_location or "cpu")
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        return dict(found)
    return {"state_dict": unwrap_checkpoint(found)}
