"""FLOPs of a model's forward pass, and the parameter groups of its optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mmgcvit.backbone.gcvit import GCViT
from mmgcvit.compat import flash_attention_on_cpu
from mmgcvit.errors import UsageError
from mmgcvit.registry import building, type_name
from mmgcvit.tasks import find_task
from mmgcvit.tasks.detection.flops import MASKS, PROPOSALS
from mmgcvit.utils.text import counted, describe, wide_console


@dataclass(frozen=True)
class Published:
    """Published figures for a config's model; for detectors, whose input size is not stated, mmdet's at test time."""

    shape: tuple[int, int]  # height, width
    gflops: float
    parameters: float  # millions
    table: int  # number of the table in the paper


# Keyed by the config's file name. Variants with other windows are compared with the same published model.
PUBLISHED: dict[str, Published] = {
    f"{name}{windows}_fpn_{schedule}_coco": Published((800, 1344), gflops, parameters, 3)
    for name, gflops, parameters in (
        ("mask-rcnn_gcvit-tiny", 291, 48), ("cascade-mask-rcnn_gcvit-tiny", 770, 85),
        ("cascade-mask-rcnn_gcvit-small", 866, 108), ("cascade-mask-rcnn_gcvit-base", 1018, 146))
    for windows, schedule in (("", "1x"), ("", "ms-crop-3x"), ("_w24", "ms-crop-3x"))
    if schedule != "1x" or not name.startswith("cascade")
} | {
    f"gcvit-{arch}{windows}_upernet_8xb2-160k_ade20k-512x512": Published((512, 2048), gflops, parameters, 5)
    for arch, gflops, parameters in (("tiny", 947, 58), ("small", 1163, 84), ("base", 1348, 125))
    for windows in ("", "_w7", "_w24")
}  # fmt: skip


@dataclass
class Part:
    """Multiply-adds and parameters of one part of a model."""

    name: str
    macs: int = 0
    attention: int = 0  # the part of `macs` spent in products of queries, keys and values
    parameters: int = 0


@dataclass
class Flops:
    """Cost of a forward pass, by part; ``total`` is the sum."""

    shape: tuple[int, int]
    parts: list[Part] = field(default_factory=list)

    @property
    def total(self) -> Part:
        """Sum of all parts."""
        return _together("total", self.parts)


def _together(name: str, parts: Sequence[Part]) -> Part:
    return Part(name, *(sum(getattr(part, key) for part in parts) for key in ("macs", "attention", "parameters")))


def published(config: str | Path, shape: tuple[int, int]) -> Published | None:
    """Return the published figures of a config at this shape; variants for one GPU or less memory share their model."""
    found = PUBLISHED.get(Path(config).stem.removesuffix("_1gpu").removesuffix("_cp"))
    return found if found is not None and found.shape == tuple(shape) else None


def build_model(cfg: Config, device: str = "cpu") -> nn.Module:
    """Build the config's model without loading weights, for uses that depend only on names and shapes.

    Raises:
        UsageError: the model cannot be built.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    with building("model"), torch.device(device):
        return MODELS.build(cfg.model)


def count_flops(model: nn.Module, shape: tuple[int, int], channels: int | None = None) -> Flops:
    """Count the multiply-adds of convolutions, linear layers and matrix products (incl. attention) for one image.

    The forward pass runs on the model's device under torch's FlopCounterMode, which counts two operations per
    multiply-add; its figures are halved to match what papers call FLOPs. The box heads of a two-stage detector get 1000
    proposals and its mask heads 100, as in mmdet's own count. Not counted: norms, activations, pooling, resampling
    (including that of deformable attention), RoIAlign, losses, NMS.

    Args:
        model: a backbone, or a classifier, detector or segmentor of mmengine, mmdet, mmseg.
        shape: height and width of the image, in pixels.
        channels: number of channels of the image; by default as many as the model's first convolution takes, or 3.

    Returns:
        Counts for the stem, each stage, the neck, each head, and the rest.

    Raises:
        UsageError: the forward pass of the model needs more than an image.
    """
    parameter = next(model.parameters())
    if channels is None:
        first = (module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
        channels = next(first, 3)
    image = torch.zeros(1, channels, *shape, device=parameter.device, dtype=parameter.dtype)
    counter = FlopCounterMode(display=False, custom_mapping=_fused_on_cpu())
    result = Flops(shape)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad(), _no_fast_path(), counter, _parts(model, counter, result):
        _forward(model, image)
    for module, mode in modes:
        module.training = mode
    rest = Part("other", *_read(counter), _size(model))
    for part in result.parts:
        rest.macs, rest.attention = rest.macs - part.macs, rest.attention - part.attention
        rest.parameters -= part.parameters
    if backbone := _backbone(model):  # the norm of a stage's map belongs to the stage
        prefix = "" if backbone is model else "backbone."
        for part in result.parts:
            stage = part.name.removeprefix(f"{prefix}stages.")
            norm = getattr(backbone, f"norm{stage}", None)
            if stage != part.name and norm is not None:
                part.parameters += _size(norm)
                rest.parameters -= _size(norm)
    result.parts.append(rest)
    return result


def _forward(model: nn.Module, image: Tensor) -> None:
    """Run a forward pass in which all heads do the maximum work possible at test time."""
    if not hasattr(model, "data_preprocessor"):
        model(image)
    elif (task := find_task(model)) is not None:
        try:
            task.forward(model, image)
        except Exception as error:  # of a head that needs annotations, texts or other inputs
            raise UsageError(
                f"model.type={type(model).__name__!r}: its forward pass on an image alone fails, so that it cannot be "
                f"counted: {describe(error)}"
            ) from error
    else:
        model(image, [], mode="tensor")


@contextmanager
def _parts(model: nn.Module, counter: FlopCounterMode, result: Flops) -> Iterator[None]:
    """Attribute the operations counted during a part's forward pass to this part."""
    modules = part_modules(model)
    for name, module in modules:
        part = Part(name, parameters=_size(module))
        result.parts.append(part)
        # A hook would not work: mmdet and mmseg call the forward of some heads directly.
        module.forward = _counting(module.forward, part, counter)
    try:
        yield
    finally:
        for _, module in modules:
            del module.forward


def _counting(forward: Callable, part: Part, counter: FlopCounterMode) -> Callable:
    def counted(*args: object, **kwargs: object) -> object:
        before = _read(counter)
        result = forward(*args, **kwargs)
        now = _read(counter)
        part.macs += now[0] - before[0]
        part.attention += now[1] - before[1]
        return result

    return counted


def part_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Stem, stages, neck and heads, with their names in the model."""
    backbone = _backbone(model)
    prefix = "" if backbone is model else "backbone."
    parts: list[tuple[str, nn.Module]] = []
    if backbone is not None:
        parts = [(f"{prefix}stem", backbone.stem)]
        parts += [(f"{prefix}stages.{i}", stage) for i, stage in enumerate(backbone.stages)]
    elif isinstance(other := getattr(model, "backbone", None), nn.Module):
        parts = [("backbone", other)]
    if backbone is not model:
        for name, child in model.named_children():
            inner = child.named_children() if name == "roi_head" else [("", child)]
            parts += [
                (f"{name}.{key}".rstrip("."), module)
                for key, module in inner
                if name != "backbone" and any(True for _ in module.parameters())
            ]
    unrolled: list[tuple[str, nn.Module]] = []
    for name, module in parts:  # a ModuleList of heads is never called itself
        if isinstance(module, nn.ModuleList):
            unrolled += [(f"{name}.{i}", head) for i, head in enumerate(module)]
        else:
            unrolled.append((name, module))
    return unrolled


def _backbone(model: nn.Module) -> GCViT | None:
    backbone = model if isinstance(model, GCViT) else getattr(model, "backbone", None)
    return backbone if isinstance(backbone, GCViT) else None


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _read(counter: FlopCounterMode) -> tuple[int, int]:
    """Multiply-adds counted so far, in total and in attention."""
    counts = counter.get_flop_counts().get("Global", {})
    attention = sum(n for op, n in counts.items() if "attention" in str(op) or str(op) in ("aten.bmm", "aten.baddbmm"))
    return sum(counts.values()) // 2, attention // 2


def _fused_on_cpu() -> dict:
    """Custom count for torch's fused attention on a CPU; torch counts only that on CUDA."""
    fused = flash_attention_on_cpu()

    def count(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object) -> int:
        return sdpa_flop_count(query, key, value)

    return {} if fused is None else {fused: count}


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Prevent nn.MultiheadAttention from using its single fused operation, which cannot be counted."""
    switch = getattr(torch.backends, "mha", None)
    if switch is None or not switch.get_fastpath_enabled():
        yield
        return
    switch.set_fastpath_enabled(False)
    try:
        yield
    finally:
        switch.set_fastpath_enabled(True)


@dataclass
class Group:
    """Parameters with the same learning rate and weight decay."""

    lr: float
    weight_decay: float
    names: list[str] = field(default_factory=list)
    parameters: int = 0


def parameter_groups(cfg: Config) -> tuple[list[Group], list[str], list[str]]:
    """Compute the parameter groups of the config's optimizer.

    Args:
        cfg: a config with ``model`` and ``optim_wrapper``.

    Returns:
        Groups by learning rate and weight decay, largest rates first; names of frozen parameters; custom keys of
        ``paramwise_cfg`` that match no parameter.
    """
    model = build_model(cfg, "meta")
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    if type_name(wrapper) in (
        "AmpOptimWrapper",
        "FSDPAmpOptimWrapper",
    ):  # these need a GPU, and make no difference here
        wrapper = {key: value for key, value in wrapper.items() if key not in ("dtype", "loss_scale", "use_fsdp")}
        wrapper["type"] = "OptimWrapper"
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("ERROR")  # mmengine logs a line for each parameter
    try:
        optimizer = build_optim_wrapper(model, wrapper).optimizer
    finally:
        logger.setLevel(level)
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[tuple[float, float], Group] = {}
    for options in optimizer.param_groups:
        key = options["lr"], options["weight_decay"]
        group = groups.setdefault(key, Group(*key))
        for parameter in options["params"]:
            group.names.append(names.pop(id(parameter)))
            group.parameters += parameter.numel()
    known = [name for name, _ in model.named_parameters()]
    custom = (cfg.optim_wrapper.get("paramwise_cfg") or {}).get("custom_keys") or {}
    unmatched = [key for key in custom if not any(key in name for name in known)]
    ordered = sorted(groups.values(), key=lambda g: (-g.lr, -g.weight_decay))
    return [g for g in ordered if g.names], list(names.values()), unmatched


def print_flops(flops: Flops, beside: Published | None = None) -> None:
    """Print a table of the parts, the backbone and the total, with published figures and the counting rules."""
    height, width = flops.shape
    table = Table(title=f"forward pass of one {height} x {width} image (height x width)", title_justify="left")
    table.add_column("part", no_wrap=True)
    for title in ("GFLOPs", "of which attention", "parameters, M"):
        table.add_column(title, justify="right")
    inside = [part for part in flops.parts if part.name.startswith("backbone.")]  # empty for a backbone alone
    for parts in ((inside, [_together("backbone", inside)]) if inside else ()) + (
        [part for part in flops.parts if part not in inside],
        [flops.total],
    ):
        for part in parts:
            table.add_row(
                part.name, f"{part.macs / 1e9:.2f}", f"{part.attention / 1e9:.2f}", f"{part.parameters / 1e6:.2f}"
            )
        table.add_section()
    if beside:
        table.add_row(f"published, table {beside.table}", f"{beside.gflops:g}", "", f"{beside.parameters:g}")
    console = wide_console()
    console.print(table)
    console.print(
        "A multiply-add counts as one, as in papers. Counted: convolutions, linear layers, matrix products "
        "(including attention). Not counted: norms, activations, pooling, resampling, RoIAlign, NMS."
        + (f" Box heads see {PROPOSALS} proposals, mask heads {MASKS}." if _two_stage(flops) else "")
    )


def print_parameter_groups(cfg: Config) -> bool:
    """Print a table of the optimizer's parameter groups, and a warning for each custom key without a match.

    Returns:
        Whether all custom keys match.
    """
    groups, frozen, unmatched = parameter_groups(cfg)
    table = Table(
        title=f"{cfg.optim_wrapper.optimizer.type}: parameters by learning rate and weight decay", title_justify="left"
    )
    for title, width in (("lr", 8), ("decay", 6), ("tensors", 7), ("parameters, M", 13)):
        table.add_column(title, justify="right", min_width=width)
    table.add_column("the first", no_wrap=True, overflow="ellipsis")
    for group in groups:
        table.add_row(
            f"{group.lr:.2e}",
            f"{group.weight_decay:g}",
            str(len(group.names)),
            f"{group.parameters / 1e6:.3f}",
            group.names[0],
        )
    console = wide_console()
    console.print(table)
    if frozen:
        console.print(f"not trained: {counted(len(frozen), 'tensor')}, the first {frozen[0]}", markup=False)
    for key in unmatched:
        console.print(
            f"warning: optim_wrapper.paramwise_cfg.custom_keys: {key!r} matches no parameter",
            markup=False,
            soft_wrap=True,
        )
    return not unmatched


def _two_stage(flops: Flops) -> bool:
    return any(part.name.startswith("roi_head") for part in flops.parts)
