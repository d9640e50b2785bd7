"""The folder of a fine-tuning: what an earlier try has left in it, and whether a run can go on there."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgcvit.errors import UsageError
from mmgcvit.utils import summarize
from mmgcvit.utils.files import atomic_path, file_sha256, write_json
from mmgcvit.utils.text import is_utf8

FOLDER = "finetune"  # in the work directory: the config and the converted annotations
CONFIG, OPTIONS, CLASSES = "config.py", "options.json", "classes.txt"
OWN = re.compile(r"\d{8}_\d{6}|config\.py|\.lock")  # what mmengine writes before anything is trained


def write_config(folder: Path, text: str, options: Mapping[str, Any]) -> Path:
    """Write the config of a run, and the options that the user gave.

    Args:
        folder: :data:`FOLDER` in the work directory.
        text: the config.
        options: by name.

    Returns:
        The file of the config.
    """
    path = folder / CONFIG
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")
    write_json(folder / OPTIONS, dict(options=dict(options), config=file_sha256(path)), indent=1)
    return path


def require_untrained(work_dir: Path) -> None:
    """Check that a new run may use a folder: it is new, or an earlier try in it has trained nothing.

    Raises:
        UsageError: it has a checkpoint, files of something else, or a config that was edited.
    """
    if not is_utf8(str(work_dir.absolute())):
        raise UsageError(f"work_dir={str(work_dir)!r}: the name is not UTF-8; allowed: UTF-8")
    if not work_dir.exists() or (work_dir.is_dir() and not any(work_dir.iterdir())):
        return
    allowed = "allowed: a new folder (--work-dir), or remove it"
    name = f"work_dir={str(work_dir)!r} exists"
    if not work_dir.is_dir():
        raise UsageError(f"{name}; {allowed}")
    if trained := sorted(path.name for path in work_dir.glob("*.pth")):
        raise UsageError(f"{name} and has {summarize(trained, 3)}; {allowed}. --resume goes on with the run in it")
    others = sorted(path.name for path in work_dir.iterdir() if path.name != FOLDER and not OWN.fullmatch(path.name))
    inside = work_dir / FOLDER
    if others or (inside.exists() and any(inside.iterdir()) and not (inside / CLASSES).is_file()):
        raise UsageError(f"{name} and has {summarize(others or [FOLDER], 3)}; {allowed}")
    config, known = inside / CONFIG, _read(inside).get("config")
    if config.is_file() and known not in (None, file_sha256(config)):
        raise UsageError(
            f"{str(config)!r} was edited, and a new run would replace it; allowed: mmgcvit train {config} "
            "--work-dir NEW_FOLDER, or remove it"
        )


def clear(work_dir: Path) -> bool:
    """Remove what an earlier try that has trained nothing has left, and return whether there was anything."""
    inside = work_dir / FOLDER
    there = inside.is_dir() and any(inside.iterdir())
    if inside.is_dir():
        shutil.rmtree(inside)
    return there


def config_to_resume(work_dir: Path, options: Mapping[str, Any]) -> Path:
    """Return the config of the run in a folder.

    Args:
        work_dir: the folder.
        options: those that the user gives now, by name; None is not given.

    Raises:
        UsageError: there is no config, or the run was started with other options.
    """
    path = work_dir / FOLDER / CONFIG
    if not path.is_file():
        raise UsageError(
            f"--resume: {str(path)!r}: no such file; allowed: the --work-dir of a run of `mmgcvit finetune`"
        )
    known = _read(path.parent).get("options")
    for name, value in options.items():
        if isinstance(known, dict) and value is not None and name in known and known[name] != value:
            raise UsageError(
                f"--resume with {name}={value!r}: the run in {str(work_dir)!r} was started with {name}="
                f"{known[name]!r}; allowed: the same options, or a new --work-dir"
            )
    return path


def _read(folder: Path) -> dict[str, Any]:
    """What :func:`write_config` has recorded; empty if there is no record."""
    try:
        found = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
