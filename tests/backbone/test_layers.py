"""The parts of stem, stages and blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from torch.nn.utils import prune

from mmgcvit.backbone import layers
from mmgcvit.backbone.layers import Downsample, GeluLinear, GlobalQuery, MBConv, Stem


@pytest.mark.parametrize("size", [(5, 7), (2, 3)])
def test_mbconv_is_its_formula(size: tuple[int, int]):
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


@pytest.mark.parametrize("piece", [2**18, 20])
@pytest.mark.parametrize("frozen", [(), ("se.fc1.weight",), ("depthwise.weight", "pointwise.weight")])
def test_mbconv_on_a_map_larger_than_its_weight(monkeypatch, piece: int, frozen: tuple[str, ...]):
    """There the weight is scaled, and the activation is computed anew: with the gradients of the plain formula."""
    monkeypatch.setattr(layers, "PIECE", piece)
    mbconv = randomise(MBConv(8)).double()
    for name, parameter in mbconv.named_parameters():
        parameter.requires_grad_(name not in frozen)
    x = torch.randn(2, 5, 7, 8, dtype=torch.double, requires_grad=True)
    inputs = [x, *(p for p in mbconv.parameters() if p.requires_grad)]
    weight = torch.randn_like(x)
    got = mbconv(x)
    y = F.gelu(layers.conv_channels_last(mbconv.depthwise, x))
    wanted = x + mbconv.pointwise(y * mbconv.se(y.mean((1, 2), keepdim=True)))
    assert relative_error(got, wanted) < 1e-12
    for a, b in zip(torch.autograd.grad((got * weight).sum(), inputs),
                    torch.autograd.grad((wanted * weight).sum(), inputs), strict=True):
        assert relative_error(a, b) < 1e-10


def test_gelu_linear_keeps_its_input_alone():
    kept = []
    linear = randomise(GeluLinear(6, 4)).double()
    x = torch.randn(3, 5, 6, dtype=torch.double, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        got = linear(x)
    assert sorted(t.data_ptr() for t in kept) == sorted([x.data_ptr(), linear.weight.data_ptr()])
    wanted = F.linear(F.gelu(x), linear.weight, linear.bias)
    assert torch.equal(got, wanted)
    inputs = [x, *linear.parameters()]
    weight = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad((got * weight).sum(), inputs),
                    torch.autograd.grad((wanted * weight).sum(), inputs), strict=True):
        assert relative_error(a, b) < 1e-12
    linear.requires_grad_(False)
    linear(x).sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is None


def test_gelu_linear_drops_out_in_training_only():
    linear = GeluLinear(6, 4, drop_rate=0.5)
    x = torch.randn(3, 6)
    assert not torch.equal(linear(x), linear(x))
    linear.eval()
    assert torch.equal(linear(x), linear(x))


def test_mbconv_gives_gradients_to_what_it_was_computed_with():
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


@pytest.mark.parametrize("size", [(5, 7), (2, 3)])
def test_modules_with_hooks_are_called(size: tuple[int, int]):
    """On a map larger than the weight, and on one that is not: both are the formula."""
    mbconv = randomise(MBConv(8))
    x = torch.randn(2, *size, 8)
    plain, calls = mbconv(x), []
    mbconv.pointwise.register_forward_hook(lambda *args: calls.append(args))
    assert relative_error(mbconv(x), plain) < 1e-5
    assert len(calls) == 1
    prune.random_unstructured(mbconv.pointwise, "weight", 0.5)
    for _ in range(2):
        mbconv(x).sum().backward()
