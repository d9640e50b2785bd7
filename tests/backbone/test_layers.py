"""Layers of the stem, the stages and the blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from torch import nn
from torch.nn.utils import prune

from mmgcvit.backbone.layers import Downsample, GlobalQuery, MBConv, Mlp, Stem


@pytest.mark.parametrize("size", [(5, 7), (2, 3)])
def test_mbconv_equals_formula(size: tuple[int, int]):
    mbconv = randomise(MBConv(8))
    x = torch.randn(2, *size, 8)
    y = F.gelu(F.conv2d(x.permute(0, 3, 1, 2), mbconv.depthwise.weight, padding=1, groups=8))
    scale = F.gelu(y.mean((2, 3)) @ mbconv.se.fc1.weight.T) @ mbconv.se.fc2.weight.T
    y = F.conv2d(y * scale.sigmoid()[:, :, None, None], mbconv.pointwise.weight[:, :, None, None])
    assert relative_error(mbconv(x), x + y.permute(0, 2, 3, 1)) < 1e-5
    assert all("bias" not in name for name, _ in mbconv.named_parameters())


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8)])
def test_stem_and_downsample_round_up(size: tuple[int, int]):
    height, width = size
    assert Downsample(4, 8)(torch.randn(2, height, width, 4)).shape == (2, -(-height // 2), -(-width // 2), 8)
    assert Stem(3, 8)(torch.randn(2, height, width, 3)).shape == (2, -(-height // 4), -(-width // 4), 8)


@pytest.mark.parametrize(("reductions", "interpolation"), [(0, "bicubic"), (1, "bicubic"), (2, "bilinear")])
@pytest.mark.parametrize("size", [(8, 8), (3, 17), (1, 1)])
def test_global_query(reductions: int, interpolation: str, size: tuple[int, int]):
    query = randomise(GlobalQuery(8, 2, 4, reductions, interpolation))
    assert len(query.mbconvs) == max(reductions, 1)
    x = torch.randn(3, *size, 8)
    got = query(x)
    y = x
    for mbconv in query.mbconvs:
        y = mbconv(y)
        if reductions:
            y = F.max_pool2d(y.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
    if y.shape[1:3] != (4, 4):
        y = F.interpolate(y.permute(0, 3, 1, 2), (4, 4), mode=interpolation).permute(0, 2, 3, 1)
    assert got.shape == (3, 2, 16, 4)
    for head in range(2):
        assert torch.allclose(got[:, head], y.reshape(3, 16, 8)[..., 4 * head : 4 * head + 4], atol=1e-6)


def mlp_formula(mlp: Mlp, x: torch.Tensor) -> torch.Tensor:
    return mlp.fc2(F.gelu(mlp.fc1(x)))


def test_mlp_dropout_only_in_training():
    mlp = randomise(Mlp(6, 12, 0.5))
    x = torch.randn(3, 6)
    assert not torch.equal(mlp(x), mlp(x))
    mlp.eval()
    assert torch.equal(mlp(x), mlp(x))
    assert relative_error(mlp(x), mlp_formula(mlp, x)) < 1e-6


class LowRank(nn.Module):
    """Linear layer plus a low-rank update, as added by adapters."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Parameter(torch.randn(2, base.in_features)), nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_low_rank_adapter_merges_into_mlp(name: str):
    mlp = randomise(Mlp(6, 12, 0.0))
    base = getattr(mlp, name)
    adapted = LowRank(base)
    setattr(mlp, name, adapted)
    x = torch.randn(3, 5, 6)
    unmerged = mlp(x)
    with torch.no_grad():
        base.weight += adapted.b @ adapted.a
    setattr(mlp, name, base)
    assert relative_error(mlp(x), unmerged) < 1e-5


def test_mbconv_gradients_go_to_the_original_weights():
    mbconv, other = randomise(MBConv(8)), randomise(MBConv(8), seed=1)
    x = torch.randn(2, 5, 7, 8)
    other(x).square().sum().backward()
    wanted = {name: p.grad for name, p in other.named_parameters()}
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    torch.func.functional_call(mbconv, given, (x,)).square().sum().backward()
    for name, gradient in wanted.items():
        assert relative_error(given[name].grad, gradient) < 1e-5, name


def test_hooks_on_weights_run_once():
    mbconv = randomise(MBConv(8))
    x = torch.randn(2, 5, 7, 8)
    mbconv(x).sum().backward()
    wanted = {name: p.grad.clone() for name, p in mbconv.named_parameters()}
    mbconv.zero_grad()
    for parameter in mbconv.parameters():
        parameter.register_hook(lambda gradient: gradient * 0.5)
    mbconv(x).sum().backward()
    for name, parameter in mbconv.named_parameters():
        assert relative_error(parameter.grad, 0.5 * wanted[name]) < 1e-5, name


def test_modified_modules_are_called():
    """For example by offloading, sharding, pruning or observers."""
    x = torch.randn(2, 5, 7, 8, requires_grad=True)

    def heard(alter) -> int:
        mbconv, calls = randomise(MBConv(8)), []
        alter(mbconv, lambda *args: calls.append(args))
        mbconv(x).sum().backward()
        return len(calls)

    def patched(mbconv: MBConv, call) -> None:
        forward = mbconv.pointwise.forward
        mbconv.pointwise.forward = lambda y: call() or forward(y)

    assert heard(lambda mbconv, call: None) == 0
    assert heard(patched) == 1
    assert heard(lambda mbconv, call: mbconv.pointwise.register_full_backward_hook(call)) == 1
    assert heard(lambda mbconv, call: mbconv.se.fc1.register_full_backward_pre_hook(call)) == 1
    assert heard(lambda mbconv, call: mbconv.depthwise.register_forward_pre_hook(call)) == 1


def test_global_hooks_may_keep_activations():
    """In evaluation mode memory is reused, unless a hook may hold a reference to it."""
    mbconv, seen = randomise(MBConv(8)), {}
    x = torch.randn(2, 5, 7, 8)
    hook = nn.modules.module.register_module_forward_hook(lambda module, _, out: seen.update({module: out}))
    with torch.no_grad():
        mbconv(x)
        hook.remove()
        assert torch.equal(seen[mbconv.depthwise], mbconv.depthwise(x.permute(0, 3, 1, 2)))
        plain = mbconv(x)
    assert relative_error(plain, mbconv(x)) < 1e-6  # with gradients, so not in place


@pytest.mark.parametrize("size", [(5, 7), (2, 3)])
def test_modules_with_hooks_are_called(size: tuple[int, int]):
    """On maps larger and smaller than the weight."""
    mbconv = randomise(MBConv(8))
    x = torch.randn(2, *size, 8)
    plain, calls = mbconv(x), []
    mbconv.pointwise.register_forward_hook(lambda *args: calls.append(args))
    assert relative_error(mbconv(x), plain) < 1e-5
    assert len(calls) == 1
    prune.random_unstructured(mbconv.pointwise, "weight", 0.5)
    for _ in range(2):
        mbconv(x).sum().backward()
