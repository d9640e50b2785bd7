"""Linear layers computed by oneDNN, compared with torch's own; oneDNN is forced on any processor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from torch import nn

from mmgcvit import GCViT
from mmgcvit.kernels import dispatch, processor, products
from mmgcvit.kernels.cpu import linear
from mmgcvit.kernels.products import Linear, product, product_dtype

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def onednn(monkeypatch) -> list:
    """Force oneDNN for inputs of any size; yields the list of shapes passed to its convolutions."""
    calls, real = [], F.conv2d

    def spy(x, *args, **kwargs):
        if len(x) == x.shape[3] == 1:
            calls.append(tuple(x.shape))
        return real(x, *args, **kwargs)

    monkeypatch.setattr(processor, "convolutions_are_faster", lambda: True)
    monkeypatch.setattr(products, "MIN_ONEDNN", 0)
    monkeypatch.setattr(F, "conv2d", spy)
    return calls


def apply(module: nn.Linear, x: torch.Tensor, gelu: bool) -> torch.Tensor:
    if not torch.is_grad_enabled():
        return product(F.gelu(x) if gelu else x, module.weight, module.bias)
    return Linear.apply(x, module.weight, module.bias, module.weight, module.bias, gelu)


# Numbers of rows that are and are not multiples of 4; inputs large enough and too small for torch to use oneDNN.
@pytest.mark.parametrize("shape", [(2, 49, 3, 8), (3, 7, 8), (5, 6), (100, 7, 2, 40), (1,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [False, True])
def test_equals_torch(onednn, shape: tuple[int, ...], bias: bool, gelu: bool):
    x = torch.randn(*shape, 12, requires_grad=True)
    module = randomise(nn.Linear(12, 20, bias=bias))
    inputs = [x, *module.parameters()]
    got = apply(module, x, gelu)
    assert len(onednn) == 1
    wanted = F.linear(F.gelu(x) if gelu else x, module.weight, module.bias)
    assert got.shape == wanted.shape
    assert got.is_contiguous()
    assert relative_error(got, wanted) < 1e-6
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-5
    with torch.no_grad():
        assert torch.equal(apply(module, x, gelu), got)


@pytest.mark.parametrize("gelu", [False, True])
def test_one_row_without_a_batch(onednn, gelu: bool):
    module, x = nn.Linear(12, 20), torch.randn(12, requires_grad=True)
    got = apply(module, x, gelu)
    assert relative_error(got, module(F.gelu(x) if gelu else x)) < 1e-6
    got.sum().backward()
    assert module.bias.grad.shape == (20,)


def test_non_contiguous_inputs(onednn):
    x, weight = torch.randn(12, 9, 5).permute(2, 1, 0), torch.randn(12, 7).T
    assert relative_error(product(x, weight), F.linear(x, weight)) < 1e-6
    assert onednn == [(1, 12, 45, 1)]


def test_only_required_gradients_are_computed(onednn):
    module, x = nn.Linear(12, 20), torch.randn(3, 4, 12)
    module.weight.requires_grad_(False)
    linear(module, x).sum().backward()
    assert module.weight.grad is None
    assert torch.equal(module.bias.grad, torch.full((20,), 12.0))


def test_unsupported_cases_use_torch(onednn, monkeypatch):
    x, weight = torch.randn(100, 12), torch.randn(20, 12)
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: False)
    assert product_dtype(x, weight) is torch.float32
    assert product_dtype(x.double(), weight.double()) is None
    assert product_dtype(x.bfloat16(), weight.bfloat16()) is None
    with torch.backends.mkldnn.flags(enabled=False):
        assert product_dtype(x, weight) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert product_dtype(x, weight) is None
        assert linear(nn.Linear(12, 20), x).dtype is torch.bfloat16

    monkeypatch.setattr(products, "MIN_ONEDNN", 1200)
    assert product_dtype(x, weight) is None
    monkeypatch.setattr(products, "MIN_ONEDNN", 0)
    onednn.clear()
    monkeypatch.setattr(processor, "convolutions_are_faster", lambda: False)
    monkeypatch.setattr(processor, "onednn_linear_is_faster", lambda: False)
    assert torch.equal(product(x, weight), F.linear(x, weight))
    assert not onednn


@pytest.mark.parametrize("pad", ["input", "stage", "window"])
def test_backbone_with_and_without_onednn(onednn, pad: str, monkeypatch):
    torch.manual_seed(0)
    model = randomise(
        GCViT(
            dict(embed_dims=8, depths=[2, 2, 3, 1], num_heads=[1, 2, 2, 4], window_size=[2, 2, 4, 2]),
            pad=pad,
            drop_path_rate=0.0,
        )
    )
    x = torch.randn(2, 3, 75, 90, requires_grad=True)

    def run() -> list[torch.Tensor]:
        maps = model(x)
        loss = sum(m.square().mean() for m in maps)
        return [*maps, *torch.autograd.grad(loss, [x, *model.parameters()])]

    by_it = run()
    assert len(onednn) > 50
    monkeypatch.setattr(processor, "convolutions_are_faster", lambda: False)
    monkeypatch.setitem(dispatch._tables, "cpu", dispatch.EAGER)
    onednn.clear()
    for a, b in zip(by_it, run(), strict=True):
        assert relative_error(a, b) < 2e-4
    assert not onednn
