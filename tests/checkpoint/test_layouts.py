"""Conversion of names and shapes between our layout and those of all publishers, in both directions."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY, randomise

from mmgcvit import GCViT
from mmgcvit.checkpoint import CheckpointError, convert_state_dict
from mmgcvit.checkpoint.layouts import export_state_dict, split_state_dict, unwrap_checkpoint
from mmgcvit.checkpoint.reader import read_checkpoint

LAYOUTS = ("nvidia", "nvidia-detection", "timm", "keras", "mmgcvit")


def bare(classifier) -> dict[str, torch.Tensor]:
    return {name.removeprefix("backbone."): value for name, value in classifier.state_dict().items()}


def assert_same(got: dict, wanted: dict) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype, name
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_converts_to_our_tensors(files, classifier, layout: str):
    if layout not in files:
        pytest.skip("h5py is not installed")
    found, state = convert_state_dict(read_checkpoint(files[layout]))
    assert found == layout
    wanted = bare(classifier)
    if layout == "nvidia-detection":
        others = {name for name in state if not name.startswith("backbone.")}
        assert others == {"neck.lateral_convs.0.conv.weight", "roi_head.bbox_head.fc_cls.weight"}
        state = {name.removeprefix("backbone."): v for name, v in state.items() if name not in others}
        assert {name for name in state if name.startswith("norm")} == {
            f"norm{i}.{p}" for i in range(4) for p in ("weight", "bias")
        }
        state = {name: value for name, value in state.items() if not name.startswith("norm")}
        wanted = {name: value for name, value in wanted.items() if not name.startswith(("norm", "head"))}
    assert_same(state, wanted)


@pytest.mark.parametrize("prefix", ["module.", "model.", "backbone.", "module.backbone.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", None])
def test_prefixes_and_wrappers(authors_dict, classifier, prefix: str, wrapper: str | None):
    state = {prefix + name: value for name, value in authors_dict.items()}
    layout, state = convert_state_dict({wrapper: state, "epoch": 3} if wrapper else state)
    assert layout == "nvidia"
    assert_same(state, bare(classifier))


@pytest.mark.parametrize("head", ["head", "head.fc"])
def test_head_beside_the_backbone(authors_dict, classifier, head: str):
    """For our and mmpretrain's classifiers."""
    state = {f"backbone.{name}" if not name.startswith("head.") else name.replace("head", head): value
             for name, value in authors_dict.items()}  # fmt: skip
    assert_same(convert_state_dict(state)[1], bare(classifier))


def test_averaged_weights(authors_dict):
    other = {name: value + 1 for name, value in authors_dict.items()}
    for checkpoint in (
        dict(state_dict=authors_dict, state_dict_ema=other),
        dict(state_dict=authors_dict, ema_state_dict=other | {"steps": torch.tensor(3)}),
    ):
        assert torch.equal(unwrap_checkpoint(checkpoint, ema=True)["norm.bias"], other["norm.bias"])
        assert torch.equal(unwrap_checkpoint(checkpoint)["norm.bias"], authors_dict["norm.bias"])
    with pytest.raises(CheckpointError, match=r"no averaged .EMA. weights: none of state_dict_ema"):
        unwrap_checkpoint(dict(state_dict=authors_dict), ema=True)


def test_round_trip(authors_dict, files):
    ours = split_state_dict(authors_dict).backbone
    theirs, left = export_state_dict(ours, "nvidia")
    assert not left
    assert_same(theirs, authors_dict)
    detection = read_checkpoint(files["nvidia-detection"])["state_dict"]
    converted = split_state_dict(detection)
    theirs, left = export_state_dict(converted.backbone, "nvidia")
    assert not left
    assert_same({f"backbone.{k}": v for k, v in theirs.items()} | converted.others, detection)
    # timm has one norm
    assert sorted(export_state_dict(converted.backbone, "timm")[1]) == [
        f"norm{i}.{p}" for i in range(4) for p in ("bias", "weight") if i < 3
    ]


@pytest.mark.parametrize("name", ["xxtiny", "xtiny", "tiny", "small", "base"])
def test_timm_round_trip(name: str):
    timm = pytest.importorskip("timm", minversion="1.0.31")
    model = randomise(timm.create_model(f"gcvit_{name}", num_classes=7))
    state = model.state_dict()
    layout, ours = convert_state_dict(state)
    assert layout == "timm"
    theirs, left = export_state_dict(ours, "timm")
    assert not left
    assert_same(theirs, dict(state))
    model.load_state_dict(theirs)


def test_unknown_keys_are_listed(authors_dict):
    with pytest.raises(CheckpointError, match=r"unknown keys .* 'nvidia': levels.0.blocks.0.attn.tau, prompt$"):
        convert_state_dict({**authors_dict, "levels.0.blocks.0.attn.tau": torch.ones(1), "prompt": torch.ones(1)})


@pytest.mark.parametrize(("name", "shape"), [
    ("levels.0.blocks.0.attn.qkv.weight", (40, 16)),
    ("levels.0.blocks.0.attn.relative_position_bias_table", (10, 1)),
    ("patch_embed.proj.weight", (16, 3)),
    ("norm.bias", (0,)),
    ("head.weight", (5,)),
])  # fmt: skip
def test_impossible_shapes_are_listed(authors_dict, name: str, shape: tuple):
    with pytest.raises(CheckpointError, match="impossible shapes in a checkpoint of layout 'nvidia'") as error:
        convert_state_dict({**authors_dict, name: torch.zeros(shape)})
    assert str(shape) in str(error.value)


def test_downsampling_without_a_stage(authors_dict):
    with pytest.raises(CheckpointError, match=r"unknown keys .* levels.3.downsample.norm1.weight"):
        convert_state_dict({**authors_dict, "levels.3.downsample.norm1.weight": torch.ones(128)})


def test_another_network():
    timm = pytest.importorskip("timm")
    with pytest.raises(CheckpointError, match=r"no GC ViT in this checkpoint; allowed: the layouts .*conv1.weight"):
        convert_state_dict(timm.create_model("resnet50").state_dict())


@pytest.mark.parametrize("nothing", [{}, {"epoch": 3}, [1], 3, {"state_dict": {}}])
def test_no_tensors(nothing: object):
    with pytest.raises(CheckpointError, match=r"contains no tensors|allowed: a dict of tensors"):
        convert_state_dict(nothing)


def test_two_networks(authors_dict):
    state = {f"{who}.{name}": value for who in ("teacher", "student") for name, value in authors_dict.items()}
    with pytest.raises(CheckpointError, match=r"2 networks .* give `prefix`: 'teacher.', 'student.'"):
        convert_state_dict(state)
    assert split_state_dict(state, "student.").prefix == "student."


def test_our_own_norms():
    state = GCViT(TINY).state_dict()
    layout, converted = convert_state_dict(state)
    assert layout == "mmgcvit"
    assert_same(converted, dict(state))


def test_timm_features_only_model():
    timm = pytest.importorskip("timm", minversion="1.0.31")
    model = randomise(timm.create_model("gcvit_xxtiny", features_only=True))
    layout, state = convert_state_dict(model.state_dict())
    assert layout == "timm"
    with torch.device("meta"):
        wanted = GCViT("xxtiny")
    assert {k for k in wanted.state_dict() if not k.startswith("norm")} <= state.keys()
