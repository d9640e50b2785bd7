"""Loading into backbones by every supported method."""

from __future__ import annotations

import copy

import pytest
import torch
from checkpoint_fixtures import Detector, assert_loaded, unchanged
from conftest import TINY, randomise, relative_error
from torch import nn

from mmgcvit import GCViT, GCViTClassifier, load_pretrained
from mmgcvit.checkpoint import CheckpointError
from mmgcvit.checkpoint.layouts import TABLE

LAYOUTS = ("nvidia", "nvidia-detection", "timm", "keras", "mmgcvit")


@pytest.fixture(params=LAYOUTS)
def file(request, files):
    if request.param not in files:
        pytest.skip("h5py is not installed")
    return files[request.param]


@pytest.mark.parametrize("whole", [False, True])
def test_load_pretrained(file, classifier, whole: bool):
    model = Detector() if whole else GCViT(TINY)
    backbone = model.backbone if whole else model
    report = load_pretrained(model, file)
    assert_loaded(backbone, classifier)
    assert (len(report.loaded), report.resized, report.adapted) == (
        194 if "detection" in file.name else 188, {}, {})  # fmt: skip
    if "detection" in file.name:
        assert report.left_in_file == ["neck.lateral_convs.0.conv.weight", "roi_head.bbox_head.fc_cls.weight"]
        assert report.left_initial == []
    else:
        assert sorted(report.left_in_file) == ["head.bias", "head.weight"]
        assert {name.split(".")[0] for name in report.left_initial} == {"norm0", "norm1", "norm2"}
        assert torch.equal(backbone.norm3.weight, classifier.backbone.norm3.weight)
        assert "left at initial values: 6 tensors (norm0, norm1, norm2)" in str(report)
        assert "left in the file: 2 tensors (head)" in str(report)


@pytest.mark.parametrize("layout", ["nvidia", "timm", "keras", "mmgcvit"])
def test_head_of_a_classifier(files, classifier, layout: str):
    if layout not in files:
        pytest.skip("h5py is not installed")
    model = GCViTClassifier(dict(arch=TINY), num_classes=5).eval()
    assert load_pretrained(model, files[layout]).is_exact
    images = torch.randn(3, 3, 64, 96)
    assert torch.equal(model(images), classifier(images))
    other = GCViTClassifier(dict(arch=TINY), num_classes=4)
    before = other.head.weight.clone()
    report = load_pretrained(other, files[layout])
    assert torch.equal(other.head.weight, before)
    assert report.notes == ["head: 5 classes of 128 channels in the file, 4 of 128 in the model: skipped"]


def test_head_with_21841_classes(classifier, tmp_path):
    model = randomise(GCViTClassifier(dict(arch=TINY), num_classes=21841))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "21k.pth")
    got = GCViTClassifier(dict(arch=TINY), num_classes=21841)
    assert load_pretrained(got, tmp_path / "21k.pth").is_exact
    assert torch.equal(got.head.weight, model.head.weight)


@pytest.mark.parametrize("whole", [False, True])
def test_load_state_dict_of_a_foreign_dict(authors_dict, classifier, logged, whole: bool):
    model = Detector() if whole else GCViT(TINY)
    state = authors_dict
    if whole:
        neck = {f"neck.{k}": v for k, v in model.neck.state_dict().items()}
        state = {f"backbone.{k}": v for k, v in state.items()} | neck
    model.load_state_dict(state)  # strict
    assert_loaded(model.backbone if whole else model, classifier)
    (message,) = [m for m in logged if "weights from a state dict (layout nvidia" in m]
    assert "left at initial values: 6 tensors (norm0, norm1, norm2)" in message


def test_init_cfg(file, classifier):
    model = GCViT(TINY, init_cfg=dict(type="Pretrained", checkpoint=str(file)))
    model.init_weights()
    assert_loaded(model, classifier)
    assert model.init_cfg["checkpoint"] == str(file)


def test_init_cfg_executes_nothing_and_raises(tmp_path, files):
    from test_reader import Evil

    evil = {"state_dict": {"stem.conv.weight": torch.ones(1)}, "args": Evil(tmp_path / "ran")}
    torch.save(evil, tmp_path / "evil.pth")
    for checkpoint, message in (
        ("absent.pth", "no such file"),
        ("gcvit://huge", "allowed: gcvit://xxtiny"),
        (str(tmp_path / "evil.pth"), "refused"),
    ):
        model = GCViT(TINY, init_cfg=dict(type="Pretrained", checkpoint=checkpoint))
        for _ in range(2):  # the second call tries again
            with pytest.raises(CheckpointError, match=message):
                model.init_weights()
        assert model.init_cfg["checkpoint"] == checkpoint
    assert not (tmp_path / "ran").exists()
    model = GCViT(TINY, init_cfg=[dict(type="Pretrained", checkpoint=str(files["nvidia"]), prefix="model.")])
    with pytest.raises(CheckpointError, match=r"no GC ViT in this checkpoint under 'model.'"):
        model.init_weights()


def test_own_state_dict_is_validated_by_torch(logged):
    """Missing and unexpected keys are errors only in a strict load, as in torch."""
    model, other = GCViT(TINY), randomise(GCViT(TINY))
    state = other.state_dict()
    model.load_state_dict(state)
    for name, value in state.items():
        assert torch.equal(model.state_dict()[name], value)
    assert logged == []
    fewer = {k: v for k, v in state.items() if not k.startswith("norm0")}
    with pytest.raises(RuntimeError, match=r"Missing key.*norm0.weight"):
        model.load_state_dict(fewer)
    model.load_state_dict(fewer, strict=False)
    assert any("left at initial values: 2 tensors (norm0)" in m for m in logged)
    # a strict load reports the head in the state dict of a classifier
    with pytest.raises(RuntimeError, match=r"Unexpected key.*head.weight"):
        model.load_state_dict(state | {"head.weight": torch.zeros(5, 128), "head.bias": torch.zeros(5)})


def test_subclass_with_more_parameters(classifier):
    class Prompted(GCViT):
        def __init__(self, **kwargs) -> None:
            super().__init__(**kwargs)
            self.prompt = nn.Parameter(torch.zeros(3))

    model, other = Prompted(arch=TINY), randomise(Prompted(arch=TINY))
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.prompt, other.prompt)
    model.load_state_dict({f"module.{k}": v + 1 for k, v in other.state_dict().items()}, strict=False)
    assert torch.equal(model.stem.conv.bias, other.stem.conv.bias + 1)
    assert torch.equal(model.prompt, other.prompt + 1)
    load_pretrained(model, other.state_dict())
    assert torch.equal(model.prompt, other.prompt)
    model.load_state_dict(classifier.backbone.state_dict(), strict=False)
    assert_loaded(model, classifier)


@pytest.mark.parametrize("layout", ["nvidia", "mmgcvit"])
def test_other_windows(files, classifier, layout: str):
    model = GCViT(TINY, window_size=3)
    report = load_pretrained(model, files[layout])
    assert sorted(set(report.resized.values())) == [(2, 3), (4, 6)]
    assert len(report.resized) == 8
    assert "resized: 8 relative position bias tables, bicubically, to other windows (2 -> 3, 4 -> 6)" in str(report)
    name = f"stages.2.blocks.1.attn.{TABLE}"
    table = classifier.backbone.state_dict()[name]
    wanted = nn.functional.interpolate(table.T.reshape(1, 2, 7, 7), (11, 11), mode="bicubic", align_corners=False)
    assert torch.allclose(model.state_dict()[name], wanted.reshape(2, 121).T)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels(files, classifier, channels: int):
    model = GCViT(TINY, in_channels=channels)
    report = load_pretrained(model, files["nvidia"])
    assert report.adapted == {"stem.conv.weight": (3, channels)}
    rgb = classifier.backbone.stem.conv.weight
    wanted = rgb.sum(1, keepdim=True) if channels == 1 else torch.stack(
        [rgb[:, i % 3] * 3 / channels for i in range(channels)], 1)  # fmt: skip
    assert torch.allclose(model.stem.conv.weight, wanted)
    grey = GCViT(TINY, in_channels=3 if channels != 2 else 5)
    if channels > 3:
        with pytest.raises(CheckpointError, match=rf"in_channels {channels} in the file, 3 in the model"):
            load_pretrained(grey, model.state_dict())


@pytest.mark.parametrize(("change", "message"), [
    (dict(embed_dims=32), "embed_dims 16 in the file, 32 in the model"),
    (dict(depths=(2, 2, 3, 2)), r"depths \(2, 2, 2, 2\) in the file, \(2, 2, 3, 2\) in the model"),
    (dict(depths=(2, 2, 1, 2)), r"depths \(2, 2, 2, 2\) in the file, \(2, 2, 1, 2\) in the model"),
    (dict(num_heads=(1, 2, 2, 2)), "num_heads"),
    (dict(mlp_ratio=2), "mlp_ratio 3 in the file, 2 in the model"),
    (dict(layer_scale=None), "layer_scale True in the file, False in the model"),
])  # fmt: skip
def test_another_variant(files, change: dict, message: str):
    model = GCViT({**TINY, **change})
    check = unchanged(model)
    for layout in ("nvidia", "mmgcvit"):
        with pytest.raises(CheckpointError, match=message) as error:
            load_pretrained(model, files[layout])
        assert "The checkpoint fits arch: none of the published ones" in str(error.value)
    check()


def test_error_names_the_matching_arch():
    with torch.device("meta"):
        small, model = GCViT("small"), GCViT("tiny")
    state = {name: torch.zeros(value.shape) for name, value in small.state_dict().items()}
    with pytest.raises(CheckpointError, match="The checkpoint fits arch: 'small'"):
        load_pretrained(model, state)
    with torch.device("meta"):
        large = GCViT("large-384")
    with pytest.raises(CheckpointError, match="The checkpoint fits arch: 'large-384'"):
        load_pretrained(model, large.state_dict())


def test_another_number_of_reductions(files):
    with pytest.raises(CheckpointError, match=r"global query \(3, 2, 1, 1\) in the file, \(2, 2, 1, 1\) in the model"):
        load_pretrained(GCViT(TINY, global_query_reductions=(2, 2, 0, 0)), files["nvidia"])
    load_pretrained(GCViT(TINY, global_query_reductions=(3, 2, 1, 0)), files["nvidia"])


def test_fewer_maps(files, classifier):
    model = GCViT(TINY, out_indices=(0, 1))
    report = load_pretrained(model, files["nvidia"])
    assert_loaded(model, classifier)
    assert {name.split(".")[1] for name in report.left_in_file if name.startswith("stages")} == {"2", "3"}


@pytest.mark.parametrize(("value", "message"), [
    (float("nan"), "NaN or infinite numbers in 1 tensor: stages.1.blocks.0.mlp.fc1.bias"),
    (float("inf"), "NaN or infinite numbers in 1 tensor"),
])  # fmt: skip
def test_not_a_number(authors_dict, value: float, message: str):
    state = {k: v.clone() for k, v in authors_dict.items()}
    state["levels.1.blocks.0.mlp.fc1.bias"][3] = value
    model = GCViT(TINY)
    check = unchanged(model)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, state)
    check()


def test_types(authors_dict, classifier):
    model = GCViT(TINY)
    check = unchanged(model)
    state = {k: v.to(torch.int8) if k.endswith("proj.weight") else v for k, v in authors_dict.items()}
    with pytest.raises(CheckpointError, match=r"allowed: floating point of 16 bits or more: stem.conv.weight torch"):
        load_pretrained(model, state)
    check()
    load_pretrained(model, {k: v.double() for k, v in authors_dict.items()})
    assert_loaded(model, classifier)
    assert model.stem.conv.weight.dtype == torch.float32


def test_averaged_weights(authors_dict, tmp_path, classifier):
    from checkpoint_fixtures import write_authors

    zeros = {k: v * 0 for k, v in authors_dict.items()}
    path = write_authors(tmp_path / "both.pth", zeros, state_dict_ema=authors_dict)
    model = GCViT(TINY)
    load_pretrained(model, path, ema=True)
    assert_loaded(model, classifier)


def test_models_with_none_or_two(files):
    with pytest.raises(ValueError, match="a Linear with 0 GCViT; allowed: one"):
        load_pretrained(nn.Linear(2, 2), files["nvidia"])
    with pytest.raises(ValueError, match="a ModuleList with 2 GCViT; allowed: one"):
        load_pretrained(nn.ModuleList([GCViT(TINY), GCViT(TINY)]), files["nvidia"])


def test_values_are_checked_in_load_state_dict(authors_dict):
    """Values in published state dicts are checked; our own may contain anything, so that runs can be resumed."""
    bad = {k: v * float("nan") if v.is_floating_point() else v for k, v in authors_dict.items()}
    model = GCViT(TINY)
    check = unchanged(model)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        model.load_state_dict(bad)
    for odd in (torch.zeros(16, device="meta"), torch.zeros(16).to_sparse(), torch.zeros(16).to(torch.float8_e5m2)):
        with pytest.raises(CheckpointError, match=r"tensors that are sparse, nested or without values|wrong types"):
            load_pretrained(model, {**authors_dict, "norm.bias": odd})
    check()


def test_strict_load_of_a_foreign_dict_needs_all_but_the_norms(authors_dict):
    less = {k: v for k, v in authors_dict.items() if k != "levels.0.blocks.0.mlp.fc1.bias"}
    with pytest.raises(RuntimeError, match=r"Missing key.*stages.0.blocks.0.mlp.fc1.bias"):
        GCViT(TINY).load_state_dict(less)
    report = load_pretrained(GCViT(TINY), less)
    assert "stages.0.blocks.0.mlp.fc1.bias" in report.left_initial


def test_missing_block(authors_dict):
    state = {k.replace("levels.2.blocks.1.", "levels.2.blocks.200000."): v for k, v in authors_dict.items()}
    with pytest.raises(CheckpointError, match="stage 2 has the blocks 0, 200000, but not 1"):
        load_pretrained(GCViT(TINY), state)


def test_norms_of_some_maps(files, tmp_path):
    """DINO and RetinaNet use three maps."""
    from mmgcvit.checkpoint.commands import convert_file

    three = randomise(GCViT(TINY, out_indices=(1, 2, 3)))
    torch.save(three.state_dict(), tmp_path / "three.pth")
    theirs, _ = convert_file(str(tmp_path / "three.pth"), tmp_path / "theirs.pth", "nvidia")
    back, _ = convert_file(str(theirs), tmp_path / "back.pth")
    got = GCViT(TINY, out_indices=(1, 2, 3))
    assert load_pretrained(got, back).is_exact
    for name, value in three.state_dict().items():
        assert torch.equal(got.state_dict()[name], value), name
    assert load_pretrained(GCViT(TINY, out_indices=(3,)), theirs).layout == "nvidia-detection"


@pytest.mark.parametrize("kwargs", [
    dict(arch={**TINY, "mlp_ratio": 2.67}),
    dict(arch={**TINY, "embed_dims": 12, "num_heads": (1, 1, 1, 1), "mlp_ratio": 1.3}),
    dict(qkv_bias=False), dict(out_indices=(0, 1)), dict(in_channels=5), dict(global_query_reductions=(0, 1, 2, 3)),
    dict(arch={**TINY, "layer_scale": None, "depths": (1, 2, 1, 3)}),
])  # fmt: skip
def test_inspect_any_network_of_ours(kwargs: dict, tmp_path):
    from mmgcvit.checkpoint.commands import inspect

    model = randomise(GCViT(**{"arch": TINY, **kwargs}))
    torch.save(model.state_dict(), tmp_path / "ours.pth")
    assert f"loaded: {len(model.state_dict())} tensors" in inspect(str(tmp_path / "ours.pth"))
    assert load_pretrained(GCViT(**{"arch": TINY, **kwargs}), tmp_path / "ours.pth").is_exact


def test_qkv_without_bias(files):
    with pytest.raises(CheckpointError, match="qkv_bias True in the file, False in the model"):
        load_pretrained(GCViT(TINY, qkv_bias=False), files["nvidia"])


def test_arrays(authors_dict, classifier):
    model = GCViT(TINY)
    load_pretrained(model, {k: v.numpy() for k, v in authors_dict.items()})
    assert_loaded(model, classifier)


def test_sharded_model_is_refused(files, monkeypatch):
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = FullyShardedDataParallel(GCViT(TINY))
    with pytest.raises(CheckpointError, match=r"already sharded .FullyShardedDataParallel.: load the weights before"):
        load_pretrained(model, files["nvidia"])


def test_partial_checkpoint(tmp_path, classifier):
    """The stem and the first two stages: refused by name, and loaded if the caller says that this is meant."""
    state = {
        k: v for k, v in classifier.backbone.state_dict().items() if k.startswith(("stem", "stages.0", "stages.1"))
    }
    model = randomise(GCViT(TINY), seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    message = r"a partial checkpoint: only \d+ of the backbone's \d+ tensors .* partial=True\). Missing: stages\.2"
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, state)
    report = load_pretrained(model, state, partial=True)
    assert sorted(report.loaded) == sorted(state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state.get(name, before[name])), name
    torch.save({f"student.{k}": v for k, v in classifier.backbone.state_dict().items()}, tmp_path / "two.pth")
    for prefix in ("student", "student."):
        assert load_pretrained(model, tmp_path / "two.pth", prefix=prefix).loaded
    config = GCViT(TINY, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "part.pth"), partial=True))
    torch.save(state, tmp_path / "part.pth")
    config.init_weights()
    assert torch.equal(config.state_dict()["stem.conv.weight"], state["stem.conv.weight"])


def test_state_dict_with_maps_that_are_not_built(classifier):
    """A strict load into a backbone with fewer maps and stages takes its part."""
    full = randomise(GCViT(TINY)).state_dict()
    for out_indices in ((3,), (0, 1)):
        model = GCViT(TINY, out_indices=out_indices)
        model.load_state_dict(full)
        for name, value in model.state_dict().items():
            assert torch.equal(value, full[name])


def test_adapters(logged):
    """PEFT loads the weights of its adapters alone, with ``strict=False``."""

    class Adapter(torch.nn.Module):
        def __init__(self, layer: torch.nn.Linear) -> None:
            super().__init__()
            self.base_layer, self.lora = layer, torch.nn.Linear(layer.in_features, layer.out_features, bias=False)

    model = GCViT(TINY)
    model.stages[0].blocks[0].attn.qkv = Adapter(model.stages[0].blocks[0].attn.qkv)
    name = "stages.0.blocks.0.attn.qkv.lora.weight"
    value = torch.ones_like(model.state_dict()[name])
    keys = model.load_state_dict({name: value}, strict=False)
    assert torch.equal(model.state_dict()[name], value)
    assert len(keys.missing_keys) == len(model.state_dict()) - 1
    assert keys.unexpected_keys == logged == []


def test_adapters_of_peft(tmp_path, logged):
    """LoRA: saved, loaded into the same network, and merged into its weights."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["qkv", "kv", "proj"], r=2, init_lora_weights=False)
    base = randomise(GCViT(TINY)).eval()
    trained = peft.get_peft_model(copy.deepcopy(base), config).eval()
    trained.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    images = torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        wanted = trained(images)
        assert not torch.allclose(wanted[0], base(images)[0], rtol=1e-2)
        for got, w in zip(loaded(images), wanted, strict=True):
            assert torch.equal(got, w)
        for got, w in zip(loaded.merge_and_unload()(images), wanted, strict=True):
            assert relative_error(got, w) < 1e-4
    assert logged == []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_distributed_checkpoint_without_frozen_parameters(tmp_path):
    state_dict = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    from torch.distributed import checkpoint

    trained, model = (randomise(GCViT(TINY, frozen_stages=2), seed=seed) for seed in (0, 1))
    options = state_dict.StateDictOptions(ignore_frozen_params=True, strict=False)
    checkpoint.save(state_dict.get_model_state_dict(trained, options=options), checkpoint_id=tmp_path, no_dist=True)
    state = {name: torch.zeros_like(value) for name, value in model.named_parameters() if value.requires_grad}
    checkpoint.load(state, checkpoint_id=tmp_path, no_dist=True)
    frozen = {name: value.clone() for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen
    state_dict.set_model_state_dict(model, state, options=options)
    for name, value in model.state_dict().items():
        assert torch.equal(value, frozen[name] if name in frozen else trained.state_dict()[name]), name
