"""Linear maps by oneDNN against torch's own, on any processor: what decides is made to say yes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error
from torch import nn

from mmgcvit import GCViT
from mmgcvit.backbone import linear as linear_module
from mmgcvit.backbone.linear import by_onednn, linear, product

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def onednn(monkeypatch) -> list:
    """oneDNN for inputs of any size; lists the shapes of their pictures of one column."""
    calls, real = [], F.conv2d

    def spy(x, *args, **kwargs):
        if len(x) == x.shape[3] == 1:
            calls.append(tuple(x.shape))
        return real(x, *args, **kwargs)

    monkeypatch.setattr(linear_module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear_module, "SMALL", 0)
    monkeypatch.setattr(F, "conv2d", spy)
    return calls


# Numbers of rows that 4 divides and does not; inputs that torch gives to oneDNN and that are too small for it.
@pytest.mark.parametrize("shape", [(2, 49, 3, 8), (3, 7, 8), (5, 6), (100, 7, 2, 40), (1,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [False, True])
def test_equals_torchs(onednn, shape: tuple[int, ...], bias: bool, gelu: bool):
    x = torch.randn(*shape, 12, requires_grad=True)
    module = randomise(nn.Linear(12, 20, bias=bias))
    inputs = [x, *module.parameters()]
    got = linear(module, x, gelu)
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
        assert torch.equal(linear(module, x, gelu), got)


@pytest.mark.parametrize("gelu", [False, True])
def test_one_row_without_a_batch(onednn, gelu: bool):
    module, x = nn.Linear(12, 20), torch.randn(12, requires_grad=True)
    got = linear(module, x, gelu)
    assert relative_error(got, module(F.gelu(x) if gelu else x)) < 1e-6
    got.sum().backward()
    assert module.bias.grad.shape == (20,)


def test_inputs_that_lie_elsewhere_in_memory(onednn):
    x, weight = torch.randn(12, 9, 5).permute(2, 1, 0), torch.randn(12, 7).T
    assert relative_error(product(x, weight), F.linear(x, weight)) < 1e-6
    assert onednn == [(1, 12, 45, 1)]


def test_only_the_gradients_that_are_wanted(onednn):
    module, x = nn.Linear(12, 20), torch.randn(3, 4, 12)
    module.weight.requires_grad_(False)
    linear(module, x).sum().backward()
    assert module.weight.grad is None
    assert torch.equal(module.bias.grad, torch.full((20,), 12.0))


def test_what_is_left_to_torch(onednn, monkeypatch):
    x, weight = torch.randn(100, 12), torch.randn(20, 12)
    assert by_onednn(x, weight)
    assert not by_onednn(x.double(), weight.double())
    assert not by_onednn(x.bfloat16(), weight.bfloat16())
    assert not by_onednn(x.to("meta"), weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(x, weight)
        assert linear(nn.Linear(12, 20), x).dtype is torch.bfloat16

    class Quantised(torch.Tensor):
        """A weight that computes in its own way."""

    assert not by_onednn(x, weight.as_subclass(Quantised))
    monkeypatch.setattr(linear_module, "SMALL", 1200)
    assert not by_onednn(x, weight)
    monkeypatch.setattr(linear_module, "SMALL", 0)
    monkeypatch.setattr(linear_module, "onednn_is_faster", lambda: False)
    assert not by_onednn(x, weight)


@pytest.mark.parametrize("pad", ["input", "stage", "window"])
def test_the_backbone_by_either(onednn, pad: str, monkeypatch):
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
    monkeypatch.setattr(linear_module, "onednn_is_faster", lambda: False)
    onednn.clear()
    for a, b in zip(by_it, run(), strict=True):
        assert relative_error(a, b) < 1e-4
    assert not onednn


def test_a_module_that_is_not_plain_is_called(onednn):
    module, seen = nn.Linear(12, 20), []
    x = torch.randn(100, 12)
    linear(module, x)
    assert len(onednn) == 1
    module.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    got = linear(module, x)
    assert got is seen[0][1]
    assert seen[0][0] is x
    assert len(onednn) == 1
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(12, 20)), {nn.Linear})
    assert relative_error(linear(quantised[0], x), quantised(x)) == 0
