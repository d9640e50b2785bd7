"""Conversion between our tensor names and shapes and those of each publisher, in both directions.

A single table lists the names used by this project, by the authors and by timm; all regular expressions are derived
from it. tfgcvit uses the authors' names with other separators and leaf names.
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
from mmgcvit.checkpoint.limits import DECRYPT
from mmgcvit.errors import CheckpointError
from mmgcvit.utils import summarize

LAYOUTS = ("nvidia", "nvidia-detection", "timm", "keras", "mmgcvit")
WRITABLE = ("mmgcvit", "nvidia", "timm")
TABLE = "relative_position_bias_table"

# Columns: ours, the authors', timm's. {i}: stage, {h}: the stage before, {j}: block, {k}: MBConv ({n} in timm, which
# counts from 1), {p}: weight or bias.
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
    ("attn.kv.{p}", "attn.qkv.{p}", "attn.qkv.{p}"),  # global attention; distinguished by the number of rows
    (f"attn.{TABLE}", f"attn.{TABLE}", f"attn.rel_pos.{TABLE}"),
    ("attn.proj.{p}", "attn.proj.{p}", "attn.proj.{p}"),
    ("gamma1", "gamma1", "ls1.gamma"),
    ("norm2.{p}", "norm2.{p}", "norm2.{p}"),
    ("mlp.fc1.{p}", "mlp.fc1.{p}", "mlp.fc1.{p}"),
    ("mlp.fc2.{p}", "mlp.fc2.{p}", "mlp.fc2.{p}"),
    ("gamma2", "gamma2", "ls2.gamma"),
)


def _with_prefixes(rows: tuple, *prefixes: str) -> list[tuple[str, ...]]:
    return [tuple(prefix + name for prefix, name in zip(prefixes, row, strict=True)) for row in rows]


NAMES: list[tuple[str, ...]] = [
    ("stem.conv.{p}", "patch_embed.proj.{p}", "stem.conv1.{p}"),
    *_with_prefixes(_DOWNSAMPLE, "stem.downsample.", "patch_embed.conv_down.", "stem.down."),
    *_with_prefixes(_DOWNSAMPLE, "stages.{i}.downsample.", "levels.{h}.downsample.", "stages.{i}.downsample."),
    *_with_prefixes(_MBCONV, "stages.{i}.query.mbconvs.{k}.", "levels.{i}.q_global_gen.to_q_global.{k}.",
            "stages.{i}.global_block.blocks.conv{n}."),
    *_with_prefixes(_BLOCK, "stages.{i}.blocks.{j}.", "levels.{i}.blocks.{j}.", "stages.{i}.blocks.{j}."),
    ("head.{p}", "head.{p}", "head.fc.{p}"),
]  # fmt: skip
_FINAL_NORM: list[tuple[str, ...]] = [("norm3.{p}", "norm.{p}", "stages.3.norm.{p}")]  # of classifiers
_MAP_NORMS: list[tuple[str, ...]] = [("norm{i}.{p}", "norm{i}.{p}", "")]  # one per map: the authors' detectors and ours
# Buffers that every implementation recomputes.
_IGNORED = re.compile(r"attn\.(rel_pos\.)?relative_position_index$")
# The tensor that identifies each layout and the prefix of the network in the file.
_ANCHORS = {"nvidia": "patch_embed.proj.weight", "timm": "stem.conv1.weight", "mmgcvit": "stem.conv.weight",
            "keras": "patch_embed/proj/kernel"}  # fmt: skip
_GROUPS = {"i": r"[0-3]", "h": r"[0-2]", "j": r"\d+", "k": r"\d+", "n": r"[1-9]\d*", "p": "weight|bias"}


@dataclass
class Converted:
    """A state dict, split into the GC ViT and the other parts of the model.

    Args:
        layout: one of :data:`LAYOUTS`.
        prefix: prefix of the network's names in the file, e.g. ``backbone.``.
        backbone: tensors of the network under our names; those of a head as ``head.weight`` and ``head.bias``.
        others: tensors of the other parts of a detector or segmentor, unchanged.
    """

    layout: str
    prefix: str
    backbone: dict[str, Tensor]
    others: dict[str, Tensor] = field(default_factory=dict)

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """Return a flat dict: network tensors without a prefix, or under ``backbone.`` if there are other parts."""
        if not self.others:
            return self.backbone
        head = {name: value for name, value in self.backbone.items() if name.startswith("head.")}
        own = {f"backbone.{name}": value for name, value in self.backbone.items() if name not in head}
        return {**own, **head, **self.others}


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Convert any published GC ViT state dict to our names and shapes.

    Args:
        state_dict: tensors by name in any of :data:`LAYOUTS`, with any prefix; or a checkpoint that contains such a
            dict as ``state_dict``, ``model``, ...

    Returns:
        The layout, and a new dict with the network's tensors without a prefix (``stem.``, ``stages.``, ``norm3.``,
        ``head.`` of a classifier). For a whole detector or segmentor they are under ``backbone.``, and the tensors of
        the other parts are unchanged. Values are permuted, never recomputed.

    Raises:
        CheckpointError: the layout is unknown, a key is unknown, or a shape is impossible; all of them are listed.
    """
    converted = split_state_dict(unwrap_checkpoint(state_dict))
    return converted.layout, converted.state_dict


def unwrap_checkpoint(checkpoint: object, ema: bool = False) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint.

    Args:
        checkpoint: contents of a file, e.g. from :func:`~mmgcvit.checkpoint.reader.read_checkpoint`.
        ema: return the averaged (EMA) weights, which timm and mmengine save in addition to the raw weights.

    Returns:
        Tensors by name; NumPy arrays are converted, other values are dropped.

    Raises:
        CheckpointError: there is no dict of tensors, or no averaged weights although ``ema`` is set.
    """
    if isinstance(checkpoint, Mapping) and checkpoint.get("state_dict_encrypted") is True:
        raise CheckpointError(f"the weights are encrypted by NVIDIA TAO: {DECRYPT}")
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"the checkpoint is a {type(checkpoint).__name__}; allowed: a dict of tensors")
    names = ("state_dict_ema", "ema_state_dict", "model_ema") if ema else ("state_dict", "model", "module", "network")
    for name in names:
        inner = checkpoint.get(name)
        if isinstance(inner, Mapping):
            return unwrap_checkpoint(inner)
    if ema:
        raise CheckpointError(
            f"the checkpoint has no averaged (EMA) weights: none of {', '.join(names)} among {summarize(checkpoint)}"
        )
    # entries such as `epoch` and `steps` are plain numbers
    tensors = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" else value
        for name, value in checkpoint.items()
        if isinstance(name, str)
    }
    tensors = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"the checkpoint contains no tensors by name; its keys: {summarize(checkpoint) or 'none'}"
        )
    return tensors


def find_network(state_dict: Mapping[str, Tensor], prefix: str | None = None) -> tuple[str, str]:
    """Detect the layout of a state dict and the prefix of its network.

    Args:
        state_dict: tensors by name.
        prefix: the only prefix to consider.

    Returns:
        The layout, one of :data:`LAYOUTS`, and the prefix, '' for none.

    Raises:
        CheckpointError: there is no GC ViT, or more than one.
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
            f"Its keys: {summarize(state_dict)}"
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
    """Whether a name without prefix belongs to the network or its head in our own layout."""
    return _renamer("mmgcvit")(name) is not None


def split_state_dict(
    state_dict: Mapping[str, Tensor], prefix: str | None = None, also: Container[str] = ()
) -> Converted:
    """Convert a plain state dict like :func:`convert_state_dict`, but return the network and other parts separately.

    Args:
        state_dict: tensors by name.
        prefix: prefix of the network; detected by default.
        also: names without prefix to accept unchanged: the additional tensors of a subclass of the backbone.

    Raises:
        CheckpointError: as :func:`convert_state_dict`.
    """
    layout, before = find_network(state_dict, prefix)
    to_ours = _renamer(layout)
    unknown: list[str] = []
    wrong: list[str] = []
    backbone: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if not name.startswith(before):
            # The head of a classifier is next to `backbone.`: `head.fc` in mmpretrain, `head` in our classifier,
            # `decoder.fc` in NVIDIA TAO.
            outer = before.removesuffix("backbone.")
            head = re.fullmatch(re.escape(outer) + r"(?:head\.(?:fc\.)?|decoder\.fc\.)(weight|bias)", name)
            if head and outer != before:
                backbone[f"head.{head[1]}"] = value
            else:
                others[name] = value
            continue
        plain = name[len(before) :].removesuffix(":0")
        if layout == "timm":
            plain = re.sub(r"^stages_(\d)\.", r"stages.\1.", plain)  # features_only models
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
        raise CheckpointError(f"unknown keys in a checkpoint of layout {layout!r}: {summarize(unknown, 20)}")
    if layout != "mmgcvit":
        backbone = _reorder(backbone, _heads_first, wrong)
    wrong += _impossible_shapes(backbone)
    if wrong:
        raise CheckpointError(f"impossible shapes in a checkpoint of layout {layout!r}: {summarize(wrong, 20)}")
    return Converted(layout, before, backbone, others)


def export_state_dict(backbone: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Convert our tensors to another publisher's names and shapes; the inverse of :func:`split_state_dict`.

    Args:
        backbone: as :attr:`Converted.backbone`.
        layout: one of :data:`WRITABLE`. With any of norm0 to norm2, 'nvidia' is the authors' detection layout
            (without the prefix ``backbone.``), otherwise their classification layout.

    Returns:
        The state dict, and our names that have no counterpart in the layout (timm has no norm0 to norm2).

    Raises:
        CheckpointError: the layout is unknown.
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
    """Row of the bias table for each pair of tokens, as stored in a buffer of the authors' models.

    Args:
        window: window side w, in tokens.

    Returns:
        (w^2, w^2) int64.
    """
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + window - 1) * (2 * window - 1) + (x[:, None] - x + window - 1)


@cache
def _renamer(layout: str) -> Callable[[str], str | None]:
    """Return a function that maps a layout's names to ours, and unknown names to None."""
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
            except KeyError:  # stage 0 has no downsampling
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
    """Whether this is a 1x1 convolution: our layout stores it as a matrix, the others as a 4-D tensor."""
    return ours.endswith(("pointwise.weight", "se.fc1.weight", "se.fc2.weight"))


def _reorder(backbone: Mapping[str, Tensor], order: Callable, wrong: list[str]) -> dict[str, Tensor]:
    """Reorder the rows of all qkv and kv projections; the number of heads is taken from the bias table."""
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
        parts = rows // channels  # 3: qkv, 2: kv
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
    """List tensors with the wrong number of axes, and bias tables that fit no window."""
    wrong = []
    for name, value in backbone.items():
        if not is_ours(name):  # added by a subclass
            continue
        axes = next(count for pattern, count in _AXES if re.fullmatch(pattern, name))
        if value.ndim != axes or 0 in value.shape or (name.endswith(TABLE) and not table_window(value)):
            wrong.append(f"{name} {tuple(value.shape)}")
    return wrong


# Former names, kept for one release
take_apart = split_state_dict
convert_back = export_state_dict
weights_of = unwrap_checkpoint
