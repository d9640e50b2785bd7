"""When the gradient of a weight is computed by products, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import loss_of, randomise
from torch import nn

from mmgcvit import kernels
from mmgcvit.kernels import cpu_convolution, processor, reference
from mmgcvit.kernels.cpu_convolution import Convolution, convolution


@pytest.fixture
def applied(monkeypatch) -> list:
    """Convolutions that were computed by products, on any processor and for any size."""
    calls, real = [], Convolution.apply
    monkeypatch.setattr(Convolution, "apply", lambda *args: calls.append(args) or real(*args))
    monkeypatch.setattr(processor, "weight_gradients_are_slow", lambda: True)
    monkeypatch.setattr(cpu_convolution, "MIN_CHANNELS", 6)
    monkeypatch.setattr(cpu_convolution, "MIN_ELEMENTS", 2 * 9 * 8 * 6)
    return calls


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.weight.requires_grad_(False),
        lambda module: module.double(),
        lambda module: setattr(module, "dilation", (2, 2)),
        lambda module: setattr(module, "padding_mode", "circular"),
    ],
)
def test_other_convolutions_are_left_to_torch(applied, change: Callable):
    module, x = nn.Conv2d(6, 6, 3, 2, 1), torch.randn(2, 9, 8, 6)
    convolution(module, x)
    assert len(applied) == 1
    change(module)
    x = x.to(module.weight.dtype)
    torch.testing.assert_close(convolution(module, x), reference.convolution(module, x))
    assert len(applied) == 1


def test_small_maps_and_other_modes_are_left_to_torch(applied):
    module, x = nn.Conv2d(6, 6, 3, 2, 1), torch.randn(2, 9, 8, 6)
    with torch.no_grad():
        convolution(module, x)
    with torch.autocast("cpu", torch.bfloat16):
        convolution(module, x)
    convolution(module, x[:, :8])
    convolution(nn.Conv2d(3, 6, 3), torch.randn(2, 19, 18, 3))
    convolution(nn.Conv2d(6, 6, 3, groups=2), x)
    convolution(nn.Conv2d(6, 6, 3, padding="same"), x)
    assert not applied


def test_in_the_network(applied, monkeypatch, tiny_model):
    """All four strided convolutions of the stages, with patches of a few rows at a time."""
    monkeypatch.setattr(cpu_convolution, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(cpu_convolution, "MAX_PATCHES", 5000)
    model, images = tiny_model(pad="window").train(), torch.randn(2, 3, 90, 70)
    gradients = []
    for names in ((), ("convolution",)):
        model.zero_grad()
        with kernels.disabled(*names):
            loss_of(model(images)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(applied) == 4
    for got, wanted in zip(*gradients, strict=True):
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-6


@pytest.mark.parametrize("name", ["AVX2", "AVX512", "DEFAULT"])
def test_only_with_avx2(monkeypatch, name: str):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: name)
    uncached = processor.weight_gradients_are_slow.__wrapped__
    assert uncached() == (name == "AVX2" and torch.backends.mkldnn.is_available())


def test_derivatives():
    """First and second, compared with finite differences."""
    module = randomise(nn.Conv2d(2, 3, 3, 2, 1)).double()
    x = torch.randn(2, 4, 5, 2, dtype=torch.double, requires_grad=True)

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        return Convolution.apply(*inputs, (2, 2), (1, 1))

    inputs = (x, module.weight, module.bias)
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
