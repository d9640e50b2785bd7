"""Implementation of ``mmgcvit weights`` and ``mmgcvit convert-checkpoint``."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from mmgcvit.backbone import GCViT
from mmgcvit.checkpoint.fit import InferredArch, LoadReport, group_by_part, match_state_dict
from mmgcvit.checkpoint.layouts import WRITABLE, Converted, export_state_dict, split_state_dict, unwrap_checkpoint
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.sources import resolve_source
from mmgcvit.checkpoint.tao import MMDET_DINO, TaoDino, convert_tao_dino, find_tao_dino
from mmgcvit.checkpoint.tao_config import config_path, write_config
from mmgcvit.checkpoint.tao_settings import TaoSettings, read_categories
from mmgcvit.checkpoint.weights import LICENCE, NGC_FILES, WEIGHTS
from mmgcvit.errors import CheckpointError
from mmgcvit.utils import file_sha256, summarize
from mmgcvit.utils.text import counted, printable, wide_console

SUFFIXES = (".pth", ".safetensors")
TARGETS = (*WRITABLE, MMDET_DINO)
_EMA = ("state_dict_ema", "ema_state_dict", "model_ema")


def print_weights() -> None:
    """Print the table of published weights."""
    table = Table(title=f"published GC ViT weights, under {LICENCE}: not for commercial use", title_justify="left")
    for title in ("name", "arch", "windows", "input", "evaluation crop", "top-1 as published"):
        right = title in ("input", "top-1 as published")
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    for weights in WEIGHTS.values():
        crop = "squash" if weights.squash else f"centre, {weights.crop:g}"
        top1 = "" if weights.top1 is None else f"{weights.top1}"
        table.add_row(
            weights.name, weights.arch, ", ".join(map(str, weights.window_size)), str(weights.input_size), crop, top1
        )
    console = wide_console()
    console.print(table)
    console.print("use: init_cfg=dict(type='Pretrained', checkpoint=NAME), or mmgcvit weights fetch NAME", markup=False)
    table = Table(title="NVIDIA TAO's GC ViT files, to download by hand from NGC", title_justify="left")
    for title in ("name", "arch", "contents", "licence"):
        table.add_column(title, no_wrap=True)
    for file in NGC_FILES.values():
        table.add_row(file.name, file.arch, file.contents, file.licence)
    console.print(table)
    console.print("ngc registry model download-version NAME, without ngc://; or from these pages:", markup=False)
    for page in dict.fromkeys(file.page for file in NGC_FILES.values()):
        console.print(f"  {page}", markup=False)


def inspect(source: str) -> str:
    """Describe the contents of a checkpoint, and which of its tensors the backbone would load.

    Args:
        source: file, URL or published name.

    Returns:
        Text of several lines.

    Raises:
        CheckpointError: the file cannot be fetched or read, or contains no GC ViT.
    """
    path = resolve_source(source)
    checkpoint = read_checkpoint(path)
    tensors = unwrap_checkpoint(checkpoint)
    converted = split_state_dict(tensors)
    inferred = InferredArch.of(converted.backbone)
    backbone = _model_for(inferred)
    _, report = match_state_dict(backbone, converted, str(path))
    extras = [name for name in checkpoint if not isinstance(checkpoint[name], (Tensor, Mapping))]
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in converted.backbone.values()})
    rows = {
        "file": f"{path} ({path.stat().st_size:,} bytes)",
        "layout": converted.layout + (f" under {converted.prefix!r}" if converted.prefix else ""),
        "arch": " or ".join(inferred.archs) or "none of the published ones",
        "numbers": f"embed_dims={inferred.embed_dims}, depths={inferred.depths}, num_heads={inferred.num_heads}, "
                   f"mlp_ratio={inferred.mlp_ratio:g}, layer scale: {'yes' if inferred.layer_scale else 'no'}",
        "windows": ", ".join(map(str, inferred.windows)),
        "in_channels": str(inferred.in_channels),
        "classes": str(inferred.num_classes) if inferred.num_classes else "no head",
        "EMA weights": ", ".join(name for name in _EMA if name in checkpoint) or "no",
        "optimizer state": "yes" if checkpoint.keys() & {"optimizer", "optimizer_states"} else "no",
        "types": ", ".join(kinds),
        "other contents": summarize(extras) or "nothing",
        "other parts": group_by_part(list(converted.others)) or "none",
        "meta": str(checkpoint["meta"]) if isinstance(checkpoint.get("meta"), Mapping) else "none",
    }  # fmt: skip
    if find_tao_dino(tensors) is not None:
        rows["detector"] = _describe_tao(tensors)
    width = max(map(len, rows))
    lines = [f"{key:<{width}}  {value}" for key, value in rows.items()]
    lines += ["", "into a GCViT with these dimensions and all maps:", *str(report).splitlines()[1:]]
    return printable("\n".join(lines))


def _describe_tao(tensors: Mapping[str, Tensor]) -> str:
    """What can be converted of a DINO of TAO."""
    try:
        dino = convert_tao_dino(tensors)
    except CheckpointError as error:
        return f"NVIDIA TAO's DINO; it cannot be converted whole: {error}"
    return (
        f"NVIDIA TAO's DINO: {counted(len(dino.category_ids) + 1, 'class')} with the background, "
        f"{dino.model['num_queries']} queries, {dino.model['num_feature_levels']} levels; "
        "`mmgcvit convert-checkpoint` converts it whole to mmdet's DINO"
    )


def convert_file(
    source: str,
    target: str | os.PathLike,
    to: str | None = None,
    ema: bool = False,
    hashed: bool = False,
    force: bool = False,
    categories: str | Path | None = None,
    keep_background: bool = False,
    spec: str | Path | None = None,
) -> tuple[Path, LoadReport]:
    """Convert a checkpoint to another layout. Values are permuted, never recomputed.

    A DINO detector of NVIDIA TAO is converted whole to mmdet's DINO; its config is written next to the target.

    Args:
        source: file, URL or published name.
        target: .pth (with ``state_dict`` and ``meta``) or .safetensors (with ``meta`` as its metadata).
        to: 'mmgcvit', 'nvidia' (the authors' detection layout if there are other parts or norms of several maps,
            otherwise their classification layout), 'timm', or 'mmdet-dino' (from NVIDIA TAO's DINO). Default:
            'mmdet-dino' for NVIDIA TAO's DINO, otherwise 'mmgcvit'.
        ema: convert the averaged (EMA) weights.
        hashed: append the first 8 digits of the SHA-256 to the file name.
        force: replace an existing file.
        categories: COCO annotation file with the categories that TAO's detector was trained on; see
            :func:`~mmgcvit.checkpoint.tao.convert_tao_dino`.
        keep_background: keep all of TAO's classes, with its background.
        spec: TAO's experiment file.

    Returns:
        The path of the new file, and the report of loading the source into a GC ViT with its dimensions. Tensors
        without a counterpart in the new layout are listed in the notes of the report.

    Raises:
        CheckpointError: as :func:`inspect`; or the suffix or the layout is not supported.
        FileExistsError: the file exists and ``force`` is not set.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise CheckpointError(f"target {str(target)!r}; allowed suffixes: {', '.join(SUFFIXES)}")
    if to not in (None, *TARGETS):
        raise CheckpointError(f"to={to!r}; allowed: {', '.join(TARGETS)}")
    if not hashed and not force:
        _require_new(target)
    path = resolve_source(source)
    tensors = unwrap_checkpoint(read_checkpoint(path), ema)
    is_tao = find_tao_dino(tensors) is not None
    to = to or (MMDET_DINO if is_tao else "mmgcvit")
    if to != MMDET_DINO and (categories or keep_background or spec):
        raise CheckpointError(f"to={to!r} with categories, keep_background or spec; allowed with: {MMDET_DINO}")
    dino = None
    if to == MMDET_DINO:
        if not hashed and not force:
            _require_new(config_path(target))
        dino = convert_tao_dino(
            tensors,
            read_categories(categories) if categories else None,
            keep_background,
            TaoSettings.from_spec(spec) if spec else None,
        )
    converted = dino.backbone if dino else split_state_dict(tensors)
    inferred = InferredArch.of(converted.backbone)
    stages = dino.model["backbone"]["out_indices"] if dino else None
    _, report = match_state_dict(_model_for(inferred, stages), converted, str(path))
    state_dict, left = (dino.state_dict, []) if dino else _in_layout(converted, to)
    report.target = to
    if left:
        report.notes.append(f"no counterpart in layout {to!r}, not written: {group_by_part(left)}")
    elif is_tao and not dino:
        report.notes.append("the detector's other parts keep TAO's names: mmdet cannot load them")
    meta: dict[str, Any] = {
        "source": path.name, "source_layout": converted.layout, "source_sha256": file_sha256(path), "layout": to,
        "arch": " or ".join(inferred.archs), "licence": f"{LICENCE}, if these are published GC ViT weights",
    }  # fmt: skip
    if dino:
        report.notes += dino.notes
        meta |= _tao_meta(dino, as_text=target.suffix == ".safetensors")
    state_dict = {name: value.contiguous() for name, value in state_dict.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    # Use a temporary folder next to the target, as the final name may depend on the hash of the finished file.
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        if target.suffix == ".safetensors":
            from safetensors.torch import save_file

            # safetensors rejects tensors that share memory
            save_file({name: value.clone() for name, value in state_dict.items()}, unfinished, metadata=meta)
        else:
            # Pass an open file instead of a path: torch would store the path in the file, which changes the hash.
            with unfinished.open("wb") as file:
                torch.save({"state_dict": state_dict, "meta": meta}, file)
        if hashed:
            target = target.with_name(f"{target.stem}-{file_sha256(unfinished)[:8]}{target.suffix}")
            if not force:
                _require_new(target)
                if dino:
                    _require_new(config_path(target))
        if dino:
            report.notes.append(f"config: {write_config(target, dino, path.name)}")
        unfinished.replace(target)
    return target, report


def _require_new(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another name, or use --force to replace it")


def _tao_meta(dino: TaoDino, as_text: bool) -> dict[str, Any]:
    """Meta data of a converted DINO. Classes without known names are named by their ids."""
    classes = dino.classes or tuple(map(str, dino.category_ids))
    found = dict(category_ids=dino.category_ids, dataset_meta=dict(classes=classes))
    texts = {name: json.dumps(value) for name, value in found.items()} if as_text else found
    return {**texts, "licence": "that of NVIDIA TAO's file: see mmgcvit weights list"}


def _in_layout(converted: Converted, to: str) -> tuple[dict[str, Tensor], list[str]]:
    if to == "mmgcvit":
        return converted.state_dict, []
    theirs, left = export_state_dict(converted.backbone, to)
    if to == "nvidia" and (converted.others or "norm0.weight" in converted.backbone):
        return {f"backbone.{name}": value for name, value in theirs.items()} | converted.others, left
    return theirs, left + list(converted.others)


def _model_for(inferred: InferredArch, out_indices: tuple[int, ...] | None = None) -> GCViT:
    """Build a GC ViT with the given dimensions on the meta device; default: with all maps."""
    stages = inferred.stages
    known = (inferred.depths, inferred.num_heads, inferred.windows, inferred.mlp_channels)
    if not (inferred.embed_dims and stages) or any(
        bool(value) != (i < stages) for row in known for i, value in enumerate(row)
    ):
        raise CheckpointError(
            f"not a complete network: depths={inferred.depths}, num_heads={inferred.num_heads}, "
            f"windows={inferred.windows}, MLP channels={inferred.mlp_channels}, where 0 means that "
            "the tensors of a stage are missing"
        )
    # the values for missing stages have no effect, as these stages are not built
    arch: dict[str, Any] = dict(
        embed_dims=inferred.embed_dims,
        depths=[n or 1 for n in inferred.depths],
        num_heads=[n or 1 for n in inferred.num_heads],
        mlp_ratio=inferred.mlp_ratio,
        layer_scale=1e-5 if inferred.layer_scale else None,
    )
    # with 0 and with 1 reductions there is one MBConv
    reductions = tuple(count if count > 1 else 0 for count in inferred.query_mbconvs)
    try:
        with torch.device("meta"):
            return GCViT(
                arch,
                in_channels=inferred.in_channels,
                window_size=[n or 1 for n in inferred.windows],
                global_query_reductions=reductions,
                qkv_bias=inferred.qkv_bias,
                out_indices=tuple(range(stages)) if out_indices is None else out_indices,
            )
    except ValueError as error:
        raise CheckpointError(f"impossible network: {error}") from error
