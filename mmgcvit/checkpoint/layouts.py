"""The names and shapes that publishers give to the network's tensors, both ways.

One table says what each tensor is called by us, by the authors and by timm. tfgcvit's names are the authors' with other
separators and leaves. All regular expressions are made from the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

from mmgcvit.backbone.bias import table_window
from mmgcvit.checkpoint.errors import CheckpointError, some

LAYOUTS = ("nvidia", "nvidia-detection", "timm", "keras", "mmgcvit")
WRITABLE = ("mmgcvit", "nvidia", "timm")
TABLE = "relative_position_bias_table"

# Ours, the authors', timm's. {i} is a stage, {h} the one before, {j} a block, {k} an MBConv (timm counts from 1: {n}),
# {p} weight or bias.
_MBCONV = (
    ("depthwise.weight", "conv.0.weight", "conv_dw.weight"),
    ("se.fc1.weight", "conv.2.fc.0.weight", "se.fc1.weight"),
    ("se.fc2.weight", "conv.2.fc.2.weight", "se.fc2.weight"),
    ("pointwise.weight", "conv.3.weight", "conv_pw.weight"),
)
_DOWNSAMPLE = (
    ("norm1.{p}", "norm1.{p}", "norm1.{p}"),
    *((f"mbconv.{ours}", authors, f"conv_block.{timm}") for ours, authors, timm in _MBCONV),
    ("reduction.weight", "reduction.weight", "reduction.weight"),
    ("norm2.{p}", "norm2.{p}", "norm2.{p}"),
)
_BLOCK = (
    ("norm1.{p}", "norm1.{p}", "norm1.{p}"),
    ("attn.qkv.{p}", "attn.qkv.{p}", "attn.qkv.{p}"),
    ("attn.kv.{p}", "attn.qkv.{p}", "attn.qkv.{p}"),  # of global attention; which it is, the rows say
    (f"attn.{TABLE}", f"attn.{TABLE}", f"attn.rel_pos.{TABLE}"),
    ("attn.proj.{p}", "attn.proj.{p}", "attn.proj.{p}"),
    ("gamma1", "gamma1", "ls1.gamma"),
    ("norm2.{p}", "norm2.{p}", "norm2.{p}"),
    ("mlp.fc1.{p}", "mlp.fc1.{p}", "mlp.fc1.{p}"),
    ("mlp.fc2.{p}", "mlp.fc2.{p}", "mlp.fc2.{p}"),
    ("gamma2", "gamma2", "ls2.gamma"),
)


def _under(rows: tuple, *prefixes: str) -> list[tuple[str, ...]]:
    return [tuple(prefix + name for prefix, name in zip(prefixes, row, strict=True)) for row in rows]


NAMES: list[tuple[str, ...]] = [
    ("stem.conv.{p}", "patch_embed.proj.{p}", "stem.conv1.{p}"),
    *_under(_DOWNSAMPLE, "stem.downsample.", "patch_embed.conv_down.", "stem.down."),
    *_under(_DOWNSAMPLE, "stages.{i}.downsample.", "levels.{h}.downsample.", "stages.{i}.downsample."),
    *_under(_MBCONV, "stages.{i}.query.mbconvs.{k}.", "levels.{i}.q_global_gen.to_q_global.{k}.",
            "stages.{i}.global_block.blocks.conv{n}."),
    *_under(_BLOCK, "stages.{i}.blocks.{j}.", "levels.{i}.blocks.{j}.", "stages.{i}.blocks.{j}."),
    ("head.{p}", "head.{p}", "head.fc.{p}"),
]  # fmt: skip
_FINAL_NORM = [("norm3.{p}", "norm.{p}", "stages.3.norm.{p}")]  # a classifier's
_MAP_NORMS = [("norm{i}.{p}", "norm{i}.{p}", None)]  # one per map: the authors' detection models and ours
# Recomputed by everybody, never learnt.
_IGNORED = re.compile(r"attn\.(rel_pos\.)?relative_position_index$")
# What tells a layout, and where in the file its network begins.
_ANCHORS = {"nvidia": "patch_embed.proj.weight", "timm": "stem.conv1.weight", "mmgcvit": "stem.conv.weight",
            "keras": "patch_embed/proj/kernel"}  # fmt: skip
_GROUPS = {"i": r"[0-3]", "h": r"[0-2]", "j": r"\d+", "k": r"\d+", "n": r"[1-9]\d*", "p": "weight|bias"}


@dataclass
class Converted:
    """A state dict taken apart.

    Args:
        layout: one of :data:`LAYOUTS`.
        prefix: what stood before the network's names in the file, e.g. ``backbone.``.
        backbone: the network's tensors under our names, the head's two as ``head.weight`` and ``head.bias``.
        others: what belongs to other parts of a detector or segmentor, as it was.
    """

    layout: str
    prefix: str
    backbone: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """One flat dict: the network's tensors bare, or under ``backbone.`` beside what else there is."""
        if not self.others:
            return self.backbone
        head = {name: value for name, value in self.backbone.items() if name.startswith("head.")}
        own = {f"backbone.{name}": value for name, value in self.backbone.items() if name not in head}
        return {**own, **head, **self.others}


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Bring any published GC ViT state dict into our names and shapes.

    Args:
        state_dict: tensors by name, of any of :data:`LAYOUTS`, under any prefix; or a checkpoint that holds such a
            dict as ``state_dict``, ``model``, ...

    Returns:
        The layout, and a new dict: the network under bare names (``stem.``, ``stages.``, ``norm3.``, a classifier's
        ``head.``); of a whole detector or segmentor under ``backbone.``, the other parts' tensors as they are.
        Tensors are reordered, never recomputed.

    Raises:
        CheckpointError: it is none of these layouts, a key is unknown, or a shape cannot be; all of them are listed.
    """
    converted = take_apart(weights_of(state_dict))
    return converted.layout, converted.state_dict


def weights_of(checkpoint: object, ema: bool = False) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, unwrapped.

    Args:
        checkpoint: what was read from a file.
        ema: take the averaged weights, which timm's and mmengine's savers put beside the others.

    Raises:
        CheckpointError: no dict of tensors is in it, or ``ema`` is asked for and there is none.
    """
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"the checkpoint is a {type(checkpoint).__name__}; allowed: a dict of tensors")
    names = ("state_dict_ema", "ema_state_dict", "model_ema") if ema else ("state_dict", "model", "module", "network")
    for name in names:
        inner = checkpoint.get(name)
        if isinstance(inner, Mapping):
            return weights_of(inner)
    if ema:
        raise CheckpointError(
            f"the checkpoint has no averaged (EMA) weights: none of {', '.join(names)} among {some(checkpoint)}"
        )
    # `epoch`, `steps` and the like are plain numbers beside the tensors
    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" else value
        for name, value in checkpoint.items()
        if isinstance(name, str)
    }
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"the checkpoint holds no tensors by name; its keys: {some(checkpoint) or 'none'}")
    return tensors


def find_network(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> tuple[str, str]:
    """Which layout a state dict has, and the prefix under which its network stands.

    Args:
        state_dict: tensors by name.
        prefix: look only there.

    Raises:
        CheckpointError: nothing of a GC ViT, or more than one.
    """
    found = []
    for name in state_dict:
        for layout, anchor in _ANCHORS.items():
            plain = name.removesuffix(":0")
            before = plain.removesuffix(anchor)
            if plain != before and before[-1:] in ("", ".", "/") and prefix in (None, before):
                found.append((layout, before))
    if not found:
        where = "" if prefix is None else f" under {prefix!r}"
        raise CheckpointError(
            f"no GC ViT in this checkpoint{where}; allowed: the layouts {', '.join(LAYOUTS)}. "
            f"Its keys: {some(state_dict)}"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{len(found)} networks in this checkpoint; allowed: one, or give `prefix`: "
            f"{', '.join(repr(before) for _, before in found)}"
        )
    layout, before = found[0]
    if layout == "nvidia" and any(f"{before}norm{i}.weight" in state_dict for i in range(4)):
        layout = "nvidia-detection"
    return layout, before


def is_ours(name: str) -> bool:
    """Whether a bare name is one of the network's or its head's, in our own layout."""
    return _renamer("mmgcvit")(name) is not None


def take_apart(state_dict: Mapping[str, Tensor], prefix: str | None = None, also: Container[str] = ()) -> Converted:
    """As :func:`convert_state_dict`, of a plain state dict, with the parts kept apart.

    Args:
        state_dict: tensors by name.
        prefix: where in it the network stands, by default wherever it is found.
        also: bare names to let through as they are: what a user's subclass of the backbone adds to it.
    """
    layout, before = find_network(state_dict, prefix)
    to_ours, unknown, wrong = _renamer(layout), [], []
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if not name.startswith(before):
            # A classifier's head stands beside `backbone.`: mmpretrain calls it head.fc, we call it head.
            outer = before.removesuffix("backbone.")
            head = re.fullmatch(re.escape(outer) + r"head\.(fc\.)?(weight|bias)", name)
            if head and outer != before:
                backbone[f"head.{head[2]}"] = value
            else:
                others[name] = value
            continue
        plain = name[len(before) :].removesuffix(":0")
        if layout == "timm":
            plain = re.sub(r"^stages_(\d)\.", r"stages.\1.", plain)  # of its models for features
        if _IGNORED.search(plain):
            continue
        ours = to_ours(plain)
        if ours is None and plain in also:
            ours = plain
        if ours is None:
            unknown.append(name)
            continue
        value = _from_keras(plain, value) if layout == "keras" else value
        if _wants_two_axes(ours) and value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value.flatten(1)
        backbone[ours] = value
    if unknown:
        raise CheckpointError(f"unknown keys in a checkpoint of layout {layout!r}: {some(unknown, 20)}")
    if layout != "mmgcvit":
        backbone = _reorder(backbone, _heads_first, wrong)
    wrong += _impossible_shapes(backbone)
    if wrong:
        raise CheckpointError(f"impossible shapes in a checkpoint of layout {layout!r}: {some(wrong, 20)}")
    return Converted(layout, before, backbone, others)


def convert_back(backbone: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Our tensors under another publisher's names and shapes, exactly.

    Args:
        backbone: as :attr:`Converted.backbone`.
        layout: one of :data:`WRITABLE`. With more norms than the last, 'nvidia' is the authors' detection layout
            (without the ``backbone.`` before it), else their classification layout.

    Returns:
        The state dict, and the names of ours that have no place in it (timm has no norm0 to norm2).

    Raises:
        CheckpointError: an unknown layout.
    """
    if layout not in WRITABLE:
        raise CheckpointError(f"layout={layout!r}; allowed: {', '.join(WRITABLE)}")
    if layout == "mmgcvit":
        return dict(backbone), []
    column = {"nvidia": 1, "timm": 2}[layout]
    for_maps = any(f"norm{i}.weight" in backbone for i in range(3))
    norms = _MAP_NORMS if for_maps and layout == "nvidia" else _FINAL_NORM
    rules = [(_pattern(row[0]), row[column]) for row in NAMES + norms]
    theirs: dict[str, Tensor] = {}
    left = []
    for name, value in _reorder(backbone, _parts_first, []).items():
        new = _rename(name, rules)
        if new is None:
            left.append(name)
            continue
        if name.endswith("pointwise.weight") or (layout == "timm" and _wants_two_axes(name)):
            value = value[:, :, None, None]
        theirs[new] = value
        if layout == "nvidia" and name.endswith(TABLE):
            theirs[new.replace("bias_table", "index")] = relative_position_index(table_window(value))
    return theirs, left


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens, (window^2, window^2) int64: a buffer in the authors' files."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


@cache
def _renamer(layout: str) -> Callable[[str], str | None]:
    """From one of their names to ours, None where there is none."""
    if layout == "mmgcvit":
        names = NAMES + _MAP_NORMS
        rules = [(_pattern(row[0]), row[0]) for row in names]
        return lambda name: _rename(name, rules)
    column = 2 if layout == "timm" else 1
    norms = _MAP_NORMS if layout == "nvidia-detection" else _FINAL_NORM
    rules = [(_pattern(row[column]), row[0]) for row in NAMES + norms if ".kv." not in row[0]]
    if layout != "keras":
        return lambda name: _rename(name, rules)
    return lambda name: _rename(_authors_name(name), rules)


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w)\\}", lambda m: f"(?P<{m[1]}>{_GROUPS[m[1]]})", re.escape(template)))


def _rename(name: str, rules: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, template in rules:
        match = pattern.fullmatch(name)
        if match:
            found = match.groupdict()
            if "h" in found:
                found["i"] = str(int(found["h"]) + 1)
            elif found.get("i", "0") != "0":
                found["h"] = str(int(found["i"]) - 1)
            if "n" in found:
                found["k"] = str(int(found["n"]) - 1)
            elif "k" in found:
                found["n"] = str(int(found["k"]) + 1)
            try:
                return template.format(**found)
            except KeyError:  # a downsampling that opens stage 0: there is none
                return None
    return None


def _authors_name(keras: str) -> str:
    """``levels/0/blocks/0/norm1/gamma`` -> ``levels.0.blocks.0.norm1.weight``."""
    *path, leaf = keras.split("/")
    leaf = {"kernel": "weight", "depthwise_kernel": "weight", "gamma": "weight", "beta": "bias"}.get(leaf, leaf)
    return ".".join([*path, leaf])


def _from_keras(name: str, value: Tensor) -> Tensor:
    if name.endswith("/depthwise_kernel") and value.ndim == 4:
        return value.permute(2, 3, 0, 1).contiguous()  # (3, 3, C, 1) -> (C, 1, 3, 3)
    if name.endswith("/kernel"):  # HWIO -> OIHW, (in, out) -> (out, in)
        return (value.permute(3, 2, 0, 1) if value.ndim == 4 else value.t() if value.ndim == 2 else value).contiguous()
    return value


def _wants_two_axes(ours: str) -> bool:
    """Whether this is a 1x1 convolution or a linear map, which others write with two more axes."""
    return ours.endswith(("pointwise.weight", "se.fc1.weight", "se.fc2.weight"))


def _reorder(backbone: Mapping[str, Tensor], order: Callable, wrong: list[str]) -> dict[str, Tensor]:
    """Reorder the rows of all qkv by their bias tables' heads; in our names, two parts are a kv."""
    new = {}
    for name, value in backbone.items():
        stem, attn, projection = name.partition(".attn.")
        if not attn or not projection.startswith(("qkv.", "kv.")):
            new[name] = value
            continue
        table, proj = backbone.get(f"{stem}.attn.{TABLE}"), backbone.get(f"{stem}.attn.proj.weight")
        heads = table.shape[-1] if table is not None and table.ndim == 2 else 0
        channels = len(proj) if proj is not None and proj.ndim else 0
        rows = len(value) if value.ndim else 0
        if not heads or not channels or channels % heads or rows not in (2 * channels, 3 * channels):
            wrong.append(f"{name} {tuple(value.shape)}")
            continue
        parts = rows // channels
        if order is _heads_first and parts == 2:
            projection = projection.replace("qkv.", "kv.")
        new[f"{stem}.attn.{projection}"] = order(value, heads, parts)
    return new


def _heads_first(rows: Tensor, heads: int, parts: int) -> Tensor:
    """Rows (part, head, head_dim) -> (head, part, head_dim)."""
    return rows.unflatten(0, (parts, heads, -1)).transpose(0, 1).flatten(0, 2).contiguous()


def _parts_first(rows: Tensor, heads: int, parts: int) -> Tensor:
    """Rows (head, part, head_dim) -> (part, head, head_dim)."""
    return rows.unflatten(0, (heads, parts, -1)).transpose(0, 1).flatten(0, 2).contiguous()


_AXES = (
    (r"stem\.conv\.weight|.*(depthwise|reduction)\.weight", 4),
    (r".*(pointwise|se\.fc[12]|qkv|\bkv|proj|mlp\.fc[12])\.weight|head\.weight|.*" + TABLE, 2),
    (r".*", 1),
)


def _impossible_shapes(backbone: Mapping[str, Tensor]) -> list[str]:
    """Tensors whose number of axes is wrong, or tables that fit no window."""
    wrong = []
    for name, value in backbone.items():
        if not is_ours(name):  # a subclass's own
            continue
        axes = next(count for pattern, count in _AXES if re.fullmatch(pattern, name))
        if value.ndim != axes or 0 in value.shape or (name.endswith(TABLE) and not table_window(value)):
            wrong.append(f"{name} {tuple(value.shape)}")
    return wrong
