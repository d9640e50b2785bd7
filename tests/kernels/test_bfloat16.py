"""The CPU kernels under bfloat16 autocast, compared with float32 and with torch's own autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, loss_of, randomise, relative_error
from torch import Tensor, nn

from mmgcvit import kernels
from mmgcvit.backbone.layers import MBConv
from mmgcvit.compat import onednn_has_bfloat16
from mmgcvit.kernels import cpu, eager, processor, products, reference

pytestmark = pytest.mark.skipif(not onednn_has_bfloat16(), reason="oneDNN has no bfloat16 on this processor")
ROUNDING = 2**-7  # relative error of a few roundings to bfloat16


@pytest.fixture(autouse=True)
def forced(monkeypatch) -> None:
    """Use the bfloat16 kernels on any processor that has them, for inputs of any size, in several chunks."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(products, "MIN_ONEDNN", 0)
    monkeypatch.setattr(cpu, "MAX_PACK", 6000)
    monkeypatch.setattr(cpu, "MAX_KEPT_PACK", 6000)
    torch.manual_seed(1)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def compare(got: Callable, wanted: Callable, inputs: Sequence[Tensor], tolerance: float = ROUNDING) -> None:
    """Compare outputs and gradients under autocast with those in float32."""
    b = wanted()
    with torch.no_grad(), autocast():
        a = got()
    assert a.dtype is torch.bfloat16
    assert relative_error(a.float(), b) < tolerance
    with autocast():
        a = got()
    assert a.dtype is torch.bfloat16
    assert relative_error(a.float(), b) < tolerance
    weight = torch.randn_like(b)
    for x, y in zip(
        torch.autograd.grad((a * weight).sum(), inputs), torch.autograd.grad((b * weight).sum(), inputs), strict=True
    ):
        assert x.dtype is y.dtype
        assert relative_error(x, y) < 2 * tolerance


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_and_mlp(bias: bool, dtype: torch.dtype):
    fc1, fc2 = randomise(nn.Linear(12, 20, bias=bias)), randomise(nn.Linear(20, 7, bias=bias))
    x = torch.randn(3, 49, 12).to(dtype).requires_grad_()

    def plain(*modules: nn.Linear) -> Tensor:
        y = F.linear(x.float(), modules[0].weight, modules[0].bias)
        return reference.linear(fc2, F.gelu(y)) if len(modules) > 1 else y

    compare(lambda: cpu.linear(fc1, x), lambda: plain(fc1), [x, *fc1.parameters()])
    compare(lambda: cpu.mlp(fc1, fc2, x), lambda: plain(fc1, fc2), [x, *fc1.parameters(), *fc2.parameters()])


def test_added_tensor(monkeypatch):
    """One product computes the sum, which is rounded to bfloat16 once; a float32 tensor is added afterwards."""
    fc1, fc2 = randomise(nn.Linear(12, 20)), randomise(nn.Linear(20, 7))
    x, calls, real = torch.randn(3, 49, 12), [], products._onednn_linear_sum
    monkeypatch.setattr(products, "_onednn_linear_sum", lambda *args: calls.append(args) or real(*args))
    for dtype in (torch.bfloat16, torch.float32):
        added, added2 = torch.randn(3, 49, 20).to(dtype), torch.randn(3, 49, 7).to(dtype)
        with torch.no_grad(), autocast():
            y, z = cpu.linear(fc1, x, added), cpu.mlp(fc1, fc2, x, added2)
        assert y.dtype is z.dtype is dtype
        assert len(calls) == 2
        assert relative_error(y.float(), added + fc1(x)) < 1e-2
        assert relative_error(z.float(), added2 + fc2(F.gelu(fc1(x)))) < 1e-2


def test_gradients_of_weights_are_summed_in_float32():
    """Gradients of 1000 packs, each rounded to bfloat16 once; a sum in bfloat16 would stop growing at 256."""
    module, x = nn.Linear(4, 4), torch.ones(3, 4)
    kernel = cpu.with_cast_weights(kernels.dispatch.CPU)
    with autocast():
        loss = sum(kernel.linear(module, x).sum() for _ in range(1000))
    loss.backward()
    assert torch.equal(module.weight.grad, torch.full((4, 4), 3000.0))
    assert torch.equal(module.bias.grad, torch.full((4,), 3000.0))


def test_weights_are_cast_once_per_call(monkeypatch):
    fc1, fc2, casts = nn.Linear(4, 8), nn.Linear(8, 4), []
    kernel = cpu.with_cast_weights(kernels.dispatch.CPU)
    monkeypatch.setattr(products, "_onednn_linear", lambda x, w, b, *_: casts.append(w) or F.linear(x, w, b))
    with torch.no_grad(), autocast():
        for _ in range(3):
            kernel.mlp(fc1, fc2, torch.randn(5, 4))
    assert len({id(weight) for weight in casts}) == 2
    with torch.no_grad():  # a later call must see changed weights, also those changed behind autograd's back
        fc1.weight.data.zero_()
        fc1.bias.data.fill_(1)
    with torch.no_grad(), autocast():
        fresh = cpu.with_cast_weights(kernels.dispatch.CPU)
        assert (fresh.linear(fc1, torch.randn(5, 4)) == 1).all()


@pytest.mark.parametrize("size", [(7, 9), (8, 8)])
def test_mbconv_tail(size: tuple[int, int]):
    mbconv = randomise(MBConv(8))
    x, y = (torch.randn(3, *size, 8).bfloat16().requires_grad_() for _ in range(2))
    weights = [p for n, p in mbconv.named_parameters() if not n.startswith("depthwise")]
    compare(
        lambda: cpu.mbconv_tail(x, y * 1, mbconv.se, mbconv.pointwise),
        lambda: reference.mbconv_tail(x.float(), y.float(), mbconv.se, mbconv.pointwise),
        [x, y, *weights],
    )


def test_residual_keeps_bfloat16():
    x, y = (torch.randn(15, 6).bfloat16().requires_grad_() for _ in range(2))
    scale = torch.tensor([0.0, 1.25]).repeat_interleave(torch.tensor([7, 8]))[:, None]
    compare(
        lambda: eager.residual(x, lambda: y, None, scale),
        lambda: x.float() + y.float() * scale,
        [x, y],
    )


@pytest.mark.parametrize("pad", ["input", "stage", "window"])
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_network(tiny_model, pad: str, layer_scale: float | None):
    """Maps within 1.2e-2 of float32 by the norm; gradients no further from float32 than those of torch's autocast."""
    model = tiny_model(pad=pad, drop_path_rate=0.3, arch={**TINY, "layer_scale": layer_scale})
    images = torch.randn(2, 3, 75, 90)

    def run(amp: bool, *disabled: str) -> tuple[list[Tensor], Tensor]:
        torch.manual_seed(1)
        model.train().zero_grad()
        with kernels.disabled(*disabled), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss_of(model(images)).backward()
            with torch.no_grad():
                maps = model.eval()(images)
        return [m.float() for m in maps], torch.cat([p.grad.flatten() for p in model.parameters()])

    maps, gradient = run(False)
    by_torch = relative_error(run(True, *kernels.KERNELS)[1], gradient)
    got, own = run(True)
    for a, b in zip(got, maps, strict=True):
        assert (a - b).norm() < 1.2e-2 * b.norm()
    assert relative_error(own, gradient) < 1.5 * by_torch + 1e-2


def test_second_derivatives():
    fc1, fc2 = randomise(nn.Linear(6, 8)), randomise(nn.Linear(8, 3))
    x = torch.randn(5, 6).bfloat16().requires_grad_()

    def second(y: Tensor) -> Tensor:
        (first,) = torch.autograd.grad((y.float() ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((first.float() ** 2).sum(), fc1.weight)[0]

    with autocast():
        got = second(cpu.mlp(fc1, fc2, x))
    assert relative_error(got, second(reference.mlp(fc1, fc2, x.float()))) < 0.05


def test_a_model_in_bfloat16_without_autocast(tiny_model):
    model, images = tiny_model(pad="window").eval(), torch.randn(2, 3, 75, 90)
    with torch.no_grad():
        wanted = model(images)
        got = model.bfloat16()(images.bfloat16())
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype is torch.bfloat16
        assert relative_error(a.float(), b) < 3e-2
