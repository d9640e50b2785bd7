"""Public behaviour of the backbone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import TINY, loss_of, randomise, relative_error
from contract import expected_shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.logging import MMLogger
from torch import nn

from mmgcvit.backbone import ARCHS, GCViT
from mmgcvit.backbone.windows import PAD_MODES

PUBLISHED_PARAMETERS = {  # classifiers with 1000 classes
    "xxtiny": 11_995_428, "xtiny": 19_981_294, "tiny": 28_221_974, "tiny2": 34_535_654,
    "small": 51_092_173, "small2": 68_615_197, "base": 90_320_836, "large": 202_075_570,
}  # fmt: skip
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
ALL_SUBSETS = [c for n in range(1, 5) for c in itertools.combinations(range(4), n)]


@pytest.fixture
def log(caplog):
    """Records of mmengine's logger, which does not propagate."""
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("name", ARCHS)
def test_archs_have_published_parameter_counts(name: str):
    with torch.device("meta" if name.startswith("large") else "cpu"), torch.no_grad():
        model = GCViT(name, out_indices=(3,)).eval()
        head = nn.Linear(model.out_channels[0], 1000)
        maps = model(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == expected_shapes(model, 2, 64, 96)
    parameters = sum(p.numel() for module in (model, head) for p in module.parameters())
    if name.startswith("large-"):  # only the bias tables differ from those of 'large'
        tables = sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias_table"))
        with torch.device("meta"):
            large = GCViT("large", out_indices=(3,))
        large_tables = sum(p.numel() for n, p in large.named_parameters() if n.endswith("bias_table"))
        assert parameters - tables == PUBLISHED_PARAMETERS["large"] - large_tables
    else:
        assert parameters == PUBLISHED_PARAMETERS[name]


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    batch=st.integers(1, 3),
    pad=st.sampled_from(PAD_MODES),
    windows=st.one_of(st.integers(1, 5), st.tuples(*[st.integers(1, 6)] * 4)),
)
def test_any_image_size_and_window_size(height: int, width: int, batch: int, pad: str, windows):
    torch.manual_seed(0)
    model = randomise(GCViT(TINY, window_size=windows, pad=pad)).eval()
    images = torch.randn(batch, 3, height, width)
    with torch.no_grad():
        maps = model(images)
        alone = model(images[-1:])
    assert [tuple(m.shape) for m in maps] == expected_shapes(model, batch, height, width)
    for together, single in zip(maps, alone, strict=True):
        assert (
            relative_error(together[-1:], single) < 1e-4
        )  # the maps of an image do not depend on the rest of the batch


def test_pad_modes_agree_only_at_multiples(tiny_model):
    maps = {}
    for pad in PAD_MODES:
        model = tiny_model(pad=pad)
        assert model.pad_multiple == 64
        with torch.no_grad():
            torch.manual_seed(1)
            maps[pad] = model(torch.randn(2, 3, 64, 128)), model(torch.randn(2, 3, 60, 100))
    for pad in PAD_MODES[1:]:
        for other, ours in zip(maps[pad][0], maps["input"][0], strict=True):
            assert relative_error(other, ours) < 1e-5
        assert relative_error(maps[pad][1][0], maps["input"][1][0]) > 1e-3


def test_pad_input_equals_model_on_padded_image(tiny_model):
    model = tiny_model(pad="input")
    image = torch.randn(2, 3, 50, 70)
    padded = torch.zeros(2, 3, 64, 128)
    padded[:, :, :50, :70] = image
    with torch.no_grad():
        for small, large in zip(model(image), model(padded), strict=True):
            assert torch.equal(small, large[:, :, : small.shape[2], : small.shape[3]])


@pytest.mark.parametrize(("windows", "multiple"), [(None, 224), (8, 256), ((24,) * 4, 768), ((7, 7, 14, 7), 224)])
def test_pad_multiple(windows, multiple: int):
    with torch.device("meta"):
        assert GCViT("xxtiny", window_size=windows).pad_multiple == multiple
        assert GCViT("xxtiny", window_size=windows, out_indices=(0,)).pad_multiple == multiple


def test_attributes_match_out_indices():
    with torch.device("meta"):
        model = GCViT("tiny", out_indices=(1, 3))
    assert model.out_channels == (128, 512)
    assert model.out_strides == (8, 32)
    assert [n for n, _ in model.named_children()] == ["stem", "stages", "norm1", "norm3"]


def test_with_cp_repeats_drop_path_and_dropout():
    torch.manual_seed(0)
    plain = GCViT(TINY, drop_path_rate=0.5, drop_rate=0.3, attn_drop_rate=0.3).train()
    saving = GCViT(TINY, drop_path_rate=0.5, drop_rate=0.3, attn_drop_rate=0.3, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for model in (plain, saving):
        torch.manual_seed(3)
        loss_of(model(images)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("out_indices", ALL_SUBSETS)
@pytest.mark.parametrize("frozen_stages", range(-1, 5))
def test_every_parameter_gets_a_gradient_or_is_frozen(out_indices: tuple[int, ...], frozen_stages: int):
    torch.manual_seed(0)
    model = randomise(GCViT(TINY, out_indices=out_indices, frozen_stages=frozen_stages)).train()
    frozen = {"stem"} if frozen_stages >= 0 else set()
    frozen |= {f"stages.{i}" for i in range(frozen_stages)} | {f"norm{i}" for i in range(frozen_stages)}
    maps = model(torch.randn(2, 3, 50, 70))
    if any(m.requires_grad for m in maps):
        loss_of(maps).backward()
    trained = 0
    for name, parameter in model.named_parameters():
        if any(name.startswith(part + ".") for part in frozen):
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, f"no gradient for {name}"
            assert parameter.grad.abs().sum() > 0, f"the gradient of {name} is zero"
            trained += 1
    assert (trained > 0) == (frozen_stages <= out_indices[-1])


def test_freezing_survives_train():
    model = GCViT(TINY, frozen_stages=2, drop_path_rate=0.5)
    assert model.train() is model
    assert not any(
        m.training
        for part in (model.stem, model.stages[0], model.stages[1], model.norm0, model.norm1)
        for m in part.modules()
    )
    assert all(m.training for part in (model.stages[2], model.stages[3], model.norm2) for m in part.modules())
    assert not model.eval().stages[3].training


def test_drop_path_grows_linearly_over_all_blocks():
    model = GCViT(TINY, drop_path_rate=0.7)
    rates = [block.drop_path_rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    assert [b.drop_path_rate for s in GCViT(TINY, out_indices=(1,)).stages for b in s.blocks] == [0.0] * 4
    assert GCViT("xxtiny").stages[3].blocks[1].drop_path_rate == pytest.approx(0.2)


@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_drop_path_is_sampled_per_image(rate: float):
    model = GCViT(TINY, frozen_stages=1, drop_path_rate=0.5)
    for stage in model.stages[1:]:
        for block in stage.blocks:
            block.drop_path_rate = 0.0
    model.stages[2].blocks[1].drop_path_rate = rate
    x = torch.zeros(4000, 1, dtype=torch.double)
    assert model.eval().sample_drop_path(x) == [None] * 4
    *others, scale, last = model.train().sample_drop_path(x)
    assert [*others, last] == [None] * 3  # the first is frozen and therefore in evaluation mode
    assert scale.shape == (2, 2, 4000)  # blocks, branches, images
    assert scale.dtype == torch.double
    assert (scale[0] == 1).all()
    assert scale[1].unique().tolist() == pytest.approx([0.0, 1 / 0.75] if rate < 1 else [0.0])
    assert ((scale[1] == 0).double().mean(1) - rate).abs().max() < 0.03


def test_weights_available_only_during_block_call(tiny_model):
    """With offloading, a block may use its weights only while it is called."""
    model, images = tiny_model(pad="window"), torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        wanted = model(images)
    for stage in model.stages:
        for block in stage.blocks:
            for module in block.modules():
                kept = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
                for p in module.parameters(recurse=False):
                    p.data.fill_(torch.nan)

                def bring(module, _, kept=kept):
                    for name, value in kept.items():
                        getattr(module, name).data.copy_(value)

                def take(module, *_):
                    for p in module.parameters(recurse=False):
                        p.data.fill_(torch.nan)

                module.register_forward_pre_hook(bring)
                module.register_forward_hook(take)
    # The same holds for norms and layers: each is called while its weights are available.
    with torch.no_grad():
        for got, w in zip(model(images), wanted, strict=True):
            assert relative_error(got, w) < 1e-5


@pytest.mark.skipif(TORCH < (2, 6), reason="torch has no fully_shard at this name")
def test_sharded_blocks(tiny_model, tmp_path):
    from torch.distributed.fsdp import fully_shard

    model, images = tiny_model(pad="window").train(), torch.randn(2, 3, 50, 70)
    loss_of(model(images)).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for stage in model.stages:
            for block in stage.blocks:
                fully_shard(block, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        loss_of(model(images)).backward()
        for name, p in model.named_parameters():
            gradient = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            assert relative_error(gradient, wanted[name]) < 1e-5, name
    finally:
        torch.distributed.destroy_process_group()


def test_own_weights_load_into_other_window_sizes(tiny_model, log):
    small, large = tiny_model(), tiny_model(window_size=(4, 4, 6, 4))
    before = {k: v.clone() for k, v in small.state_dict().items()}
    state = small.state_dict()
    large.load_state_dict(state)
    (message,) = (r.getMessage() for r in log.records if "resized" in r.getMessage())
    assert "8 relative position bias tables" in message
    assert "2 -> 4, 4 -> 6" in message
    table = "stages.2.blocks.1.attn.relative_position_bias_table"
    wanted = nn.functional.interpolate(
        before[table].T.reshape(1, 2, 7, 7), size=(11, 11), mode="bicubic", align_corners=False
    )
    assert torch.allclose(large.state_dict()[table], wanted.reshape(2, 121).T)
    for key, value in before.items():
        assert torch.equal(value, state[key])  # the caller's dict is unchanged
        if not key.endswith("bias_table"):
            assert torch.equal(value, large.state_dict()[key])


def test_own_weights_load_into_other_window_sizes_inside_detector(tiny_model, log):
    class Detector(nn.Module):
        def __init__(self, backbone: GCViT) -> None:
            super().__init__()
            self.backbone = backbone

    small, large = Detector(tiny_model()), Detector(tiny_model(window_size=3))
    large.load_state_dict(small.state_dict())
    assert any("resized" in r.getMessage() for r in log.records)


@pytest.mark.parametrize("windows", [None, 3])
def test_init_cfg_loads_a_checkpoint(tiny_model, tmp_path, log, windows: int | None):
    """Loads a checkpoint as in a config."""
    trained = tiny_model()
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "trained.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "trained.pth"))
    model = GCViT(TINY, window_size=windows, init_cfg=init_cfg)
    model.init_weights()
    wanted = tiny_model(window_size=windows)
    wanted.load_state_dict(trained.state_dict())
    for key, value in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert any("resized: 8" in r.getMessage() for r in log.records) == (windows is not None)


def test_initial_values():
    torch.manual_seed(0)
    model = GCViT({**TINY, "layer_scale": 1e-5})
    block = model.stages[2].blocks[0]
    for weight in (block.attn.qkv.weight, block.mlp.fc1.weight, block.attn.relative_position_bias_table):
        assert 0.015 < weight.std().item() < 0.025
    assert not block.attn.qkv.bias.any()
    assert (block.gamma1 == 1e-5).all()
    # Convolutions, including pointwise ones, keep PyTorch's default: uniform in +- 1 / sqrt(fan in).
    pointwise = model.stages[2].query.mbconvs[0].pointwise.weight
    assert pointwise.abs().max() <= 64**-0.5
    assert pointwise.std() > 0.05
    assert GCViT({**TINY, "layer_scale": None}).stages[0].blocks[0].gamma1 is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(arch="huge"), ValueError, r"arch='huge'.*xxtiny.*large-512"),
        (dict(arch=7), TypeError, r"arch=7.*a dict"),
        (dict(arch=dict(embed_dims=32)), TypeError, r"missing keys \['depths', 'num_heads'\]"),
        (dict(arch={**TINY, "depth": 3}), TypeError, r"unknown keys \['depth'\]"),
        (
            dict(arch={**TINY, "num_heads": (3, 2, 2, 4)}),
            ValueError,
            r"num_heads=.*3 heads do not divide the 16 channels",
        ),
        (dict(arch={**TINY, "depths": (2, 2, 2)}), ValueError, r"depths=\(2, 2, 2\); allowed: 4 integers >= 1"),
        (dict(arch={**TINY, "mlp_ratio": 0}), ValueError, r"mlp_ratio=0.*> 0"),
        (dict(arch={**TINY, "mlp_ratio": "3"}), ValueError, r"mlp_ratio='3'.*> 0"),
        (dict(arch={**TINY, "mlp_ratio": float("inf")}), ValueError, r"mlp_ratio=inf.*> 0"),
        (dict(arch={**TINY, "mlp_ratio": 0.01}), ValueError, r"mlp_ratio=0.01.*embed_dims=16"),
        (dict(arch={**TINY, "layer_scale": True}), ValueError, r"layer_scale=True.*a number or None"),
        (dict(arch={**TINY, "embed_dims": 3}), ValueError, r"embed_dims=3; allowed: an integer >= 4"),
        (dict(arch={**TINY, "embed_dims": 16.0}), ValueError, r"embed_dims=16.0"),
        (dict(window_size=0), ValueError, r"window_size=0; allowed: 4 integers >= 1, or an integer w"),
        (dict(window_size=(7, 7)), ValueError, r"window_size=\(7, 7\)"),
        (dict(window_size=7.0), ValueError, r"window_size=7.0"),
        (dict(pad="same"), ValueError, r"pad='same'; allowed: 'input', 'stage', 'window'"),
        (dict(global_query_interpolation="nearest"), ValueError, r"global_query_interpolation='nearest'.*'bicubic'"),
        (dict(global_query_reductions=(3, 2)), ValueError, r"global_query_reductions=\(3, 2\).*4 integers >= 0"),
        (dict(out_indices=(3, 0)), ValueError, r"out_indices=\(3, 0\)"),
        (dict(out_indices=(0, 4)), ValueError, r"out_indices=\(0, 4\)"),
        (dict(out_indices=()), ValueError, r"out_indices=\(\)"),
        (
            dict(out_indices=3),
            ValueError,
            r"out_indices=3; allowed: one or more of 0 to 3, ascending, in a tuple or list",
        ),
        (dict(out_indices=(0, 0)), ValueError, r"out_indices=\(0, 0\); allowed: one or more of 0 to 3"),
        (dict(frozen_stages=1.0), ValueError, r"frozen_stages=1.0"),
        (dict(with_cp="False"), ValueError, r"with_cp='False'; allowed: True, False"),
        (dict(qkv_bias=None), ValueError, r"qkv_bias=None; allowed: True, False"),
        (dict(frozen_stages=5), ValueError, r"frozen_stages=5; allowed: -1, 0, 1, 2, 3, 4"),
        (dict(frozen_stages=True), ValueError, r"frozen_stages=True"),
        (dict(in_channels=0), ValueError, r"in_channels=0; allowed: an integer >= 1"),
        (dict(drop_path_rate=1.5), ValueError, r"drop_path_rate=1.5"),
        (dict(drop_rate=-0.1), ValueError, r"drop_rate=-0.1"),
        (dict(attn_drop_rate="a"), ValueError, r"attn_drop_rate='a'"),
        (
            dict(windowsize=7),
            TypeError,
            r"windowsize=7; allowed: arch, in_channels, window_size, .*, with_cp, init_cfg$",
        ),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        GCViT(**{"arch": TINY, **arguments})


def test_argument_types_from_configs_and_numpy():
    from mmengine.config import ConfigDict

    arch = ConfigDict(embed_dims=np.int64(16), depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], mlp_ratio=np.float32(3))
    model = GCViT(arch, window_size=[2, 2, 4, 2], out_indices=[0, 3], global_query_reductions=[1, 0, 0, 0])
    assert model.out_indices == (0, 3)
    assert model.arch.window_size == (2, 2, 4, 2)
    assert [len(s.blocks) for s in model.stages] == [1, 2, 1, 1]


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 1, 64, 64), (2, 64, 64, 3), (0, 3, 64, 64), (2, 3, 0, 64)])
def test_bad_inputs(tiny_model, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"input of shape \(.*\); allowed: \(B, 3, H, W\)"):
        tiny_model()(torch.zeros(shape))


@pytest.mark.parametrize("initialise", ["init_weights", "reset_parameters"])
def test_model_built_on_meta_device(initialise: str):
    """Its parameters get initial values, not those that happened to be in memory."""
    with torch.device("meta"):
        model = GCViT({**TINY, "layer_scale": 0.3})
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    getattr(model, initialise)()
    built = dict(GCViT({**TINY, "layer_scale": 0.3}).named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if parameter.std() == 0:
            assert torch.equal(parameter, built[name]), name
        else:
            assert 0.5 < parameter.std() / built[name].std() < 2, name
    before = model.state_dict()["stem.conv.weight"].clone()
    model.init_weights()  # only once
    assert torch.equal(before, model.state_dict()["stem.conv.weight"])


def test_unsupported_tracers_raise_errors(tiny_model):
    """Control flow that depends on sizes: ``torch.export`` and ``torch.jit.trace`` are the alternatives."""
    model = tiny_model()
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    for trace in (torch.fx.symbolic_trace, lambda m: feature_extraction.create_feature_extractor(m, ["stages.2"])):
        with pytest.raises(TypeError, match=r"cannot be traced by torch\.fx.*; allowed: torch\.export"):
            trace(model)
    with pytest.raises(RuntimeError):
        torch.jit.script(model)
