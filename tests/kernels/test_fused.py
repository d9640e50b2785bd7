"""The Triton kernel of window attention: on a GPU if there is one, otherwise in Triton's interpreter on the CPU.

Triton reads TRITON_INTERPRET when it is imported, so without a GPU this file runs itself in a process with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, loss_of, relative_error
from torch import Tensor

from mmgcvit import kernels
from mmgcvit.kernels import dispatch, reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
runs = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="no GPU, and TRITON_INTERPRET is not set")
WINDOWS = {  # name: windows, heads, tokens, d, first dimension of the query (None: local attention)
    "7 x 7, local": (5, 2, 49, 32, None),
    "7 x 7, a query per window": (3, 2, 49, 32, 3),
    "7 x 7, one query for all windows": (5, 1, 49, 32, 1),
    "14 x 14, global": (2, 1, 196, 32, 2),
    "24 x 24, local": (1, 1, 576, 16, None),
    "7 x 5 and padding, one query for all windows": (4, 3, 36, 20, 1),
    "8 x 8 and padding, local": (3, 1, 65, 40, None),
    "1 x 1 and padding, local": (3, 2, 2, 4, None),
}


def random_inputs(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
    windows, heads, tokens, d, queries = WINDOWS[name]
    torch.manual_seed(0)
    qkv = torch.randn(windows, tokens, heads * (3 if queries is None else 2) * d, dtype=dtype, device=DEVICE)
    query = None if queries is None else torch.randn(queries, heads, tokens, d, dtype=dtype, device=DEVICE)
    # Rows aligned to 16 elements, as those of full windows are on a GPU.
    bias = torch.randn(heads, tokens, tokens + -tokens % 16, dtype=dtype, device=DEVICE)[..., :tokens]
    return tuple(None if t is None else t.requires_grad_() for t in (qkv, query, bias))


@runs
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("float16", 2e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("name", WINDOWS)
def test_parity_with_the_reference(monkeypatch, name: str, dtype: str, tolerance: float):
    """Outputs and gradients against the reference in double precision; windows are summed in several groups."""
    from mmgcvit.kernels import fused

    if INTERPRETED and dtype == "bfloat16":
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 numbers")
    if INTERPRETED and WINDOWS[name][2] > 200:
        monkeypatch.setattr(fused, "MAX_BLOCK", 256)  # fewer steps for the interpreter
    monkeypatch.setattr(fused, "PROGRAMS", 4)
    heads = WINDOWS[name][1]
    inputs = random_inputs(name, getattr(torch, dtype))
    assert fused.supports(*inputs, heads)
    got = fused.window_attention(*inputs, heads)
    assert type(got.grad_fn).__name__ == "WindowAttentionBackward"
    exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
    wanted = reference.window_attention(*exact, heads)
    assert got.dtype == inputs[0].dtype
    assert relative_error(got.double(), wanted) < tolerance
    gradient = torch.randn_like(got)
    gradients = torch.autograd.grad(got, [t for t in inputs if t is not None], gradient)
    for a, b in zip(
        gradients, torch.autograd.grad(wanted, [t for t in exact if t is not None], gradient.double()), strict=True
    ):
        assert relative_error(a.double(), b) < tolerance
    with torch.no_grad():
        assert torch.equal(fused.window_attention(*inputs, heads), got)


@runs
def test_inputs_that_are_views():
    """Slices of a packed tensor, expanded queries, and a gradient that is not contiguous."""
    from mmgcvit.kernels import fused

    torch.manual_seed(0)
    packed = torch.randn(4, 9, 2 * 2 * 8, device=DEVICE, requires_grad=True)
    query = torch.randn(1, 9, 2, 8, device=DEVICE, requires_grad=True)
    bias = torch.randn(9, 9, 2, device=DEVICE, requires_grad=True)
    results = []
    for attention in (fused.window_attention, reference.window_attention):
        y = attention(packed[1:], query.transpose(1, 2).expand(3, -1, -1, -1), bias.permute(2, 0, 1), 2)
        results.append([y, *torch.autograd.grad(y.mT.sum(1).square().sum(), [packed, query, bias])])
    for got, wanted in zip(*results, strict=True):
        assert relative_error(got, wanted) < 1e-5


@runs
def test_second_derivatives():
    from mmgcvit.kernels import fused

    def plain(qkv: Tensor, query: Tensor | None, bias: Tensor, heads: int) -> Tensor:
        return reference.plain_attention(*reference.split_heads(qkv, query, heads), bias).transpose(1, 2).flatten(2)

    found = []
    for attention in (fused.window_attention, plain):
        inputs = random_inputs("1 x 1 and padding, local", torch.float32)
        tensors = [t for t in inputs if t is not None]
        first = torch.autograd.grad(attention(*inputs, 2).square().sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    for got, wanted in zip(*found, strict=True):
        assert relative_error(got, wanted) < 1e-5


@runs
def test_what_the_kernel_does_not_support_runs_in_the_reference():
    from mmgcvit.kernels import fused

    qkv, query, bias = random_inputs("7 x 7, a query per window", torch.float32)
    assert fused.supports(qkv, query, bias, 2)
    assert not fused.supports(qkv, query, bias, 2, dropout=0.1)
    assert not fused.supports(qkv.double(), query.double(), bias.double(), 2)
    assert not fused.supports(qkv, query, bias.double(), 2)
    assert not fused.supports(qkv.to("meta"), query.to("meta"), bias.to("meta"), 2)
    assert not fused.supports(qkv[:0], query[:0], bias, 2)
    assert not fused.supports(
        torch.zeros(1, 4, 2 * 65, device=DEVICE), torch.zeros(1, 1, 4, 65, device=DEVICE), bias[:1], 1
    )
    if INTERPRETED:
        assert not fused.supports(qkv.bfloat16(), query.bfloat16(), bias.bfloat16(), 2)
    exact = [t.detach().double() for t in (qkv, query, bias)]
    got = fused.window_attention(*exact, 2)
    assert torch.equal(got, reference.window_attention(*exact, 2))


@runs
def test_network(monkeypatch, tiny_model):
    """The kernel runs in unmodified blocks and eager mode only; maps and gradients are those of the default."""
    from mmgcvit.kernels import fused

    calls = []
    plain = fused.window_attention
    monkeypatch.setattr(fused, "window_attention", lambda *args: calls.append(args[0].shape) or plain(*args))
    model, images = tiny_model(pad="window").to(DEVICE).train(), torch.randn(2, 3, 33, 40, device=DEVICE)
    wanted = model(images)
    loss_of(wanted).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with kernels.enabled("triton_attention"):
        monkeypatch.setitem(dispatch._tables, "cpu", dispatch._tables["eager"])
        maps = model(images)
        assert len(calls) > 8  # at least once per block
        loss_of(maps).backward()
        block, chosen = model.stages[0].blocks[0], []
        torch.func.vmap(lambda x: chosen.append(kernels.choose(x, block)) or x)(images)
        torch.jit.trace(lambda x: chosen.append(kernels.choose(x, block)) or x, images, check_trace=False)
        assert chosen == [kernels.REFERENCE] * 2
        calls.clear()
        for stage in model.stages:
            for block in stage.blocks:
                block.register_forward_hook(lambda *_: None)
        model(images)
        assert calls == []
    for got, w in zip([*maps, *(p.grad for p in model.parameters())], [*wanted, *gradients], strict=True):
        assert relative_error(got, w) < 2e-4


def test_off_by_default():
    assert dispatch._tables["eager"] is dispatch.EAGER
    with kernels.enabled("triton_attention"):
        from mmgcvit.kernels import fused

        assert dispatch._tables["eager"].attention is fused.attention
        assert dispatch._tables["eager"].position_biases is dispatch.EAGER.position_biases
        with kernels.disabled("window_attention"):
            assert dispatch._tables["eager"].attention is reference.attention
        assert dispatch._tables["eager"].attention is fused.attention
    assert dispatch._tables["eager"] is dispatch.EAGER
    with pytest.raises(ValueError, match=r"enabled: 'triton'; allowed: triton_attention"), kernels.enabled("triton"):
        pass


@pytest.mark.skipif(INTERPRETED, reason="Triton interprets")
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_kernels_compile_without_a_gpu(monkeypatch, tmp_path, dtype: str):
    """The interpreter accepts programs that the compiler refuses. 99 KiB of shared memory is what an RTX 4090 has."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mmgcvit.kernels import fused

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    qkv = torch.zeros(2, 49, 2 * 3 * 32, dtype=dict(bf16=torch.bfloat16, fp32=torch.float32)[dtype])
    constants = fused._constants(qkv, reference.split_heads(qkv, None, 2)[1])
    options = dict(num_stages=constants.pop("num_stages"), num_warps=4)
    for kernel in (fused._forward, fused._backward_queries, fused._backward_keys):
        values = constants | dict(SINGLE=constants["BLOCK"] >= 49)
        float32 = ("logsumexp", "delta", "d_bias")
        kinds = dict.fromkeys(float32, "*fp32") | dict(scale="fp32")
        kinds |= dict.fromkeys(("q", "qkv", "bias", "out", "gradient", "d_q", "d_qkv"), f"*{dtype}")
        names = kernel.arg_names
        signature = {name: "constexpr" if name in values else kinds.get(name, "i32") for name in names}
        source = ASTSource(kernel, signature, {(names.index(k),): v for k, v in values.items() if k in names})
        compiled = triton.compile(source, target=GPUTarget("cuda", 89, 32), options=options)
        assert compiled.metadata.shared < 99 * 1024
        assert ("mma.sync" in compiled.asm["ptx"]) == (dtype == "bf16")  # tensor cores; not in exact float32


def run_in_the_interpreter(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.skipif(INTERPRETED or DEVICE != "cpu", reason="runs the tests above in the interpreter")
def test_in_the_interpreter():
    run_in_the_interpreter(__file__)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="runs the parity tests of all implementations in the interpreter")
def test_in_the_interpreter_as_the_other_implementations():
    run_in_the_interpreter(Path(__file__).with_name("test_kernels.py"), "-k", "triton and not size0 and not size1")
