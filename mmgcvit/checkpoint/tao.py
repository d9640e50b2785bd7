"""NVIDIA TAO's DINO detectors with a GC ViT, and their conversion to mmdet's DINO.

TAO saves PyTorch Lightning checkpoints. The detector is under ``model.model.``, and its backbone, in the authors'
layout, under ``model.model.backbone.0.body.``. The settings of the detector are not in the file: most of them follow
from shapes, the others are TAO's defaults or come from its experiment file (:class:`TaoSettings`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmgcvit.backbone.arch import ARCHS
from mmgcvit.checkpoint.fit import InferredArch
from mmgcvit.checkpoint.layouts import Converted, find_network, split_state_dict
from mmgcvit.checkpoint.tao_settings import TaoSettings
from mmgcvit.compat import dino_coordinate_features
from mmgcvit.errors import CheckpointError
from mmgcvit.utils import summarize
from mmgcvit.utils.text import counted

MMDET_DINO = "mmdet-dino"
CHANNELS = 256  # of TAO's transformer: its encoding of boxes has 4 x 128 numbers, twice as many
_BODY = re.compile(r"backbone\.0\.(body\.)?$")
_ATTENTION = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_PARAMETERS = ("weight", "bias")
# Names of tensors that only other settings of TAO produce, and the setting.
_OTHER_SETTINGS = (
    (r"transformer\.encoder\.norm\.", "pre_norm=True"),
    (r"(transformer\.decoder\.layers\.\d+\.)?label_embedding\.", "decoder_sa_type='ca_label'"),
    (rf"transformer\.decoder\.layers\.\d+\.self_attn\.({'|'.join(_ATTENTION)})\.", "decoder_sa_type='ca_content'"),
    (r"(transformer\.)?(refpoint_embed|patterns)\.", "two_stage_type='no' or additional queries"),
    (r"transformer\.two_stage_wh_embedding\.", "two_stage_learn_wh=True"),
    (r"transformer\.pat_embed_for_2stage", "two_stage_pat_embed"),
    (r".*\.(norm_channel|activ_channel)\.", "add_channel_attention=True"),
)


@dataclass
class TaoDino:
    """A DINO of TAO, converted to mmdet's DINO.

    Args:
        state_dict: tensors under mmdet's names.
        model: what the ``model`` of the config has, as a delta over the DINO configs of this repository.
        backbone: the backbone, for :func:`~mmgcvit.checkpoint.fit.match_state_dict`.
        used: name in mmdet by name in TAO's file, for all tensors outside of the backbone.
        classes: names of the classes, if they are known.
        category_ids: TAO's class for each label.
        notes: what was left out, assumed, or differs.
    """

    state_dict: dict[str, Tensor]
    model: dict[str, Any]
    backbone: Converted
    used: dict[str, str]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    notes: list[str] = field(default_factory=list)


def find_tao_dino(state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the prefix of a DINO of TAO, e.g. ``model.model.``; None for anything else."""
    try:
        _, before = find_network(state_dict)
    except CheckpointError:
        return None
    prefix = _BODY.sub("", before)
    is_dino = prefix != before and f"{prefix}input_proj.0.0.weight" in state_dict
    return prefix if is_dino and f"{prefix}transformer.level_embed" in state_dict else None


def convert_tao_dino(
    state_dict: Mapping[str, Tensor],
    categories: Mapping[int, str] | None = None,
    keep_background: bool = False,
    settings: TaoSettings | None = None,
) -> TaoDino:
    """Convert a DINO of TAO to mmdet's DINO; every tensor of the file is used exactly once, or named in the notes.

    Args:
        state_dict: TAO's tensors.
        categories: names of the classes by TAO's class (the category id in its annotations), in the order of the
            labels. Default: classes 1, 2, ... become the labels 0, 1, ...; class 0 is TAO's background, which has no
            examples.
        keep_background: keep all classes, so that each label is TAO's class. Not with ``categories``.
        settings: default: TAO's defaults.

    Returns:
        The converted detector.

    Raises:
        CheckpointError: not a DINO of TAO; a tensor is unknown, missing or of another shape; or mmdet's DINO lacks a
            setting that the file was trained with.
    """
    prefix = find_tao_dino(state_dict)
    if prefix is None:
        raise CheckpointError(
            f"not a DINO of NVIDIA TAO with a GC ViT: {summarize(state_dict)}; allowed: names such as "
            "model.model.backbone.0.body.patch_embed.proj.weight and model.model.transformer.level_embed"
        )
    settings = settings or TaoSettings()
    converted = split_state_dict(state_dict)
    outside = [name for name in converted.others if not name.startswith(prefix)]
    theirs = {name[len(prefix) :]: value for name, value in converted.others.items() if name.startswith(prefix)}
    theirs, same = _drop_aliases(theirs)
    shape = _Shape.of(theirs, converted, settings)
    names = dict(_names(shape))
    unknown = [*outside, *(name for name in theirs if name not in names)]
    missing = [name for name in names if name not in theirs]
    if unknown or missing:
        raise CheckpointError(_mismatch(unknown, missing))

    state = {ours: theirs[name] for name, ours in names.items()}
    notes = [f"{counted(len(state), 'tensor')} of the neck, the transformer and the heads: converted to mmdet's DINO"]
    if same:
        notes.append(f"left out: {counted(same, 'tensor')} of transformer.decoder, equal to those of the heads")
    constants = len(state_dict) - len(converted.backbone) - len(converted.others)
    if constants:
        notes.append(f"left out: {constants} constants of the backbone, which are computed: relative_position_index")
    ids, classes = _labels(shape.num_classes, categories, keep_background, notes)
    _select_classes(state, ids, shape)
    _widen(state, dino_coordinate_features(CHANNELS))
    backbone = _select_norms(converted, shape, notes)
    state = {f"backbone.{name}": value for name, value in backbone.items()} | state
    notes += [
        f"assumed: {settings.nheads} heads, temperature {settings.temperature} (TAO's defaults unless --spec is given)",
        "differences: mmdet clips boxes at 0.001 of the image between the layers of its decoder, TAO at 0.00001; see "
        "docs/tao.md",
    ]
    model = _model(shape, InferredArch.of(converted.backbone), settings, len(ids))
    own = Converted(converted.layout, converted.prefix, backbone)
    return TaoDino(state, model, own, names, classes, tuple(ids), notes)


@dataclass(frozen=True)
class _Shape:
    """Numbers of a DINO of TAO, inferred from the shapes of its tensors."""

    stages: tuple[int, ...]  # of the backbone's maps
    in_channels: tuple[int, ...]
    levels: int
    encoder_layers: int
    decoder_layers: int
    encoder_points: int
    decoder_points: int
    encoder_width: int
    decoder_width: int
    num_queries: int
    num_classes: int

    @classmethod
    def of(cls, theirs: Mapping[str, Tensor], converted: Converted, settings: TaoSettings) -> _Shape:
        def get(name: str, axes: int) -> Tensor:
            if name not in theirs:
                raise CheckpointError(_mismatch([name for name in theirs if _setting(name)], [name]))
            if theirs[name].ndim != axes:
                raise CheckpointError(f"{name} {tuple(theirs[name].shape)}; allowed: {axes} axes")
            return theirs[name]

        def count(pattern: str) -> int:
            # gaps between the numbers show up as missing tensors
            return len({match[1] for name in theirs if (match := re.match(pattern, name))})

        levels, channels = get("transformer.level_embed", 2).shape
        if channels != CHANNELS:
            raise CheckpointError(
                f"a transformer of {counted(channels, 'channel')} (hidden_dim); allowed: {CHANNELS}, as in TAO"
            )
        if not levels:
            raise CheckpointError("transformer.level_embed has no levels; allowed: one or more")
        embed_dims = InferredArch.of(converted.backbone).embed_dims
        stages, inputs = [], []
        for i in range(count(r"input_proj\.(\d+)\.")):
            weight = get(f"input_proj.{i}.0.weight", 4)
            if weight.shape[-1] != 1:
                break  # the others downsample the last map
            inputs.append(weight.shape[1])
            stages.append((weight.shape[1] // max(embed_dims, 1)).bit_length() - 1)
        if [embed_dims * 2 ** max(i, 0) for i in stages] != inputs or not inputs:
            raise CheckpointError(f"input_proj has {inputs} channels; allowed: those of maps of a GC ViT-{embed_dims}")

        def points(part: str, attention: str) -> int:
            rows = len(get(f"transformer.{part}.layers.0.{attention}.attention_weights.bias", 1))
            if rows % (settings.nheads * levels):
                raise CheckpointError(
                    f"{part}: {rows} attention weights for {settings.nheads} heads and {levels} levels; allowed: a "
                    "multiple of their product. The number of heads (nheads) is in TAO's experiment file"
                )
            return rows // (settings.nheads * levels)

        return cls(
            tuple(stages),
            tuple(inputs),
            levels,
            encoder_layers=count(r"transformer\.encoder\.layers\.(\d+)\."),
            decoder_layers=count(r"transformer\.decoder\.layers\.(\d+)\."),
            encoder_points=points("encoder", "self_attn"),
            decoder_points=points("decoder", "cross_attn"),
            encoder_width=len(get("transformer.encoder.layers.0.linear1.bias", 1)),
            decoder_width=len(get("transformer.decoder.layers.0.linear1.bias", 1)),
            num_queries=len(get("transformer.tgt_embed.weight", 2)),
            num_classes=len(get("class_embed.0.bias", 1)),
        )


def _names(shape: _Shape) -> Iterator[tuple[str, str]]:
    """All names of a DINO of TAO outside of the backbone, each with the one in mmdet."""
    yield "transformer.level_embed", "level_embed"
    yield "transformer.tgt_embed.weight", "query_embedding.weight"
    yield "label_enc.weight", "dn_query_generator.label_embedding.weight"
    for name in ("in_proj_weight", "in_proj_bias"):
        for i in range(shape.decoder_layers):
            yield f"transformer.decoder.layers.{i}.self_attn.{name}", f"decoder.layers.{i}.self_attn.attn.{name}"
    for theirs, ours in _modules(shape):
        for name in _PARAMETERS:
            yield f"{theirs}.{name}", f"{ours}.{name}"


def _modules(shape: _Shape) -> Iterator[tuple[str, str]]:
    """The layers with a weight and a bias: their names in TAO and in mmdet."""
    maps = len(shape.stages)
    for i in range(shape.levels):
        level = f"neck.convs.{i}" if i < maps else f"neck.extra_convs.{i - maps}"
        yield f"input_proj.{i}.0", f"{level}.conv"
        yield f"input_proj.{i}.1", f"{level}.gn"
    yield "transformer.enc_output", "memory_trans_fc"
    yield "transformer.enc_output_norm", "memory_trans_norm"
    for i in range(shape.encoder_layers):
        theirs, ours = f"transformer.encoder.layers.{i}", f"encoder.layers.{i}"
        yield from ((f"{theirs}.self_attn.{part}", f"{ours}.self_attn.{part}") for part in _ATTENTION)
        yield from _feed_forward(theirs, ours)
        yield from ((f"{theirs}.norm{k + 1}", f"{ours}.norms.{k}") for k in range(2))
    for i in range(shape.decoder_layers):
        theirs, ours = f"transformer.decoder.layers.{i}", f"decoder.layers.{i}"
        yield f"{theirs}.self_attn.out_proj", f"{ours}.self_attn.attn.out_proj"
        yield from ((f"{theirs}.cross_attn.{part}", f"{ours}.cross_attn.{part}") for part in _ATTENTION)
        yield from _feed_forward(theirs, ours)
        # TAO counts the norm after cross-attention first, although self-attention comes first
        yield from ((f"{theirs}.norm{k}", f"{ours}.norms.{j}") for j, k in enumerate((2, 1, 3)))
        yield f"class_embed.{i}", f"bbox_head.cls_branches.{i}"
        yield from _box_layers(f"bbox_embed.{i}", f"bbox_head.reg_branches.{i}")
    last = shape.decoder_layers  # of the queries that the encoder proposes
    yield "transformer.enc_out_class_embed", f"bbox_head.cls_branches.{last}"
    yield from _box_layers("transformer.enc_out_bbox_embed", f"bbox_head.reg_branches.{last}")
    yield "transformer.decoder.norm", "decoder.norm"
    for k in range(2):
        yield f"transformer.decoder.ref_point_head.layers.{k}", f"decoder.ref_point_head.layers.{k}"


def _feed_forward(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.linear1", f"{ours}.ffn.layers.0.0"
    yield f"{theirs}.linear2", f"{ours}.ffn.layers.1"


def _box_layers(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    """Three linear layers; in mmdet with activations between them."""
    yield from ((f"{theirs}.layers.{k}", f"{ours}.{2 * k}") for k in range(3))


def _drop_aliases(theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Remove the heads' second names, under ``transformer.decoder.``; return the others, and how many there were."""
    kept = {}
    for name, value in theirs.items():
        first = re.sub(r"^transformer\.decoder\.(?=(class|bbox)_embed\.)", "", name)
        if first == name:
            kept[name] = value
        elif first not in theirs or value.dtype != theirs[first].dtype or not torch.equal(value, theirs[first]):
            raise CheckpointError(f"{name} differs from {first}; allowed: the same tensor, as TAO saves one twice")
    return kept, len(theirs) - len(kept)


def _setting(name: str) -> str:
    """The setting of TAO that a tensor belongs to, if mmdet's DINO does not have it; otherwise ''."""
    return next((setting for pattern, setting in _OTHER_SETTINGS if re.match(pattern, name)), "")


def _mismatch(unknown: Sequence[str], missing: Sequence[str]) -> str:
    settings = sorted({setting for name in unknown if (setting := _setting(name))})
    parts = []
    if unknown:
        parts.append(
            f"{counted(len(unknown), 'tensor has', 'tensors have')} no counterpart in mmdet's DINO: "
            f"{summarize(unknown, 20)}"
        )
    if missing:
        parts.append(f"{counted(len(missing), 'tensor is', 'tensors are')} missing: {summarize(missing, 20)}")
    if settings:
        parts.append(f"trained with settings of TAO that mmdet's DINO does not have: {', '.join(settings)}")
    return f"DINO of NVIDIA TAO: {'; '.join(parts)}. The backbone alone loads by load_pretrained or init_cfg"


def _labels(
    num_classes: int, categories: Mapping[int, str] | None, keep_background: bool, notes: list[str]
) -> tuple[list[int], tuple[str, ...]]:
    """TAO's class for each label, and the names of the classes, if they are known."""
    if categories is not None:
        if keep_background:
            raise CheckpointError("categories and keep_background: allowed: one of them")
        wrong = [i for i in categories if not 0 <= i < num_classes]
        if wrong:
            raise CheckpointError(f"category ids {summarize(wrong)}; allowed: 0 to {num_classes - 1}, TAO's classes")
        left = [i for i in range(num_classes) if i not in categories]
        notes.append(f"classes: {len(categories)} of TAO's {num_classes}, in the order of the categories")
        if left:
            notes.append(f"left out: TAO's classes {summarize(left)}, which are no categories")
        return list(categories), tuple(categories.values())
    if keep_background:
        notes.append(f"classes: all {num_classes} of TAO, with its background as label 0: label = category id")
        return list(range(num_classes)), ()
    if num_classes < 2:
        raise CheckpointError("one class, which is TAO's background; allowed: two or more, or keep_background")
    notes += [
        f"classes: {num_classes - 1} of TAO's {num_classes}; label = category id - 1. Names: --categories "
        "annotations.json" + (", also for the 80 classes of COCO" if num_classes == 91 else ""),
        "left out: TAO's class 0, its background, which has no examples",
    ]
    return list(range(1, num_classes)), ()


def _select_classes(state: dict[str, Tensor], ids: Sequence[int], shape: _Shape) -> None:
    """Keep the rows of the classes ``ids`` in the heads and in the embedding of labels for denoising."""
    labels = "dn_query_generator.label_embedding.weight"
    heads = [name for name in state if name.startswith("bbox_head.cls_branches.")]
    for name, rows in {labels: shape.num_classes + 1, **dict.fromkeys(heads, shape.num_classes)}.items():
        if state[name].shape[:1] != (rows,):  # TAO's last row of label_enc is for padding
            raise CheckpointError(
                f"{name} {tuple(state[name].shape)}; allowed for {counted(shape.num_classes, 'class')}: {rows} rows"
            )
        state[name] = state[name][list(ids)]


def _widen(state: dict[str, Tensor], features: int) -> None:
    """Adapt the layer after the encoding of boxes to the number of features that mmdet has for each coordinate.

    TAO, as mmdet 3.3, has 128. OneDL's mmdet has 256, of which every second pair of a sine and a cosine has one of
    TAO's frequencies: the weights of the others are 0, and the results are the same.
    """
    name, theirs = "decoder.ref_point_head.layers.0.weight", CHANNELS // 2
    weight = state[name]
    if weight.shape != (CHANNELS, 4 * theirs):
        raise CheckpointError(f"{name} {tuple(weight.shape)}; allowed: {(CHANNELS, 4 * theirs)}")
    if features == theirs:
        return
    if features != 2 * theirs:
        raise CheckpointError(
            f"mmdet encodes a coordinate in {counted(features, 'number')}; allowed: {theirs}, {2 * theirs}"
        )
    wide = weight.new_zeros(CHANNELS, 4, theirs // 2, 2, 2)  # coordinate, TAO's frequency, used or not, sine or cosine
    wide[:, :, :, 0] = weight.reshape(CHANNELS, 4, theirs // 2, 2)
    state[name] = wide.reshape(CHANNELS, 4 * features)


def _select_norms(converted: Converted, shape: _Shape, notes: list[str]) -> dict[str, Tensor]:
    """The backbone without the norms of maps that the detector does not use, and without a head."""
    norms = {f"norm{i}.{name}" for i in shape.stages for name in _PARAMETERS}
    if missing := sorted(norms - converted.backbone.keys()):
        raise CheckpointError(
            f"the backbone has no {summarize(missing)}: the norm of each map that the detector uses; "
            f"allowed: the names {summarize(sorted(norms))} under {converted.prefix!r}"
        )
    last = max(shape.stages)
    unused = [
        name
        for name in converted.backbone
        if (re.match(r"norm\d\.|head\.", name) and name not in norms)
        or ((stage := re.match(r"stages\.(\d)\.", name)) and int(stage[1]) > last)
    ]
    if unused:
        notes.append(f"left out: {summarize(unused)} of the backbone, which the detector does not use")
    return {name: value for name, value in converted.backbone.items() if name not in unused}


def _model(shape: _Shape, arch: InferredArch, settings: TaoSettings, num_classes: int) -> dict[str, Any]:
    """The ``model`` of the config, as a delta over the DINO configs of this repository."""
    custom = dict(
        _delete_=True,
        embed_dims=arch.embed_dims,
        depths=arch.depths,
        num_heads=arch.num_heads,
        mlp_ratio=arch.mlp_ratio,
        layer_scale=1e-5 if arch.layer_scale else None,
    )
    backbone: dict[str, Any] = dict(arch=arch.archs[0] if arch.archs else custom)
    if not arch.archs or arch.windows != ARCHS[arch.archs[0]]["window_size"]:
        backbone["window_size"] = arch.windows
    same = len(set(arch.windows)) == 1  # as in the authors' detectors
    backbone |= dict(pad="window", global_query_reductions=(3, 2, 1, 0) if same else (3, 2, 0, 0),
                     out_indices=shape.stages, init_cfg=None)  # fmt: skip

    def attention(points: int) -> dict[str, Any]:
        return dict(num_heads=settings.nheads, num_levels=shape.levels, num_points=points)

    encoder = dict(
        self_attn_cfg=attention(shape.encoder_points), ffn_cfg=dict(feedforward_channels=shape.encoder_width)
    )
    decoder = dict(
        self_attn_cfg=dict(num_heads=settings.nheads),
        cross_attn_cfg=attention(shape.decoder_points),
        ffn_cfg=dict(feedforward_channels=shape.decoder_width),
    )
    return dict(
        num_queries=shape.num_queries,
        num_feature_levels=shape.levels,
        data_preprocessor=dict(
            mean=[round(255 * value, 6) for value in settings.mean],
            std=[round(255 * value, 6) for value in settings.std],
        ),
        backbone=backbone,
        # TAO's convolutions have a bias, although a norm follows
        neck=dict(in_channels=list(shape.in_channels), num_outs=shape.levels, bias=True),
        encoder=dict(num_layers=shape.encoder_layers, layer_cfg=encoder),
        decoder=dict(num_layers=shape.decoder_layers, layer_cfg=decoder),
        positional_encoding=dict(temperature=settings.temperature),
        bbox_head=dict(num_classes=num_classes),
        test_cfg=dict(max_per_img=min(settings.num_select, shape.num_queries * num_classes)),
    )
