"""Matching of the tensors in a checkpoint with those of a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mmgcvit.backbone.arch import ARCHS, Arch
from mmgcvit.backbone.bias import resize_bias_table, table_window
from mmgcvit.backbone.checks import STAGES
from mmgcvit.checkpoint.layouts import TABLE, Converted, is_ours
from mmgcvit.errors import CheckpointError
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted

if TYPE_CHECKING:
    from mmgcvit.backbone.gcvit import GCViT

ENOUGH = 0.95  # share of the backbone's tensors that a checkpoint must have
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BLOCK = re.compile(r"stages\.\d\.blocks\.\d+\.")
_COMPARED = ("embed_dims", "depths", "num_heads", "mlp_ratio", "layer_scale")


@dataclass
class LoadReport:
    """Record of how each tensor of a checkpoint was used; ``print(report)`` summarises it in a few lines.

    Args:
        source: file, URL or name that was loaded; '' for a state dict.
        layout: one of :data:`~mmgcvit.checkpoint.layouts.LAYOUTS`.
        arch: published variants with the checkpoint's dimensions; empty for a custom network.
        loaded: tensors of the model that were copied unchanged.
        resized: resized bias tables, with the window sizes (tokens) of the file and of the model.
        adapted: first convolutions adapted to another number of input channels, with the number of channels in the file
            and in the model.
        left_in_file: tensors of the file that the model does not use.
        left_initial: tensors of the backbone (and head) that are missing from the file and keep their initial values.
        notes: further remarks for the user.
        target: layout that was written; '' if the checkpoint was loaded.
    """

    source: str
    layout: str
    arch: tuple[str, ...]
    loaded: list[str] = field(default_factory=list)
    resized: dict[str, tuple[int, int]] = field(default_factory=dict)
    adapted: dict[str, tuple[int, int]] = field(default_factory=dict)
    left_in_file: list[str] = field(default_factory=list)
    left_initial: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    target: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether every tensor was copied unchanged and none is left over, in the file or in the model."""
        return not (self.resized or self.adapted or self.left_in_file or self.left_initial)

    @property
    def is_plain(self) -> bool:
        """Former name of :attr:`is_exact`, kept for one release."""
        return self.is_exact

    def __str__(self) -> str:
        arch = f", arch {' or '.join(self.arch)}" if self.arch else ""
        lines = [
            f"GCViT: weights from {self.source or 'a state dict'} (layout {self.layout}{arch})",
            f"  loaded: {counted(len(self.loaded), 'tensor')}",
        ]
        if self.resized:
            windows = ", ".join(f"{old} -> {new}" for old, new in sorted(set(self.resized.values())))
            lines.append(
                f"  resized: {len(self.resized)} relative position bias tables, bicubically, "
                f"to other windows ({windows})"
            )
        lines += [
            f"  adapted: {name} from {old} to {counted(new, 'channel')}" for name, (old, new) in self.adapted.items()
        ]
        for title, names in (("left in the file", self.left_in_file), ("left at initial values", self.left_initial)):
            if names:
                lines.append(f"  {title}: {counted(len(names), 'tensor')} ({group_by_part(names)})")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class InferredArch:
    """Dimensions of a network, inferred from the shapes in its state dict (our names); 0 if tensors are missing.

    Args:
        embed_dims: channels of the first stage.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        mlp_channels: hidden channels of the MLP per stage.
        layer_scale: whether the blocks have layer scale.
        qkv_bias: whether the query, key and value projections have a bias.
        windows: window side per stage, in tokens.
        query_mbconvs: MBConvs of the global query per stage.
        in_channels: input channels of the first convolution.
        num_classes: classes of the head.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_channels: tuple[int, ...]
    layer_scale: bool
    qkv_bias: bool
    windows: tuple[int, ...]
    query_mbconvs: tuple[int, ...]
    in_channels: int
    num_classes: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> InferredArch:
        """Infer the dimensions.

        Raises:
            CheckpointError: blocks or MBConvs of a stage are not numbered consecutively.
        """

        def counts(pattern: str) -> tuple[int, ...]:
            found: list[set[int]] = [set() for _ in range(STAGES)]
            for name in tensors:
                match = re.match(r"stages\.([0-3])\." + pattern, name)
                if match:
                    found[int(match[1])].add(int(match[2]))
            for stage, numbers in enumerate(found):
                gaps = [i for i in range(len(numbers)) if i not in numbers]
                if gaps:
                    what = pattern.split("\\")[0]
                    raise CheckpointError(
                        f"stage {stage} has the {what} {summarize(sorted(numbers))}, but not {gaps[0]}"
                    )
            return tuple(map(len, found))

        def shape(name: str, axis: int) -> int:
            return tensors[name].shape[axis] if name in tensors else 0

        stem = tensors.get("stem.conv.weight")
        dims = len(stem) if stem is not None else 0
        tables = [tensors.get(f"stages.{i}.blocks.0.attn.{TABLE}") for i in range(STAGES)]
        return cls(
            embed_dims=dims,
            depths=counts(r"blocks\.(\d+)\."),
            num_heads=tuple(0 if table is None else table.shape[1] for table in tables),
            mlp_channels=tuple(shape(f"stages.{i}.blocks.0.mlp.fc1.weight", 0) for i in range(STAGES)),
            layer_scale="stages.0.blocks.0.gamma1" in tensors,
            qkv_bias="stages.0.blocks.0.attn.qkv.bias" in tensors,
            windows=tuple(0 if table is None else table_window(table) for table in tables),
            query_mbconvs=counts(r"query\.mbconvs\.(\d+)\."),
            in_channels=shape("stem.conv.weight", 1),
            num_classes=shape("head.weight", 0),
        )

    @property
    def archs(self) -> tuple[str, ...]:
        """Published variants with these dimensions; only those with the same windows, if there are any."""
        rows = {name: Arch(**row) for name, row in ARCHS.items()}
        stages = self.stages
        fits = [name for name, arch in rows.items() if stages and not self.differences(arch, stages)]
        exact = [name for name in fits if rows[name].window_size[:stages] == self.windows[:stages]]
        return tuple(exact or fits)

    @property
    def stages(self) -> int:
        """Number of stages; fewer than four for a backbone that does not output the last maps."""
        return next((i for i, depth in enumerate(self.depths) if not depth), STAGES)

    @property
    def mlp_ratio(self) -> float:
        """MLP ratio that yields :attr:`mlp_channels`; 0.0 if it cannot be inferred."""
        if not self.embed_dims or not self.stages:
            return 0.0
        last = self.stages - 1
        channels, dims = self.mlp_channels[last], self.embed_dims * 2**last
        # The model rounds channels down; adding half a channel in the widest stage gives the right number everywhere.
        return channels / dims if channels % dims == 0 else (channels + 0.5) / dims

    def differences(self, arch: Arch, stages: int) -> list[str]:
        """Describe the dimensions in which the first ``stages`` stages of ``arch`` differ."""
        # an MLP without weights counts as missing, not as different
        channels = tuple(
            theirs and int(dim * arch.mlp_ratio)
            for dim, theirs in zip(arch.dims[:stages], self.mlp_channels, strict=False)
        )
        ratio = self.mlp_ratio if channels != self.mlp_channels[:stages] else arch.mlp_ratio
        ours = (
            arch.embed_dims,
            arch.depths[:stages],
            arch.num_heads[:stages],
            arch.mlp_ratio,
            arch.layer_scale is not None,
        )
        theirs = (self.embed_dims, self.depths[:stages], self.num_heads[:stages], ratio, self.layer_scale)
        # 0 means missing tensors, which are reported elsewhere
        return [
            f"{name} {_format(b)} in the file, {_format(a)} in the model"
            for name, a, b in zip(_COMPARED, ours, theirs, strict=True)
            if a != b and (b != 0 or b is False)
        ]


def match_state_dict(
    backbone: GCViT,
    converted: Converted,
    source: str = "",
    head: nn.Linear | None = None,
    check_values: bool = True,
    partial: bool = False,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Find the checkpoint's tensor for each tensor of the backbone, resized or adapted if necessary.

    Neither the backbone nor the checkpoint is changed.

    Args:
        backbone: the model, or the backbone of the model.
        converted: a checkpoint in our names.
        source: name of the checkpoint, for the report and for errors.
        head: last linear layer of a classifier, if any; its tensors are ``head.weight`` and ``head.bias``.
        check_values: whether to reject NaN and infinite values.
        partial: whether the checkpoint may have only some of the backbone's tensors.

    Returns:
        Tensors in the model's shapes, by the names of the backbone and the head; and the report.

    Raises:
        CheckpointError: the variant, depth, width or number of heads differs; a tensor has no counterpart in the
            model; fewer than 95 % of the backbone's tensors are present, unless ``partial``; a tensor is an integer
            tensor, sparse or without values; NaN or infinite values.
    """
    file = dict(converted.backbone)
    _check_values(file, source, check_values, backbone.stem.conv.weight)
    inferred = InferredArch.of(file)
    report = LoadReport(source, converted.layout, inferred.archs)
    wanted = backbone.state_dict(keep_vars=True)
    needed = [name for name in wanted if is_ours(name) and not re.match(r"norm\d|head", name)]
    if not _is_part(file, wanted):  # a part has no dimensions to compare
        _check_network(backbone, inferred, report)
    if not partial:
        _require_most(needed, file, source)
    if head is not None:
        wanted |= {f"head.{name}": value for name, value in head.named_parameters()}
        shape = tuple(file["head.weight"].shape) if "head.weight" in file else None
        if shape not in (None, tuple(head.weight.shape)):
            report.notes.append(
                f"head: {counted(shape[0], 'class')} of {counted(shape[1], 'channel')} in the file, "
                f"{head.out_features} of "
                f"{head.in_features} in the model: skipped"
            )
            report.left_in_file += [name for name in ("head.weight", "head.bias") if file.pop(name, None) is not None]

    chosen: dict[str, Tensor] = {}
    wrong = []
    for name, parameter in wanted.items():
        value = file.pop(name, None)
        if value is None:
            report.left_initial.append(name)
        elif value.shape == parameter.shape:
            report.loaded.append(name)
            chosen[name] = value
        elif name.endswith(TABLE) and value.shape[1] == parameter.shape[1]:
            window = table_window(parameter)
            report.resized[name] = (table_window(value), window)
            chosen[name] = resize_bias_table(value, window)
        elif name == "stem.conv.weight" and value.shape[1] == 3 and value.shape[2:] == parameter.shape[2:]:
            report.adapted[name] = (3, parameter.shape[1])
            chosen[name] = adapt_input_conv(parameter.shape[1], value)
        else:
            wrong.append(f"{name} {tuple(value.shape)}, in the model {tuple(parameter.shape)}")
    if wrong:
        raise CheckpointError(f"{_of(source)}shapes that do not match the model: {summarize(wrong)}")

    unused = [name for name in file if not _may_stay(name, backbone)]
    if unused:
        raise CheckpointError(f"{_of(source)}tensors of the network that the model does not have: {summarize(unused)}")
    report.left_in_file += [*file, *converted.others]
    return chosen, report


def group_by_part(names: list[str]) -> str:
    """``norm0, norm1, roi_head (12)``: tensor names, counted per part of the model."""
    parts = Counter(name.split(".")[0] for name in names)
    return summarize(
        [
            part if part in ("head",) or re.fullmatch(r"norm\d", part) else f"{part} ({count})"
            for part, count in parts.items()
        ],
        12,
    )


def _check_network(backbone: GCViT, inferred: InferredArch, report: LoadReport) -> None:
    stages: Any = backbone.stages
    differences = inferred.differences(backbone.arch, len(stages))
    queries = tuple(0 if stage.query is None else len(stage.query.mbconvs) for stage in stages)
    theirs = tuple(count if ours else 0 for ours, count in zip(queries, inferred.query_mbconvs, strict=False))
    if queries != theirs:
        differences.append(
            f"MBConvs of the global query {theirs} in the file, {queries} in the model (global_query_reductions)"
        )
    qkv = stages[0].blocks[0].attn.qkv
    if inferred.qkv_bias != (qkv.bias is not None):
        differences.append(f"qkv_bias {inferred.qkv_bias} in the file, {qkv.bias is not None} in the model")
    if inferred.in_channels not in (3, backbone.in_channels):
        differences.append(
            f"in_channels {inferred.in_channels} in the file, {backbone.in_channels} in the model "
            "(allowed: the same, or 3 in the file)"
        )
    if differences:
        fits = " or ".join(map(repr, report.arch)) or "none of the published ones"
        raise CheckpointError(
            f"{_of(report.source)}not the network of the model: {'; '.join(differences)}. "
            f"The checkpoint fits arch: {fits}"
        )


def _require_most(needed: Sequence[str], file: Mapping[str, Tensor], source: str) -> None:
    """Raise an error if a checkpoint has too few of the backbone's tensors."""
    missing = [name for name in needed if name not in file]
    if len(missing) > (1 - ENOUGH) * len(needed):
        raise CheckpointError(
            f"{_of(source)}a partial checkpoint: only {len(needed) - len(missing)} of the backbone's {len(needed)} "
            f"tensors are present; allowed: at least {ENOUGH:.0%}, or any number with load_pretrained(..., "
            f"partial=True). Missing: {summarize(missing)}"
        )


def _is_part(file: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether a file has a part of the network's tensors, each of the model's shape."""
    network = [name for name in file if is_ours(name) and not name.startswith("head")]
    if not network or not all(name in wanted and file[name].shape == wanted[name].shape for name in network):
        return False
    # A whole network with fewer blocks is another one, and not a part of this.
    blocks = {match[0] for name in network if (match := _BLOCK.match(name))}
    rest = [name for name in wanted if not (match := _BLOCK.match(name)) or match[0] in blocks]
    return any(name not in file for name in rest if is_ours(name) and not re.match(r"norm\d|head", name))


def is_unbuilt(name: str, backbone: GCViT) -> bool:
    """Whether a tensor belongs to a stage, norm or query that the backbone does not build."""
    return not name.startswith("head.") and _may_stay(name, backbone)


def _may_stay(name: str, backbone: GCViT) -> bool:
    """Whether the model may ignore this tensor: a head, or a stage, norm or query that it does not build."""
    stage = re.match(r"stages\.(\d)\.(query)?", name)
    if stage is None:
        return re.match(r"head\.|norm\d\.", name) is not None
    stages: Any = backbone.stages
    index = int(stage[1])
    return index >= len(stages) or (stage[2] is not None and stages[index].query is None)


def _check_values(tensors: Mapping[str, Tensor], source: str, finite: bool, own: Tensor) -> None:
    tensors = {name: value for name, value in tensors.items() if is_ours(name)}
    others = [f"{name} {value.dtype}" for name, value in tensors.items() if value.dtype not in _FLOATS]
    if others:
        raise CheckpointError(
            f"{_of(source)}wrong types; allowed: floating point of 16 bits or more: {summarize(others)}"
        )
    odd = [
        name
        for name, value in tensors.items()
        if value.layout != torch.strided or value.is_nested or (value.is_meta and not own.is_meta)
    ]
    if odd:
        raise CheckpointError(f"{_of(source)}tensors that are sparse, nested or without values: {summarize(odd)}")
    if finite:
        # as the model will have them: numbers of float64 may be infinite in float32
        bad = [
            name
            for name, value in tensors.items()
            if not value.is_meta
            and not torch.isfinite(value if value.dtype == own.dtype else value.to(own.dtype)).all()
        ]
        if bad:
            raise CheckpointError(
                f"{_of(source)}NaN or infinite numbers in {counted(len(bad), 'tensor')}: {summarize(bad)}"
            )


def _of(source: str) -> str:
    return f"{source}: " if source else ""


def _format(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# Former names, kept for one release
Numbers = InferredArch
fit = match_state_dict
grouped = group_by_part
