"""Linear maps, on some CPUs by oneDNN."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmgcvit.backbone.eager import autocasts_on_cpu, eager_on_cpu, is_ordinary, is_plain

SMALL = 2**15  # elements of an input from which on a convolution pays; torch gives oneDNN none with 20480 or fewer


@cache
def onednn_is_faster() -> bool:
    """Whether this is a processor on which oneDNN's products of matrices are faster than those of torch.

    torch takes MKL's, which uses half of the width of AMD's vector units with AVX-512. `docs/performance.md` has
    figures. It goes by the processor's name, not by a measurement: results must not differ from run to run.
    """
    info = Path("/proc/cpuinfo")
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and info.exists()
        and "AuthenticAMD" in info.read_text()
    )


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x's product with a weight is for oneDNN: both plain float32, neither small nor under autocast."""
    # First of all, as compilers are to see nothing of the rest.
    return (
        eager_on_cpu(x)
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > SMALL
        and is_ordinary(weight)
        and onednn_is_faster()
        and torch._C._get_mkldnn_enabled()
        and not autocasts_on_cpu()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, without a gradient: (..., C), (C', C), (C',) -> (..., C')."""
    if not by_onednn(x, weight):
        return F.linear(x, weight, bias)
    # A convolution over a picture of one column. That its kernel of 1 x 1 is dilated changes nothing in the result; it
    # makes torch give it to oneDNN also where it has one thread.
    y = F.conv2d(_picture(x), weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Sum over all rows of their outer products: (..., C'), (..., C) -> (C', C)."""
    rows = x.numel() // x.shape[-1]
    even = rows // 4 * 4  # other numbers of pixels are slow
    gradient, x = gradient.reshape(rows, -1), x.reshape(rows, -1)
    weight = gradient.new_empty(gradient.shape[1], x.shape[1])
    if not by_onednn(x[:even], weight):
        return gradient.T @ x
    weight = torch.ops.aten.convolution_backward(
        _picture(gradient[:even]),
        _picture(x[:even]),
        weight[:, :, None, None],
        None,
        [1, 1],
        [0, 0],
        [2, 2],
        False,
        [0, 0],
        1,
        [False, True, False],
    )[1][:, :, 0, 0]
    return weight if even == rows else torch.addmm(weight, gradient[even:].T, x[even:])


def _picture(x: Tensor) -> Tensor:
    """(..., C) -> (1, C, rows, 1), channels last in memory."""
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


def linear(module: nn.Linear, x: Tensor, gelu: bool = False) -> Tensor:
    """module(x), or module(GELU(x)): (..., C) -> (..., C').

    Not called, but worked out by :func:`product`, where the module is plain and that is faster. In training on a CPU
    the activation is computed anew, too, while autograd would keep it beside its input: of what a block keeps, that is
    a fifth, and memory is what CPUs wait for.
    """
    if eager_on_cpu(x) and is_plain(module, nn.Linear):
        recompute = gelu and torch.is_grad_enabled() and x.dtype == module.weight.dtype
        if recompute or by_onednn(x, module.weight):
            return _Linear.apply(x, module.weight, module.bias, gelu)
    return module(F.gelu(x) if gelu else x)


class _Linear(torch.autograd.Function):
    """x @ weight.T + bias, or gelu(x) in x's place. Of the activation, x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
        """(..., C), (C', C), (C',) -> (..., C')."""
        ctx.save_for_backward(x, weight)
        ctx.gelu = gelu
        return product(F.gelu(x) if gelu else x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of forward's arguments, where they are wanted."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = product(gradient, weight.T)
            if ctx.gelu:
                d_x = torch.ops.aten.gelu_backward(d_x, x)
        if ctx.needs_input_grad[1]:
            d_weight = weight_gradient(gradient, F.gelu(x) if ctx.gelu else x)
        if ctx.needs_input_grad[2]:
            d_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return d_x, d_weight, d_bias, None
