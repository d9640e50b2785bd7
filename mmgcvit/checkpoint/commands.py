"""What ``mmgcvit weights`` and ``tools/convert_checkpoint.py`` do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmgcvit.backbone import GCViT
from mmgcvit.checkpoint.errors import CheckpointError, some
from mmgcvit.checkpoint.fit import LoadReport, Numbers, fit, grouped
from mmgcvit.checkpoint.layouts import WRITABLE, Converted, convert_back, take_apart, weights_of
from mmgcvit.checkpoint.loading import locate
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.weights import LICENCE, WEIGHTS, file_sha256, temporary

SUFFIXES = (".pth", ".safetensors")
_EMA = ("state_dict_ema", "ema_state_dict", "model_ema")


def print_weights() -> None:
    """The table of published weights."""
    table = Table(title=f"published GC ViT weights, under {LICENCE}: not for commercial use", title_justify="left")
    for title in ("name", "arch", "windows", "input", "evaluation crop", "top-1 as published"):
        table.add_column(title, justify="right" if title in ("input", "top-1 as published") else "left", no_wrap=True)
    for weights in WEIGHTS.values():
        crop = "squash" if weights.squash else f"centre, {weights.crop:g}"
        top1 = "" if weights.top1 is None else f"{weights.top1}"
        table.add_row(
            weights.name, weights.arch, ", ".join(map(str, weights.window_size)), str(weights.input_size), crop, top1
        )
    console = Console()
    console.print(table)
    console.print("use: init_cfg=dict(type='Pretrained', checkpoint=NAME), or mmgcvit weights fetch NAME", markup=False)


def inspect(source: str) -> str:
    """What a checkpoint holds and what of it would load into the backbone.

    Args:
        source: file, URL or name.

    Returns:
        Lines for a terminal.

    Raises:
        CheckpointError: it cannot be had or read, or holds no GC ViT.
    """
    path = locate(source)
    checkpoint = read_checkpoint(path)
    converted = take_apart(weights_of(checkpoint))
    numbers = Numbers.of(converted.backbone)
    backbone = _model_for(numbers)
    _, report = fit(backbone, converted, str(path))
    extras = [name for name in checkpoint if not isinstance(checkpoint[name], (Tensor, Mapping))]
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in converted.backbone.values()})
    rows = {
        "file": f"{path} ({path.stat().st_size:,} bytes)",
        "layout": converted.layout + (f" under {converted.prefix!r}" if converted.prefix else ""),
        "arch": " or ".join(numbers.archs) or "none of the published ones",
        "numbers": f"embed_dims={numbers.embed_dims}, depths={numbers.depths}, num_heads={numbers.num_heads}, "
                   f"mlp_ratio={numbers.mlp_ratio:g}, layer scale: {'yes' if numbers.layer_scale else 'no'}",
        "windows": ", ".join(map(str, numbers.windows)),
        "in_channels": str(numbers.in_channels),
        "classes": str(numbers.num_classes) if numbers.num_classes else "no head",
        "EMA weights": ", ".join(name for name in _EMA if name in checkpoint) or "no",
        "optimizer state": "yes" if "optimizer" in checkpoint else "no",
        "types": ", ".join(kinds),
        "beside the weights": some(extras) or "nothing",
        "other parts": grouped(list(converted.others)) or "none",
        "meta": str(checkpoint["meta"]) if isinstance(checkpoint.get("meta"), Mapping) else "none",
    }  # fmt: skip
    width = max(map(len, rows))
    lines = [f"{key:<{width}}  {value}" for key, value in rows.items()]
    return "\n".join([*lines, "", "into a GCViT of these numbers with all maps:", *str(report).splitlines()[1:]])


def convert_file(
    source: str,
    target: str | os.PathLike,
    to: str = "mmgcvit",
    ema: bool = False,
    hashed: bool = False,
    force: bool = False,
) -> tuple[Path, LoadReport]:
    """Write a checkpoint in another layout, exactly: tensors are reordered, never recomputed.

    Args:
        source: file, URL or name.
        target: .pth (``state_dict`` and ``meta``) or .safetensors (the same as its metadata).
        to: 'mmgcvit', 'nvidia' (with the parts or norms of a detector: the authors' detection layout) or 'timm'.
        ema: convert the averaged weights.
        hashed: put the first 8 digits of the file's SHA-256 into its name.
        force: replace ``target``.

    Returns:
        The file written, and what a GC ViT of its numbers takes from the source. Tensors that the new layout has no
        place for are in the report's notes.

    Raises:
        CheckpointError: as :func:`inspect`; another suffix; an unknown layout.
        FileExistsError: the file is there, and ``force`` is not given.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise CheckpointError(f"target {str(target)!r}; allowed suffixes: {', '.join(SUFFIXES)}")
    if to not in WRITABLE:
        raise CheckpointError(f"to={to!r}; allowed: {', '.join(WRITABLE)}")
    if target.exists() and not hashed and not force:
        raise FileExistsError(f"{target} exists: give another name, or --force to replace it")
    path = locate(source)
    checkpoint = read_checkpoint(path)
    converted = take_apart(weights_of(checkpoint, ema))
    numbers = Numbers.of(converted.backbone)
    _, report = fit(_model_for(numbers), converted, str(path))
    state_dict, left = _in_layout(converted, to)
    if left:
        report.notes.append(f"without a place in the layout {to!r}, so not written: {grouped(left)}")
    meta = {
        "source": path.name, "source_layout": converted.layout, "source_sha256": file_sha256(path), "layout": to,
        "arch": " or ".join(numbers.archs), "licence": f"{LICENCE}, if these are published GC ViT weights",
    }  # fmt: skip
    state_dict = {name: value.contiguous() for name, value in state_dict.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(target) as building:
        if target.suffix == ".safetensors":
            from safetensors.torch import save_file

            # safetensors stores no two names for one memory
            save_file({name: value.clone() for name, value in state_dict.items()}, building, metadata=meta)
        else:
            # into an open file: torch writes the name of one that it opens into it, and the hash would change with it
            with building.open("wb") as file:
                torch.save({"state_dict": state_dict, "meta": meta}, file)
        if hashed:
            target = target.with_name(f"{target.stem}-{file_sha256(building)[:8]}{target.suffix}")
            if target.exists() and not force:
                raise FileExistsError(f"{target} exists: give another name, or --force to replace it")
        building.replace(target)
    return target, report


def _in_layout(converted: Converted, to: str) -> tuple[dict[str, Tensor], list[str]]:
    if to == "mmgcvit":
        return converted.state_dict, []
    theirs, left = convert_back(converted.backbone, to)
    if to == "nvidia" and (converted.others or "norm0.weight" in converted.backbone):
        return {f"backbone.{name}": value for name, value in theirs.items()} | converted.others, left
    return theirs, left + list(converted.others)


def _model_for(numbers: Numbers) -> GCViT:
    """A GC ViT of the file's numbers, without memory."""
    stages = numbers.stages
    known = (numbers.depths, numbers.num_heads, numbers.windows, numbers.mlp_channels)
    if not (numbers.embed_dims and stages) or any(
        bool(value) != (i < stages) for row in known for i, value in enumerate(row)
    ):
        raise CheckpointError(
            f"not a whole network: depths={numbers.depths}, num_heads={numbers.num_heads}, "
            f"windows={numbers.windows}, MLP channels={numbers.mlp_channels}, where 0 means that "
            "nothing of a stage is there"
        )
    # stages that are not there are not built, whatever their numbers
    arch = dict(
        embed_dims=numbers.embed_dims,
        depths=[n or 1 for n in numbers.depths],
        num_heads=[n or 1 for n in numbers.num_heads],
        mlp_ratio=numbers.mlp_ratio,
        layer_scale=1e-5 if numbers.layer_scale else None,
    )
    # one MBConv stands for 0 and for 1 halving
    reductions = tuple(count if count > 1 else 0 for count in numbers.query_mbconvs)
    try:
        with torch.device("meta"):
            return GCViT(
                arch,
                in_channels=numbers.in_channels,
                window_size=[n or 1 for n in numbers.windows],
                global_query_reductions=reductions,
                qkv_bias=numbers.qkv_bias,
                out_indices=tuple(range(stages)),
            )
    except ValueError as error:
        raise CheckpointError(f"not a network that can be: {error}") from error
