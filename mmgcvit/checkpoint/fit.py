"""Whether a checkpoint's network is the model's, and what of it goes where."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from mmgcvit.backbone.arch import ARCHS, Arch
from mmgcvit.backbone.bias import resize_bias_table, table_window
from mmgcvit.backbone.checks import STAGES
from mmgcvit.backbone.gcvit import GCViT
from mmgcvit.checkpoint.errors import CheckpointError, some
from mmgcvit.checkpoint.layouts import TABLE, Converted, is_ours

ENOUGH = 0.95  # share of the backbone's tensors that a checkpoint must have
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAME = ("embed_dims", "depths", "num_heads", "mlp_ratio", "layer_scale")


@dataclass
class LoadReport:
    """What became of a checkpoint's tensors. ``print(report)`` tells it in a few lines.

    Args:
        source: file, URL or name that was loaded; '' for a state dict.
        layout: one of :data:`~mmgcvit.checkpoint.layouts.LAYOUTS`.
        arch: the published variants that the checkpoint's numbers fit; empty for a network of one's own.
        loaded: tensors of the model that were taken as they are.
        resized: bias tables that were resized, with the windows of the file and of the model.
        adapted: first convolutions for another number of channels, with those of the file and of the model.
        left_in_file: tensors of the file that the model has no use for.
        left_initial: tensors of the backbone (and head) that the file does not have: at their initial values.
        notes: what else a user should know.
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

    @property
    def is_plain(self) -> bool:
        """Whether every tensor was taken as it is, and none was left."""
        return not (self.resized or self.adapted or self.left_in_file or self.left_initial)

    def __str__(self) -> str:
        arch = f", arch {' or '.join(self.arch)}" if self.arch else ""
        lines = [
            f"GCViT: weights from {self.source or 'a state dict'} (layout {self.layout}{arch})",
            f"  loaded: {len(self.loaded)} tensors",
        ]
        if self.resized:
            windows = ", ".join(f"{old} -> {new}" for old, new in sorted(set(self.resized.values())))
            lines.append(
                f"  resized: {len(self.resized)} relative position bias tables, bicubically, "
                f"to other windows ({windows})"
            )
        lines += [f"  adapted: {name} from {old} to {new} channels" for name, (old, new) in self.adapted.items()]
        for title, names in (("left in the file", self.left_in_file), ("left at initial values", self.left_initial)):
            if names:
                lines.append(f"  {title}: {len(names)} tensors ({grouped(names)})")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Numbers:
    """What the shapes of a state dict in our names say about its network. 0 where there is nothing to read."""

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
    def of(cls, tensors: Mapping[str, Tensor]) -> Numbers:
        """Read them off the tensors."""

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
                    raise CheckpointError(f"stage {stage} has the {what} {some(sorted(numbers))}, but not {gaps[0]}")
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
        """The published variants with these numbers: by their windows, or whatever the windows where none has them."""
        rows = {name: Arch(**row) for name, row in ARCHS.items()}
        stages = self.stages
        fits = [name for name, arch in rows.items() if stages and not self.differences(arch, stages)]
        exact = [name for name in fits if rows[name].window_size[:stages] == self.windows[:stages]]
        return tuple(exact or fits)

    @property
    def stages(self) -> int:
        """How many stages there are from the first on; a backbone without the last maps has fewer than four."""
        return next((i for i, depth in enumerate(self.depths) if not depth), STAGES)

    @property
    def mlp_ratio(self) -> float:
        """A ratio that gives these channels."""
        if not self.embed_dims or not self.stages:
            return 0.0
        last = self.stages - 1
        channels, dims = self.mlp_channels[last], self.embed_dims * 2**last
        # Channels are rounded down: from the widest stage, and half a channel more, the others come out too.
        return channels / dims if channels % dims == 0 else (channels + 0.5) / dims

    def differences(self, arch: Arch, stages: int) -> list[str]:
        """In what a network of ``arch`` differs, in its first ``stages`` stages."""
        # a stage's MLP without its weights is missing, not different
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
        # a number of 0 stands for tensors that are missing, which is told elsewhere
        return [
            f"{name} {_number(b)} in the file, {_number(a)} in the model"
            for name, a, b in zip(_SAME, ours, theirs, strict=True)
            if a != b and (b != 0 or b is False)
        ]


def fit(
    backbone: GCViT, converted: Converted, source: str = "", head: nn.Linear | None = None, check_values: bool = True
) -> tuple[dict[str, Tensor], LoadReport]:
    """Choose a tensor for each of the backbone's, resized or adapted where that is what it takes. Changes nothing.

    Args:
        backbone: the model, or the model's.
        converted: a checkpoint in our names.
        source: for the report.
        head: a classifier's last linear map, if there is one; its tensors are ``head.weight`` and ``head.bias``.
        check_values: whether NaN or infinite numbers are an error.

    Returns:
        Tensors by the backbone's own names and the head's, of the model's shapes, and the report.

    Raises:
        CheckpointError: another variant, depth, width or number of heads; a tensor that fits nowhere; fewer than 95 %
            of the backbone's tensors; integers, NaN or infinite numbers.
    """
    file = dict(converted.backbone)
    _usable_values(file, source, check_values, backbone.stem.conv.weight.is_meta)
    numbers = Numbers.of(file)
    report = LoadReport(source, converted.layout, numbers.archs)
    _same_network(backbone, numbers, report)
    wanted = backbone.state_dict(keep_vars=True)
    if head is not None:
        wanted |= {f"head.{name}": value for name, value in head.named_parameters()}
        shape = tuple(file["head.weight"].shape) if "head.weight" in file else None
        if shape not in (None, tuple(head.weight.shape)):
            report.notes.append(
                f"head: {shape[0]} classes of {shape[1]} channels in the file, {head.out_features} of "
                f"{head.in_features} in the model: left out"
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
        raise CheckpointError(f"{_of(source)}shapes that do not fit the model: {some(wrong)}")

    unused = [name for name in file if not _may_stay(name, backbone)]
    if unused:
        raise CheckpointError(f"{_of(source)}tensors of the network that the model does not have: {some(unused)}")
    report.left_in_file += [*file, *converted.others]
    needed = [name for name in wanted if is_ours(name) and not re.match(r"norm\d|head", name)]
    missing = [name for name in needed if name not in chosen]
    if len(missing) > (1 - ENOUGH) * len(needed):
        raise CheckpointError(
            f"{_of(source)}only {len(needed) - len(missing)} of the backbone's {len(needed)} tensors "
            f"are in it, and {ENOUGH:.0%} are needed; missing: {some(missing)}"
        )
    return chosen, report


def grouped(names: list[str]) -> str:
    """``norm0, norm1, roi_head (12)``: tensors by the part that they belong to."""
    parts = Counter(name.split(".")[0] for name in names)
    return some(
        [
            part if part in ("head",) or re.fullmatch(r"norm\d", part) else f"{part} ({count})"
            for part, count in parts.items()
        ],
        12,
    )


def _same_network(backbone: GCViT, numbers: Numbers, report: LoadReport) -> None:
    stages = len(backbone.stages)
    differences = numbers.differences(backbone.arch, stages)
    queries = tuple(0 if stage.query is None else len(stage.query.mbconvs) for stage in backbone.stages)
    theirs = tuple(count if ours else 0 for ours, count in zip(queries, numbers.query_mbconvs, strict=False))
    if queries != theirs:
        differences.append(
            f"MBConvs of the global query {theirs} in the file, {queries} in the model (global_query_reductions)"
        )
    qkv = backbone.stages[0].blocks[0].attn.qkv
    if numbers.qkv_bias != (qkv.bias is not None):
        differences.append(f"qkv_bias {numbers.qkv_bias} in the file, {qkv.bias is not None} in the model")
    if numbers.in_channels not in (3, backbone.in_channels):
        differences.append(
            f"in_channels {numbers.in_channels} in the file, {backbone.in_channels} in the model "
            "(allowed: the same, or 3 in the file)"
        )
    if differences:
        fits = " or ".join(map(repr, report.arch)) or "none of the published ones"
        raise CheckpointError(
            f"{_of(report.source)}another network than the model's: {'; '.join(differences)}. "
            f"The arch that the checkpoint fits: {fits}"
        )


def _may_stay(name: str, backbone: GCViT) -> bool:
    """Whether a model can do without this tensor of a file: a head, or stages, norms and queries that it leaves out."""
    stage = re.match(r"stages\.(\d)\.(query)?", name)
    if stage is None:
        return re.match(r"head\.|norm\d\.", name) is not None
    index = int(stage[1])
    return index >= len(backbone.stages) or (stage[2] is not None and backbone.stages[index].query is None)


def _usable_values(tensors: Mapping[str, Tensor], source: str, finite: bool, may_be_meta: bool) -> None:
    tensors = {name: value for name, value in tensors.items() if is_ours(name)}
    others = [f"{name} {value.dtype}" for name, value in tensors.items() if value.dtype not in _FLOATS]
    if others:
        raise CheckpointError(f"{_of(source)}wrong types; allowed: floating point of 16 bits or more: {some(others)}")
    odd = [
        name
        for name, value in tensors.items()
        if value.layout != torch.strided or value.is_nested or (value.is_meta and not may_be_meta)
    ]
    if odd:
        raise CheckpointError(f"{_of(source)}tensors that are sparse, nested or without values: {some(odd)}")
    if finite:
        bad = [name for name, value in tensors.items() if not value.is_meta and not torch.isfinite(value).all()]
        if bad:
            raise CheckpointError(f"{_of(source)}NaN or infinite numbers in {len(bad)} tensors: {some(bad)}")


def _of(source: str) -> str:
    return f"{source}: " if source else ""


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
