"""Captured attention: rows that sum to 1, the values of a computation by hand, and a network that is not changed."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY, relative_error
from torch import Tensor, nn

from mmgcvit import GCViT, kernels
from mmgcvit.backbone.windows import PAD_MODES
from mmgcvit.errors import UsageError
from mmgcvit.explain import attention_maps, capture_attention, find_backbone

SIZES = [(64, 64), (50, 75), (97, 33), (5, 3)]


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pad", PAD_MODES)
def test_rows_sum_to_1(tiny_model, pad: str, size: tuple[int, int]):
    model = tiny_model(pad=pad).double()
    with torch.no_grad(), capture_attention(model) as maps:
        outputs = model(images(*size))
    assert sorted(maps) == [(stage, block) for stage in range(4) for block in range(2)]
    for (stage, block), found in maps.items():
        assert (found.height, found.width) == outputs[stage].shape[2:]
        assert found.is_global == (block == 1) == (found.query is not None)
        heads, window = TINY["num_heads"][stage], TINY["window_size"][stage]
        for weights, region in zip(found.weights, found.regions, strict=True):
            tokens = region.height * region.width
            assert weights.shape == (2, region.num_windows, heads, tokens, tokens + region.is_padded)
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-12, rtol=0)
        if found.query is not None:
            assert found.query.shape == (2, heads, window**2, TINY["embed_dims"] * 2**stage // heads)
        received, outside = found.received(), found.outside()
        assert received.shape == outside.shape == (2, heads, found.height, found.width)
        assert received.min() >= 0
        assert outside.min() >= -1e-12
        if all(s % 32 == 0 for s in size):
            # all windows are full: the attention that a window receives is 1
            assert outside.abs().max() < 1e-12
            grid = (found.height // window, window, found.width // window, window)
            total = received.reshape(2, heads, *grid).sum((3, 5))
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)
        for token in ((0, 0), (found.height - 1, found.width - 1)):
            one = found.of_token(*token)
            total = one.sum((2, 3)) + outside[:, :, token[0], token[1]]
            torch.testing.assert_close(total, torch.ones_like(total), atol=1e-12, rtol=0)


def by_hand(model: GCViT, image: Tensor, stage: int, block: int, token: tuple[int, int]) -> Tensor:
    """Attention of a token over all positions of its full window, (B, heads, window, window), from q, k and the table.

    The input of the block's attention is a map that is padded with zeros after the norm, as ``pad`` says.
    """
    kept: dict[str, Tensor] = {}
    part = model.stages[stage]
    attention, window = part.blocks[block].attn, part.window

    def keep_tokens(_: nn.Module, arguments: tuple) -> None:
        kept["map"] = arguments[0]

    def keep_query(_: nn.Module, __: tuple, output: Tensor) -> None:
        kept["query"] = output

    handles = [
        attention.register_forward_pre_hook(keep_tokens),
        part.query.register_forward_hook(keep_query),
    ]
    # In forward-mode AD, as in a captured graph, every window is padded to a full one, and they lie one after another.
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        model(image)
    for handle in handles:
        handle.remove()
    rows, query = kept["map"], kept["query"]
    row, column = token
    grid_w = -(-_map_size(model, image, stage)[1] // window)
    index = row // window * grid_w + column // window
    x = rows.unflatten(0, (len(image), -1, window * window))[:, index]  # [B, tokens, C]
    d = x.shape[-1] // attention.num_heads
    y = (attention.kv if attention.is_global else attention.qkv)(x).unflatten(2, (attention.num_heads, -1, d))
    k = y[..., -2, :].transpose(1, 2)
    q = query if attention.is_global else y[..., 0, :].transpose(1, 2)
    at = row % window * window + column % window
    scores = (q[:, :, at, None] * k).sum(-1) / d**0.5
    table = attention.relative_position_bias_table
    for i in range(window):
        for j in range(window):
            offset = (row % window - i + window - 1) * (2 * window - 1) + column % window - j + window - 1
            scores[:, :, i * window + j] += table[offset]
    exponentials = scores.exp()
    return (exponentials / exponentials.sum(-1, keepdim=True)).unflatten(2, (window, window)).detach()


def _map_size(model: GCViT, image: Tensor, stage: int) -> tuple[int, ...]:
    height, width = image.shape[2:]
    if model.pad == "input":
        height, width = (-(-side // model.pad_multiple) * model.pad_multiple for side in (height, width))
    return tuple(-(-side // (4 * 2**stage)) for side in (height, width))


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("pad", PAD_MODES)
def test_equals_computation_by_hand(tiny_model, pad: str, block: int):
    model = tiny_model(pad=pad).double()
    image = images(50, 83)
    for stage, token in ((0, (0, 0)), (0, (12, 20)), (1, (6, 3)), (2, (3, 5)), (2, (1, 2)), (3, (1, 2))):
        found = attention_maps(model, image, stage, block)
        wanted = by_hand(model, image, stage, block, token)
        window = wanted.shape[-1]
        top, left = (position // window * window for position in token)
        got = found.of_token(*token)
        inside = got[:, :, top : top + window, left : left + window]
        wanted = wanted[:, :, : inside.shape[2], : inside.shape[3]]
        torch.testing.assert_close(inside, wanted, atol=1e-12, rtol=1e-9)
        assert got.sum().item() == pytest.approx(inside.sum().item())  # zero in other windows
        lost = found.outside()[:, :, token[0], token[1]]
        torch.testing.assert_close(lost, 1 - wanted.sum((2, 3)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("pad", PAD_MODES)
def test_network_is_unchanged(tiny_model, pad: str):
    model, image = tiny_model(pad=pad), images(50, 83).float()
    before = [set(vars(m)) for m in model.modules()]
    with torch.no_grad():
        plain = model(image)
        with capture_attention(model, stage=1):
            captured = model(image)
        again = model(image)
    for a, b, c in zip(plain, captured, again, strict=True):
        assert relative_error(b, a) < 1e-5
        assert torch.equal(a, c)
    assert [set(vars(m)) for m in model.modules()] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_packs_of_the_cpu_kernels_are_joined(tiny_model, monkeypatch: pytest.MonkeyPatch):
    model, image = tiny_model(pad="window").double(), images(50, 83)
    monkeypatch.setattr(kernels.cpu, "MAX_PACK", 2400)  # a few windows
    in_packs = attention_maps(model, image, 0, 1)
    with kernels.disabled(*kernels.KERNELS):
        plain = attention_maps(model, image, 0, 1)
    for a, b in zip(in_packs.weights, plain.weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_gradients_checkpoints_and_training(tiny_model):
    model, image = tiny_model(with_cp=True).train(), images(50, 83).float()
    with capture_attention(model, 0, 0) as maps:
        sum(m.sum() for m in model(image)).backward()  # runs the blocks again
    assert maps[0, 0].weights[0].shape[0] == 2
    assert not maps[0, 0].weights[0].requires_grad
    assert attention_maps(model, image, 0, 0).received().shape == (2, 1, 13, 21)
    assert model.training
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models_run_eagerly(tiny_model, in_place: bool):
    model, image = tiny_model(), images(32, 32).float()
    wanted = attention_maps(model, image, 2, 1).received()
    if in_place:
        model.compile(backend="eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        plain = compiled(image)
        torch.testing.assert_close(attention_maps(compiled, image, 2, 1).received(), wanted)
        with capture_attention(compiled, 2, 1) as maps:
            found = compiled(image)
    torch.testing.assert_close(maps[2, 1].received(), wanted)
    assert relative_error(found[3], plain[3]) < 1e-4


def test_half_precision(tiny_model):
    model, image = tiny_model(), images(50, 83).float()
    wanted = attention_maps(model, image, 1, 1).received()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention_maps(model, image, 1, 1).received()
    assert found.dtype == torch.float32
    assert relative_error(found, wanted) < 0.1


def test_finding_the_backbone(tiny_model, classifier):
    model = tiny_model()
    assert find_backbone(model) is model
    assert find_backbone(classifier) is classifier.backbone
    assert find_backbone(torch.compile(classifier)) is classifier.backbone
    assert find_backbone(nn.ModuleDict(dict(other=model, backbone=tiny_model()))) is not model
    assert find_backbone(nn.ModuleDict(dict(other=model))) is model
    with pytest.raises(UsageError, match=r"Linear: has no GC ViT; allowed"):
        find_backbone(nn.Linear(1, 1))
    with pytest.raises(UsageError, match=r"has 2 GC ViTs \(a, b\)"):
        find_backbone(nn.ModuleDict(dict(a=model, b=tiny_model())))


def test_wrong_indices(tiny_model):
    model, image = tiny_model(out_indices=(0, 2)), images(32, 32).float()
    with pytest.raises(UsageError, match=r"stage=3; allowed: 0 to 2"):
        attention_maps(model, image, 3, 0)
    with pytest.raises(UsageError, match=r"block of stage 1=2; allowed: 0 to 1"):
        attention_maps(model, image, 1, 2)
    with pytest.raises(UsageError, match=r"column=8; allowed for a map of 8 x 8: 0 to 7"):
        attention_maps(model, image, 0, 0).of_token(0, 8)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_graphs_cannot_be_captured(tiny_model):
    model = tiny_model()
    with (
        capture_attention(model),
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(RuntimeError, match="cannot be captured"),
    ):
        model(images(32, 32).float())
