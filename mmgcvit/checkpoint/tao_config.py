"""The config that is written next to a converted DINO of NVIDIA TAO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmgcvit.checkpoint.tao import TaoDino
from mmgcvit.utils import atomic_path

BASE = "mmgcvit::detection/dino-4scale_gcvit-tiny_8xb2-12e_coco.py"


def config_path(checkpoint: Path) -> Path:
    """The config of a converted checkpoint: next to it, with the same name."""
    return checkpoint.with_suffix(".py")


def write_config(checkpoint: Path, dino: TaoDino, source: str) -> Path:
    """Write the config of a converted checkpoint, as a delta over the DINO config of this repository.

    Args:
        checkpoint: the converted checkpoint.
        dino: what it contains.
        source: name of TAO's file.

    Returns:
        The path of the config.
    """
    content: dict[str, Any] = dict(model=dino.model, load_from=str(checkpoint.resolve()))
    if dino.classes:
        metainfo = dict(dataset=dict(metainfo=dict(classes=dino.classes)))
        content |= {f"{part}_dataloader": metainfo for part in ("train", "val", "test")}
        data = "Set the paths of the data for training and evaluation."
    else:
        data = "Set the paths of the data, and its classes in the order of their ids, for training and evaluation."
    path = config_path(checkpoint)
    header = f"# DINO of NVIDIA TAO, converted from {' '.join(source.split())}.\n# {data}\n_base_ = {BASE!r}\n\n"
    with atomic_path(path) as unfinished:
        unfinished.write_text(header + Config(content).pretty_text.strip() + "\n", encoding="utf-8")
    return path
