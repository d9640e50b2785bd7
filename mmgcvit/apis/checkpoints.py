"""Finding the checkpoint to resume from."""

from __future__ import annotations

import zipfile
from pathlib import Path


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
