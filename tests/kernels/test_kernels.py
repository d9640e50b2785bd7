"""Comparison of every implementation with its reference: outputs, gradients, odd sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, loss_of, randomise, relative_error
from torch import Tensor, nn
from torch.nn.utils import prune

from mmgcvit import kernels
from mmgcvit.backbone.attention import WindowAttention
from mmgcvit.backbone.gcvit import GCViT
from mmgcvit.backbone.layers import MBConv
from mmgcvit.backbone.windows import PAD_MODES, window_layout
from mmgcvit.kernels import cpu, cpu_attention, cpu_convolution, dispatch, eager, processor, products

# The same kernels with oneDNN's products, which are float32 only.
CONVOLUTION, ONEDNN = replace(dispatch.CPU), replace(dispatch.CPU)
FLOAT32 = {"convolutions_are_faster": CONVOLUTION, "onednn_linear_is_faster": ONEDNN}
IMPLEMENTATIONS = {"eager": dispatch.EAGER, "cpu": dispatch.CPU, **FLOAT32}
if os.environ.get("TRITON_INTERPRET") == "1":  # set by tests/kernels/test_fused.py
    with kernels.enabled("triton_attention"):
        IMPLEMENTATIONS["triton"] = dispatch._tables["eager"]


@pytest.fixture(params=IMPLEMENTATIONS)
def ops(request, monkeypatch) -> Iterator[kernels.Kernels]:
    """Each implementation, with limits so small that everything runs in several chunks, and with oneDNN forced."""
    monkeypatch.setattr(cpu, "MAX_PACK", 250)
    monkeypatch.setattr(cpu, "MAX_KEPT_PACK", 250)
    monkeypatch.setattr(cpu_attention, "MAX_SCORES", 100)
    monkeypatch.setattr(cpu_convolution, "MIN_CHANNELS", 1)
    monkeypatch.setattr(cpu_convolution, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(cpu_convolution, "MAX_PATCHES", 300)
    monkeypatch.setattr(processor, "weight_gradients_are_slow", lambda: request.param == "cpu")
    for name in FLOAT32:
        monkeypatch.setattr(processor, name, lambda name=name: name == request.param)
    if request.param in FLOAT32:
        if not torch.backends.mkldnn.is_available():
            pytest.skip("this torch has no oneDNN")
        monkeypatch.setattr(products, "MIN_ONEDNN", 0)
    return IMPLEMENTATIONS[request.param]


def in_float32(ops: kernels.Kernels) -> bool:
    """Whether these kernels are tested in float32."""
    return any(ops is IMPLEMENTATIONS.get(name) for name in (*FLOAT32, "triton"))


def compare(got: Callable, wanted: Callable, inputs: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    """Compare outputs, gradients of all inputs, and outputs without gradients, which may use another code path."""
    with torch.no_grad():
        assert relative_error(got(), wanted()) < tolerance
    a, b = got(), wanted()
    assert relative_error(a, b) < tolerance
    weight = torch.randn_like(b)
    gradients = (torch.autograd.grad((y * weight).sum(), inputs) for y in (a, b))
    for x, y in zip(*gradients, strict=True):
        assert (x - y).abs().max() < tolerance * max(1, y.abs().max().item())


@pytest.mark.parametrize("cropped", [False, True])
@pytest.mark.parametrize("chunk", [1, 100, 300, 1000])
def test_nchw(monkeypatch, chunk: int, cropped: bool):
    """Maps in memory order NCHW and their gradients, for one row at a time, an uneven division, and all rows."""
    monkeypatch.setattr(cpu, "CHUNK", chunk)
    x = torch.randn(2, 9, 8, 6)[:, : 7 if cropped else 9, : 5 if cropped else 8].requires_grad_()
    y, wanted = kernels.choose_nchw(x)(x), x.permute(0, 3, 1, 2)
    assert y.is_contiguous()
    assert torch.equal(y, wanted)
    weight = torch.randn_like(wanted)
    (gradient,) = torch.autograd.grad((y * weight).sum(), x)
    assert torch.equal(gradient, weight.permute(0, 2, 3, 1))
    meta = x.to("meta")
    assert kernels.choose_nchw(meta)(meta).shape == wanted.shape


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 49, 12), (5, 7, 12), (101, 12)])
def test_linear(ops: kernels.Kernels, shape: tuple[int, ...], bias: bool):
    module = randomise(nn.Linear(12, 20, bias=bias))
    x = torch.randn(shape, requires_grad=True)
    inputs = [x, *module.parameters()]
    compare(lambda: ops.linear(module, x), lambda: module(x), inputs)
    fc2 = randomise(nn.Linear(20, 7, bias=bias))
    inputs = [*inputs, *fc2.parameters()]
    compare(lambda: ops.mlp(module, fc2, x), lambda: fc2(F.gelu(module(x))), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_added_tensor(ops: kernels.Kernels, dtype: torch.dtype):
    fc1, fc2 = (randomise(nn.Linear(*size)) for size in ((12, 20), (20, 7)))
    x, added, added2 = (torch.randn(3, 7, c, dtype=t) for c, t in ((12, torch.float32), (20, dtype), (7, dtype)))
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            y, z = ops.linear(fc1, x, added), ops.mlp(fc1, fc2, x, added2)
        assert y.dtype is z.dtype is dtype
        assert relative_error(y, added + fc1(x)) < 1e-5
        assert relative_error(z, added2 + fc2(F.gelu(fc1(x)))) < 1e-5


@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("scale", [True, False])
def test_residual(ops: kernels.Kernels, gamma: bool, scale: bool):
    x, y, g = (torch.randn(s, requires_grad=True) for s in ((15, 6), (15, 6), (6,)))
    factors = (g if gamma else None, torch.rand(15, 1) if scale else None)

    def branch(added: Tensor | None = None) -> Tensor:
        assert not (gamma or scale or torch.is_grad_enabled()) or added is None
        return y if added is None else added + y

    def wanted() -> Tensor:
        return x + y * (1 if factors[0] is None else g) * (1 if factors[1] is None else factors[1])

    compare(lambda: ops.residual(x, branch, *factors), wanted, [x, y, *([g] if gamma else [])])
    with torch.no_grad():
        assert relative_error(ops.residual(x, branch, *factors), wanted()) < 1e-6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((7, 10), (3, 3), (2, 2), (1, 1)),
        ((1, 1), (3, 3), (2, 2), (1, 1)),
        ((9, 6), (2, 3), (3, 1), (0, 2)),
        ((5, 5), (5, 4), (4, 5), (4, 3)),  # patches that are all padding, and pixels in no patch
    ],
)
def test_convolution(ops: kernels.Kernels, size, kernel, stride, padding, bias: bool):
    module = randomise(nn.Conv2d(6, 5, kernel, stride, padding, bias=bias))
    x = torch.randn(3, *size, 6, requires_grad=True)
    y = x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)  # another layout in memory
    compare(lambda: ops.convolution(module, x), lambda: module(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), [x])
    inputs = [x, *module.parameters()]
    compare(lambda: ops.convolution(module, y), lambda: kernels.REFERENCE.convolution(module, y), inputs)
    module.weight.requires_grad_(False)
    compare(lambda: ops.convolution(module, x), lambda: kernels.REFERENCE.convolution(module, x), [x])


@pytest.mark.parametrize("frozen", [(), ("se.fc1.weight",), ("depthwise.weight", "pointwise.weight")])
@pytest.mark.parametrize("size", [(7, 9), (2, 3), (1, 1)])
def test_mbconv_tail(ops: kernels.Kernels, size: tuple[int, int], frozen: tuple[str, ...]):
    mbconv = randomise(MBConv(8))
    for name, parameter in mbconv.named_parameters():
        parameter.requires_grad_(name not in frozen)
    x, y = (torch.randn(3, *size, 8, requires_grad=True) for _ in range(2))
    weights = [p for n, p in mbconv.named_parameters() if n not in frozen and not n.startswith("depthwise")]

    def run(implementation: kernels.Kernels) -> Tensor:  # `y` may be overwritten
        return implementation.mbconv_tail(x, y * 1, mbconv.se, mbconv.pointwise)

    compare(lambda: run(ops), lambda: run(kernels.REFERENCE), [x, y, *weights])


@pytest.mark.parametrize("limit", [60, 10**6])  # packs of one region each, and one pack for all
@pytest.mark.parametrize("max_bias", [2**22, 20])
@pytest.mark.parametrize("shape", [(3, 6, 9), (3, 7, 8), (2, 2, 1), (1, 8, 5)])
@pytest.mark.parametrize("is_global", [False, True])
def test_window_attention(
    ops: kernels.Kernels, monkeypatch, is_global: bool, shape: tuple[int, ...], max_bias: int, limit: int
):
    """Tests both operations together, as the biases passed between them depend on the implementation."""
    monkeypatch.setattr(cpu_attention, "MAX_BIAS", max_bias)
    dtype = torch.float32 if in_float32(ops) else torch.double
    attention = randomise(WindowAttention(12, 3, 3, is_global)).to(dtype)
    layout = window_layout((*shape, 12), 3, torch.device("cpu"), limit)
    x = torch.randn(*shape, 12, dtype=dtype, requires_grad=True)
    query = torch.randn(shape[0], 3, 9, 4, dtype=dtype, requires_grad=True)
    sizes = [(r.height, r.width) for r in layout.regions]

    def run(implementation: kernels.Kernels) -> Tensor:
        queries = layout.expand_query(query) if is_global else None
        (biases,) = implementation.position_biases([attention.relative_position_bias_table], sizes, 3, x.dtype)
        packs = [
            attention(part, pack, queries, biases, implementation)
            for part, pack in zip(layout.pack(x), layout.packs, strict=True)
        ]
        return layout.unpack(packs, *x.shape[1:3])

    inputs = [x, *attention.parameters(), *([query] if is_global else [])]
    compare(lambda: run(ops), lambda: run(kernels.REFERENCE), inputs, 1e-5 if in_float32(ops) else 1e-10)


def results(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Compute maps and gradients in training, and maps in evaluation without gradients."""
    torch.manual_seed(1)
    model.train().zero_grad()
    x = images.clone().requires_grad_()
    maps = model(x)
    loss_of(maps).backward()
    with torch.no_grad():
        evaluated = model.eval()(images)
    return [*(m.detach() for m in maps), x.grad, *(p.grad.clone() for p in model.parameters()), *evaluated]


@pytest.mark.parametrize("pad", PAD_MODES)
@pytest.mark.parametrize("size", [(50, 70), (64, 64), (9, 33)])
def test_network_with_each_implementation(ops, monkeypatch, tiny_model, pad: str, size: tuple[int, int]):
    """With a batch of 3 and drop path; the reference packs all windows at once."""
    dtype = torch.float32 if in_float32(ops) else torch.double
    model = tiny_model(pad=pad, drop_path_rate=0.3, arch={**TINY, "depths": (2, 3, 1, 2)}).to(dtype)
    images = torch.randn(3, 3, *size, dtype=dtype)
    with kernels.disabled(*kernels.KERNELS):
        wanted = results(model, images)
    monkeypatch.setitem(dispatch._tables, "cpu", ops)
    if ops.position_biases is eager.position_biases:  # as on a GPU
        monkeypatch.setattr(dispatch, "max_pack", lambda x: None)
        monkeypatch.setattr(kernels, "max_pack", lambda x: None)
    for got, w in zip(results(model, images), wanted, strict=True):
        assert (got - w).abs().max() < (2e-4 if in_float32(ops) else 1e-9) * max(1, w.abs().max().item())


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_each_kernel_can_be_disabled(tiny_model, name: str):
    model, images = tiny_model(pad="window"), torch.randn(3, 3, 50, 70)
    wanted = results(model, images)
    with kernels.disabled(name):
        chosen = kernels.choose(images, model.stages[0].blocks[0])
        assert all(getattr(chosen, o) is getattr(kernels.REFERENCE, o) for o in kernels.KERNELS[name])
        assert (kernels.max_pack(images) is None) == (name == "packs")
        with kernels.disabled("linear"):
            pass
        assert kernels.choose(images, model.stages[0].blocks[0]) is chosen
        got = results(model, images)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() <= 2e-4 * b.abs().max() + 1e-6
    assert kernels.choose(images, model.stages[0].blocks[0]) is dispatch.CPU


def test_packs_depend_on_what_is_kept(monkeypatch):
    monkeypatch.setattr(cpu, "MAX_PACK", 400)
    monkeypatch.setattr(cpu, "MAX_KEPT_PACK", 800)
    x = torch.zeros(1)
    assert kernels.max_pack(x) == 200  # elements of float32
    with torch.no_grad():
        assert kernels.max_pack(x) == 100
        assert kernels.max_pack(x.to("meta")) is None


def test_disabled_rejects_unknown_names():
    with (
        pytest.raises(ValueError, match=r"disabled: 'lineal'; allowed: linear, mlp"),
        kernels.disabled("lineal"),
    ):
        pass


class Subclassed(nn.Linear):
    """Replaces a layer, as adapters do."""


class OwnTensor(Tensor):
    """Replaces a weight, as quantization and sharding do."""


def _hook(*_: object) -> None:
    pass


MODIFICATIONS: dict[str, Callable[[nn.Module], object]] = {
    "forward hook": lambda block: block.attn.proj.register_forward_hook(_hook),
    "forward hook with keywords": lambda block: block.register_forward_hook(_hook, with_kwargs=True),
    "forward pre-hook": lambda block: block.norm1.register_forward_pre_hook(_hook),
    "full backward hook": lambda block: block.mlp.register_full_backward_hook(_hook),
    "full backward pre-hook": lambda block: block.mlp.fc1.register_full_backward_pre_hook(_hook),
    "subclass": lambda block: setattr(block.mlp, "fc1", Subclassed(16, 48)),
    "other module": lambda block: setattr(block.mlp, "fc2", nn.Identity()),
    "replaced forward": lambda block: setattr(block.norm2, "forward", lambda x: x),
    "compiled": lambda block: block.compile(),
    "parametrization": lambda block: nn.utils.parametrizations.weight_norm(block.mlp.fc1),
    "pruning": lambda block: prune.identity(block.mlp.fc1, "weight"),
    "tensor subclass": lambda block: setattr(
        block.mlp.fc1, "weight", nn.Parameter(block.mlp.fc1.weight.detach().as_subclass(OwnTensor))
    ),
}


@pytest.mark.parametrize("modification", MODIFICATIONS)
def test_modified_blocks_use_the_reference(modification: str):
    block = GCViT(TINY).stages[0].blocks[0]
    x = torch.zeros(1)
    assert kernels.choose(x, block) is dispatch.CPU
    assert kernels.choose(x.to("meta"), block) is dispatch.EAGER
    MODIFICATIONS[modification](block)
    assert kernels.choose(x, block) is kernels.REFERENCE
    assert kernels.choose(x.to("meta"), block) is kernels.REFERENCE


SAME_RESULT = [m for m in MODIFICATIONS if m not in ("subclass", "other module", "replaced forward", "tensor subclass")]


@pytest.mark.parametrize("pad", PAD_MODES)
@pytest.mark.parametrize("modification", [*SAME_RESULT, "backward hook on norm1"])
def test_modified_blocks_compute_the_same(tiny_model, pad: str, modification: str):
    """Forward and backward pass of a network in which every block is modified without changing its result."""
    model, images = tiny_model(pad=pad, arch={**TINY, "depths": (1, 2, 1, 1)}), torch.randn(2, 3, 50, 70)
    wanted = results(model, images)
    if modification == "compiled":
        torch._dynamo.reset()
    for block in (block for stage in model.stages for block in stage.blocks):
        if modification == "compiled":
            block.compile(backend="eager")
        elif modification == "backward hook on norm1":
            block.norm1.register_full_backward_hook(_hook)
        else:
            MODIFICATIONS[modification](block)
    model.train().zero_grad()
    torch.manual_seed(1)
    x = images.clone().requires_grad_()
    maps = model(x)
    loss_of(maps).backward()
    with torch.no_grad():
        evaluated = model.eval()(images)
    for got, w in zip([*maps, x.grad], wanted[:5], strict=True):
        assert relative_error(got, w) < 1e-4
    for got, w in zip(evaluated, wanted[-4:], strict=True):
        assert relative_error(got, w) < 1e-5


class Tanh(nn.Module):
    """A norm whose gradient is computed from its output."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.scale)


@pytest.mark.parametrize("norm", [nn.Identity, Tanh])
def test_other_norms(tiny_model, norm: type[nn.Module]):
    """Their outputs may be views, or be needed in the backward pass, so padding rows are not filled in place."""
    model, images = tiny_model(pad="window"), torch.randn(2, 3, 50, 70)
    for stage in model.stages:
        for block in stage.blocks:
            block.norm1 = norm(block.norm2.normalized_shape[0])
    maps = model.train()(images)
    loss_of(maps).backward()
    with torch.no_grad(), kernels.disabled(*kernels.KERNELS):
        for got, wanted in zip(maps, model(images), strict=True):
            assert relative_error(got, wanted) < 1e-5
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_hook_sees_what_a_layer_computes():
    """Inputs and outputs, by value, and the hook's own result is used."""
    block = randomise(GCViT(TINY).stages[0].blocks[0])
    layout = window_layout((2, 4, 6, 16), 2, torch.device("cpu"))
    x, seen = torch.randn(2 * 4 * 6, 16), []
    with torch.no_grad():
        wanted = block(x, layout.packs[0])
        handle = block.mlp.fc2.register_forward_hook(lambda m, args, out: seen.append((args[0], out)) or out * 0)
        without_mlp = block(x, layout.packs[0])
        handle.remove()
        ((given, computed),) = seen
        assert relative_error(computed, nn.functional.linear(given, block.mlp.fc2.weight, block.mlp.fc2.bias)) < 1e-6
        assert relative_error(without_mlp + block.gamma2 * computed, wanted) < 1e-5


def test_global_hooks_see_every_module():
    block = GCViT(TINY).stages[0].blocks[0]
    handle = nn.modules.module.register_module_forward_hook(_hook)
    try:
        assert kernels.choose(torch.zeros(1), block) is kernels.REFERENCE
    finally:
        handle.remove()
    assert kernels.choose(torch.zeros(1), block) is dispatch.CPU


def test_hook_on_one_layer_sees_its_output(tiny_model):
    model, images = tiny_model(pad="window"), torch.randn(2, 3, 50, 70)
    with torch.no_grad():
        wanted, seen = model(images), []
        model.stages[1].blocks[1].mlp.fc2.register_forward_hook(lambda m, args, out: seen.append(out.shape))
        for got, w in zip(model(images), wanted, strict=True):
            assert relative_error(got, w) < 1e-5
    assert seen


def test_func_transforms_use_the_reference(tiny_model):
    block = GCViT(TINY).stages[0].blocks[0]
    chosen = []
    torch.func.vmap(lambda x: chosen.append(kernels.choose(x, block)) or x)(torch.zeros(2, 1))
    torch.jit.trace(lambda x: chosen.append(kernels.choose(x, block)) or x, torch.zeros(1), check_trace=False)
    assert chosen == [kernels.REFERENCE] * 2


def test_mlp_saves_no_activation():
    module = randomise(nn.Linear(12, 6))
    x = torch.randn(3, 5, 12, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        eager.gelu_linear(module, x)
    assert {t.data_ptr() for t in kept if t.shape == x.shape} == {x.data_ptr()}


@pytest.mark.parametrize("function", ["gelu_linear", "residual", "position_biases"])
def test_second_derivatives_of_eager_operations(function: str):
    """Compares with finite differences of the first derivatives."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.double, requires_grad=True)
    if function == "gelu_linear":
        module = randomise(nn.Linear(4, 2)).double()
        run, inputs = (lambda x, *_: eager.gelu_linear(module, x)), (x,)
    elif function == "residual":
        scale = torch.rand(3, 1, dtype=torch.double)
        run, inputs = (
            (lambda x, y: eager.residual(x, lambda: y, None, scale) ** 3),
            (x, x.detach().cos().requires_grad_()),
        )
    else:
        tables = [torch.randn(25, 2, dtype=torch.double, requires_grad=True) for _ in range(2)]
        run, inputs = (
            (
                lambda *t: sum(
                    (b**3).sum() for pair in eager.position_biases(t, [(3, 3), (2, 1)], 3, t[0].dtype) for b in pair
                )
            ),
            tuple(tables),
        )
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_masks_of_full_windows_are_aligned_on_accelerators():
    """Otherwise fused attention on CUDA would copy them in each call."""
    tables = [torch.zeros(169, 2, device="meta") for _ in range(3)]
    biases = list(eager.position_biases(tables, [(7, 7), (7, 3)], 7, torch.bfloat16))
    assert len(biases) == 3
    for full, edge in biases:
        assert full.shape == (2, 49, 49)
        assert full.dtype is torch.bfloat16
        assert edge.shape == (2, 22, 22)
        assert all(stride % 16 == 0 for stride in full.stride()[:-1])
        assert full.stride(-1) == 1
