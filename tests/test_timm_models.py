"""mmgcvit.timm: the models behave as timm's own, by the checks that timm makes of its models, at any input size."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from mmengine.logging import HistoryBuffer
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

import mmgcvit.timm as registered
from mmgcvit.backbone.arch import ARCHS
from mmgcvit.checkpoint.weights import WEIGHTS
from mmgcvit.errors import CheckpointError

TINY = dict(arch=dict(embed_dims=8, depths=(2, 1, 2, 2), num_heads=(1, 1, 2, 2)), window_size=(4, 4, 4, 2))
NAME = "gcvit_xxtiny_any"


def tiny(**kwargs):
    torch.manual_seed(0)
    return timm.create_model(NAME, **TINY, **kwargs)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(1)
    return timm.create_model("gcvit_xxtiny").eval()


@pytest.fixture(scope="module")
def file(theirs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timm") / "gcvit_xxtiny.pth"
    torch.save(theirs.state_dict(), path)
    return path


def test_every_variant_is_registered():
    assert tuple(f"gcvit_{arch.replace('-', '_')}_any" for arch in ARCHS) == registered.MODELS
    assert set(registered.MODELS) == set(timm.list_models("gcvit_*_any"))
    assert all(timm.is_model_pretrained(name) for name in registered.MODELS)


def test_pretrained_names_lead_to_the_published_files():
    names = timm.list_models("gcvit_*_any*", pretrained=True)
    configs = [timm.get_pretrained_cfg(name) for name in names]
    assert sorted(config.file for config in configs) == sorted(WEIGHTS)
    for config in configs:
        weights = WEIGHTS[config.file]
        assert (config.input_size, config.crop_pct) == ((3, weights.input_size, weights.input_size), weights.crop)
        assert config.custom_load
        assert config.license == "cc-by-nc-sa-4.0"
    assert timm.get_pretrained_cfg("gcvit_tiny_any").file == "timm://gcvit_tiny.in1k"
    assert timm.get_pretrained_cfg("gcvit_large_512_any").crop_mode == "squash"


def test_logits_and_features_equal_those_of_timms_model(theirs, file: Path):
    ours = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(file))).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=2e-5, rtol=1e-4)
        maps = [model.forward_intermediates(x, intermediates_only=True) for model in (ours, theirs)]
    for a, b in zip(*maps, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert ours.feature_info == [
        {**info, "module": f"backbone.{info['module']}"} for info in theirs.feature_info
    ]  # channels and reductions


def test_pretrained_weights_with_other_classes_and_channels(theirs, file: Path):
    overlay = dict(file=str(file))
    model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1)
    stem = theirs.state_dict()["stem.conv1.weight"]
    torch.testing.assert_close(model.backbone.stem.conv.weight, stem.sum(1, keepdim=True))
    assert model(torch.randn(2, 1, 40, 72)).shape == (2, 5)
    features = timm.create_model(
        NAME, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, out_indices=(0, 1)
    )
    blocks = features.model.backbone.stages[0].blocks
    torch.testing.assert_close(blocks[1].mlp.fc1.weight, theirs.stages[0].blocks[1].mlp.fc1.weight)


def test_checkpoints_of_runs_are_read_from_a_file(tmp_path: Path):
    """timm's own reader refuses the objects of mmengine in them."""
    source = tiny(num_classes=3).eval()
    torch.nn.init.normal_(source.head.fc.bias)
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": source.state_dict(), "message_hub": {"loss": HistoryBuffer([1.0], [1])}}, path)
    model = tiny(num_classes=3, pretrained=True, pretrained_cfg_overlay=dict(file=str(path))).eval()
    x = torch.randn(2, 3, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(model(x), source(x))
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        tiny(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "none.pth")))


def test_weights_of_another_variant_are_refused(file: Path):
    with pytest.raises(CheckpointError, match="xxtiny"):
        timm.create_model("gcvit_xtiny_any", pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))


def test_state_dicts_of_timms_models_are_converted(theirs):
    model = timm.create_model(NAME)
    model.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(model.head.fc.weight, theirs.head.fc.weight)


@pytest.mark.parametrize("size", [(64, 64), (97, 131)])
def test_forward_and_backward(size: tuple[int, int]):
    model = tiny(num_classes=7, drop_path_rate=0.1, drop_rate=0.1, proj_drop_rate=0.1, attn_drop_rate=0.1)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    logits.mean().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_drop_path_rate_is_zero_unless_given():
    rates = [block.drop_path_rate for stage in timm.create_model(NAME).backbone.stages for block in stage.blocks]
    assert set(rates) == {0.0}
    assert tiny(drop_path_rate=0.3).backbone.stages[-1].blocks[-1].drop_path_rate == pytest.approx(0.3)


def test_classifier_can_be_removed_and_replaced():
    model = tiny().eval()
    x = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.shape == (2, model.num_features, 2, 3)
        pooled = model.forward_head(maps, pre_logits=True)
        torch.testing.assert_close(pooled, maps.mean((2, 3)))
        torch.testing.assert_close(model.get_classifier()(pooled), model(x))
        model.reset_classifier(0)
        torch.testing.assert_close(model(x), pooled)
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(x), maps)
        model.reset_classifier(11, "avgmax")
        assert model(x).shape == (2, 11)
    assert not model.head.training
    assert tiny(num_classes=0)(x).shape == (2, 64)
    assert tiny(num_classes=0, global_pool="")(x).shape == (2, 64, 2, 3)


def test_names_in_the_pretrained_config_exist():
    model = tiny()
    config = model.pretrained_cfg
    assert f"{config['classifier']}.weight" in model.state_dict()
    assert f"{config['first_conv']}.weight" in model.state_dict()
    assert config["input_size"] == (3, 224, 224)
    assert not config["fixed_input_size"]


@pytest.mark.parametrize("indices", [None, (0, 1, 2, 3), (1, 3), (-2, -1), (0, 1)])
def test_features_only(indices: tuple[int, ...] | None):
    model = tiny(features_only=True, **({} if indices is None else dict(out_indices=indices))).eval()
    height, width = 75, 110
    with torch.no_grad():
        maps = model(torch.randn(2, 3, height, width))
    info = model.feature_info
    assert len(maps) == len(info.channels()) == (4 if indices is None else len(indices))
    for y, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
        assert y.shape == (2, channels, -(-height // stride), -(-width // stride))
    # stages that no map needs are not built
    assert len(model.model.backbone.stages) == (2 if indices == (0, 1) else 4)


def test_features_only_trains_every_parameter():
    model = tiny(features_only=True, out_indices=(1, 2))
    sum(y.square().mean() for y in model(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("feature_cls", ["fx", "hook", "list", "dict", timm.models.FeatureHookNet])
def test_other_feature_classes_are_refused(feature_cls: object):
    with pytest.raises(ValueError, match=r"feature_cls=.*; allowed: 'getter'"):
        tiny(features_only=True, feature_cls=feature_cls)
    assert tiny(features_only=True, feature_cls="getter").feature_info.channels() == [8, 16, 32, 64]


def test_tracing_by_fx_is_refused():
    model = tiny()
    nodes = [info["module"] for info in model.feature_info]
    for trace in (torch.fx.symbolic_trace, lambda model: timm.models.create_feature_extractor(model, nodes)):
        with pytest.raises(TypeError, match=r"cannot be traced by torch\.fx.*allowed: torch\.export"):
            trace(model)


def test_forward_intermediates():
    model = tiny().eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert len(maps) == 4
        torch.testing.assert_close(last, model.forward_features(x))
        torch.testing.assert_close(last, maps[-1])
        last, two = model.forward_intermediates(x, 2)
        torch.testing.assert_close(two, maps[2:])
        last, picked = model.forward_intermediates(x, (2, 0), stop_early=True)
        torch.testing.assert_close(picked, [maps[2], maps[0]])
        torch.testing.assert_close(last, maps[2])
        (nhwc,) = model.forward_intermediates(x, [1], output_fmt="NHWC", intermediates_only=True)
        torch.testing.assert_close(nhwc, maps[1].permute(0, 2, 3, 1))
    for indices in (0, 5, (), (4,), (-5,)):
        with pytest.raises(ValueError, match=r"indices=.*allowed: 1 to 4, or stages from -4 to 3"):
            model.forward_intermediates(x, indices)
    with pytest.raises(ValueError, match=r"output_fmt='NLC'; allowed: 'NCHW', 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_gradient_checkpointing_changes_no_gradient():
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model = tiny()
        model.set_grad_checkpointing(enable)
        assert all(stage.with_cp == enable for stage in model.backbone.stages)
        model(x).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_layer_decay_groups():
    model = tiny()
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert scale.keys() == {id(p) for p in parameters.values()}

    def rate(name: str) -> float:
        return scale[id(parameters[name])]

    names = [f"backbone.stages.{i}.blocks.{j}.mlp.fc1.weight" for i, n in enumerate((2, 1, 2, 2)) for j in range(n)]
    rates = [rate("backbone.stem.conv.weight"), *map(rate, names)]
    assert rates == sorted(set(rates))
    assert rate("head.fc.weight") == 1
    assert rate("backbone.norm3.weight") == rates[-1]  # as in our own layer decay, the norm belongs to the last block
    assert rate("backbone.stages.1.downsample.norm1.weight") == rates[3]  # and the downsampling to the first one
    tables = [name for name in parameters if name.endswith("relative_position_bias_table")]
    assert len(tables) == 7
    assert {decay[id(parameters[name])] for name in tables} == {0.0}
    assert decay[id(parameters["head.fc.weight"])] == 0.05


def test_weight_decay_groups():
    model = tiny()
    plain, decayed = param_groups_weight_decay(model, 0.05, model.no_weight_decay())
    assert len(plain["params"]) + len(decayed["params"]) == len(list(model.parameters()))


@pytest.mark.slow
def test_torch_export_with_any_batch_size():
    model = tiny().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (torch.randn(3, 3, 64, 80),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 64, 80)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-4)


def test_another_device_and_dtype():
    model = tiny(num_classes=3).to(torch.float64)
    assert model(torch.randn(2, 3, 33, 47, dtype=torch.float64)).dtype == torch.float64
    model.reset_classifier(4)
    assert model.head.fc.weight.dtype == torch.float64
