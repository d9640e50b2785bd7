"""Layer-wise learning-rate decay."""

from __future__ import annotations

import pytest
from conftest import TINY
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmgcvit import GCViT


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = GCViT({**TINY, "depths": (1, 2, 3, 2)})
        self.head = nn.Linear(4, 4)


def groups(model: nn.Module, **paramwise) -> dict[str, tuple[float, float]]:
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type="AdamW", lr=0.1, weight_decay=0.5),
            constructor="GCViTLayerDecayOptimWrapperConstructor",
            paramwise_cfg=paramwise,
        ),
    )
    found = {}
    names = {id(p): n for n, p in model.named_parameters()}
    for group in wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) in names
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


def test_learning_rates_and_weight_decays():
    model = Model()
    got = groups(model, layer_decay_rate=0.5)
    assert got.keys() == {n for n, _ in model.named_parameters()}
    layers = {
        "head.weight": 9, "backbone.norm3.weight": 8, "backbone.stages.3.blocks.1.mlp.fc1.weight": 8,
        "backbone.stages.3.blocks.0.attn.qkv.weight": 7, "backbone.stages.3.query.mbconvs.0.depthwise.weight": 7,
        "backbone.stages.3.downsample.reduction.weight": 7, "backbone.stages.2.blocks.2.attn.proj.weight": 6,
        "backbone.norm2.bias": 6, "backbone.norm0.weight": 1, "backbone.stages.0.blocks.0.gamma1": 1,
        "backbone.stem.conv.weight": 0,
    }  # fmt: skip
    for name, layer in layers.items():
        assert got[name][0] == pytest.approx(0.1 * 0.5 ** (9 - layer)), name
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or name.endswith("bias_table")
        assert got[name][1] == (0 if spared else 0.5), name


def test_multipliers_and_frozen_parameters():
    model = Model()
    model.backbone.stem.requires_grad_(False)
    got = groups(model, layer_decay_rate=1, norm_decay_mult=0.1, bias_decay_mult=0.2, table_decay_mult=0.4)
    assert got["backbone.norm0.bias"] == (0.1, 0.05)
    assert got["head.bias"] == (0.1, 0.1)
    assert got["backbone.stages.0.blocks.0.attn.relative_position_bias_table"] == (0.1, 0.2)
    assert not any(name.startswith("backbone.stem") for name in got)


def test_embeddings():
    model = Model()
    model.queries = nn.Embedding(3, 4)
    assert groups(model, layer_decay_rate=1)["queries.weight"] == (0.1, 0.5)
    assert groups(model, layer_decay_rate=1, embedding_decay_mult=0)["queries.weight"] == (0.1, 0)


@pytest.mark.parametrize(("paramwise", "message"), [
    (dict(), r"layer_decay_rate=None; allowed: a number above 0, at most 1"),
    (dict(layer_decay_rate=0), r"layer_decay_rate=0; allowed"),
    (dict(layer_decay_rate=1.1), r"layer_decay_rate=1.1; allowed"),
    (dict(layer_decay_rate=0.9, custom_keys=dict()), r"unknown keys \['custom_keys'\]; allowed: layer_decay"),
    (dict(layer_decay_rate=0.9, norm_decay_mult="no"), r"norm_decay_mult='no'; allowed: a number"),
])  # fmt: skip
def test_bad_arguments(paramwise: dict, message: str):
    with pytest.raises(ValueError, match=message):
        groups(Model(), **paramwise)


def test_models_without_a_gc_vit():
    with pytest.raises(ValueError, match=r"model: 0 GCViT in a Linear; allowed: one"):
        groups(nn.Linear(2, 2), layer_decay_rate=0.9)


def test_depths_of_a_bare_backbone():
    model = GCViT(TINY)
    depths = {model.get_layer_depth(name) for name, _ in model.named_parameters()}
    assert depths == {(layer, 10) for layer in range(9)}
    assert model.get_layer_depth("neck.weight", "backbone.") == (9, 10)
