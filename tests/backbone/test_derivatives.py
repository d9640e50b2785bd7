"""Second derivatives, ``torch.func`` and forward-mode differentiation of the network."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY, loss_of, relative_error
from torch import Tensor, nn
from torch.autograd import forward_ad

from mmgcvit import kernels
from mmgcvit.backbone.windows import PAD_MODES

SHALLOW = dict(depths=(1, 2, 2, 1))
IMAGES = (2, 3, 40, 56)  # padded in every mode


@pytest.fixture(params=PAD_MODES)
def model(request, tiny_model) -> nn.Module:
    return tiny_model(pad=request.param, arch={**TINY, **SHALLOW}).double()


@pytest.mark.parametrize("frozen", ["", "parameters", "bias tables"])
def test_second_derivatives_match_finite_differences(model: nn.Module, frozen: str):
    """For the input and, if there are any, the parameters that are trained."""
    for name, parameter in model.named_parameters():
        if frozen == "parameters" or (frozen and "bias_table" in name):
            parameter.requires_grad_(False)
    inputs = [torch.randn(IMAGES, dtype=torch.double, requires_grad=True)]
    inputs += [parameter for parameter in model.parameters() if parameter.requires_grad]
    directions = [torch.randn_like(x) for x in inputs]

    def gradient(create_graph: bool = False) -> Tensor:
        """Derivative of the loss along the directions, or a function of it."""
        return torch.autograd.grad(loss_of(model(inputs[0])), inputs, create_graph=create_graph)

    along = sum((g * d).sum() for g, d in zip(gradient(True), directions, strict=True))
    products = torch.autograd.grad(along, inputs, materialize_grads=True)
    step = 1e-6
    ends = []
    for sign in (1, -2):  # to +step, then to -step
        with torch.no_grad():
            for x, d in zip(inputs, directions, strict=True):
                x += sign * step * d
        ends.append(gradient())
    differences = [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
    norm = sum(p.square().sum() for p in products).sqrt()
    error = sum((p - d).square().sum() for p, d in zip(products, differences, strict=True)).sqrt()
    assert norm > 0
    assert error / norm < 1e-5


def test_second_derivatives_of_each_implementation(model: nn.Module):
    """The same with and without each of the CPU's kernels, from ``hvp`` and from a gradient penalty."""
    images = torch.randn(IMAGES, dtype=torch.double)

    def penalty() -> list[Tensor]:
        x = images.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss_of(model(x)), x, create_graph=True)
        g.square().sum().backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    with kernels.disabled(*kernels.KERNELS):
        wanted = penalty()
        _, product = torch.autograd.functional.hvp(lambda x: loss_of(model(x)), images, images.cos())
    assert (
        relative_error(torch.autograd.functional.hvp(lambda x: loss_of(model(x)), images, images.cos())[1], product)
        < 1e-8
    )
    for got, w in zip(penalty(), wanted, strict=True):
        assert (got - w).abs().max() < 1e-8 * max(1.0, w.abs().max())


def test_torch_func(model: nn.Module):
    """Gradients of all parameters, per-image gradients, and Jacobian-vector products in both modes."""
    images, parameters = torch.randn(IMAGES, dtype=torch.double), dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
        return loss_of(torch.func.functional_call(model, parameters, (images,)))

    got = torch.func.grad(loss)(parameters, images)
    wanted = torch.autograd.grad(loss_of(model(images)), list(parameters.values()))
    for g, w in zip(got.values(), wanted, strict=True):
        assert (g - w).abs().max() < 1e-9 * max(1.0, w.abs().max())

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images[:, None])
    single = torch.func.grad(loss)(parameters, images[1:])
    name = "stages.1.blocks.0.attn.relative_position_bias_table"
    assert relative_error(each[name][1], single[name]) < 1e-9

    direction = torch.randn_like(images)
    _, forward = torch.func.jvp(lambda x: loss_of(model(x)), (images,), (direction,))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(loss_of(model(forward_ad.make_dual(images, direction)))).tangent
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(model(x)), x)
    for value in (forward, dual):
        assert torch.allclose(value, (gradient * direction).sum())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("pad", PAD_MODES)
def test_gradients_with_a_graph_equal_those_without(tiny_model, pad: str, batch: int):
    """Inputs of an operation may be computed from each other: keys from the global query of an earlier block of the
    stage, and the queries of smaller windows from that of full ones.
    """
    model = tiny_model(pad=pad, arch={**TINY, "depths": (2, 4, 2, 2), "layer_scale": None}).double()
    images = torch.randn(batch, 3, 75, 90, dtype=torch.double, requires_grad=True)
    inputs = [images, *model.parameters()]
    wanted, found = (torch.autograd.grad(loss_of(model(images)), inputs, create_graph=graph) for graph in (False, True))
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-9 * max(1.0, b.abs().max())
