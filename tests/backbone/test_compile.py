"""``torch.compile`` of the whole backbone, of its stages and of its blocks, over batches and sizes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from conftest import TINY, loss_of, relative_error
from torch import nn

from mmgcvit.backbone.windows import PAD_MODES

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
SHALLOW = {**TINY, "depths": (1, 2, 1, 1)}
#: A stage without max-pooling, and one with it.
TWO_STAGES: dict[str, Any] = dict(global_query_reductions=(0, 1, 0, 0), out_indices=(0, 1))
# From one image of about 300 x 300 on: for smaller ones, torch itself may choose another convolution, which is another
# graph, as for 16 images and more.
SHAPES = [(1 + (i + 1) % 3, 3, 300 + 37 * i, 600 - 13 * i) for i in range(10)]

dynamic = pytest.mark.skipif(TORCH < (2, 6), reason="older compilers fix more sizes than they must")
slow = pytest.mark.slow


class Backend:
    """One of torch's backends, with a count of the graphs that it compiles."""

    def __init__(self, name: str) -> None:
        self.compile: Callable = torch._dynamo.lookup_backend(name)
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        self.graphs += 1
        return self.compile(graph, inputs)


def units(model: Any, unit: str) -> Iterable[nn.Module]:
    """The modules to compile, which are ``model``, its stages, or its blocks."""
    if unit == "model":
        return [model]
    return model.stages if unit == "stage" else [block for stage in model.stages for block in stage.blocks]


def compile_units(model: nn.Module, unit: str, backend: str, **options: Any) -> list[Backend]:
    """Compile a model in place; returns the backend of each unit."""
    torch._dynamo.reset()
    backends = []
    for module in units(model, unit):
        backends.append(Backend(backend))
        module.compile(fullgraph=True, backend=backends[-1], **options)
    return backends


def compare(model: nn.Module, reference: nn.Module, shapes: Iterable[tuple[int, ...]]) -> None:
    """Assert that the maps of both models are equal up to rounding for images of each shape."""
    for shape in shapes:
        images = torch.randn(shape)
        with torch.no_grad():
            for got, wanted in zip(model(images), reference(images), strict=True):
                assert relative_error(got, wanted) < 1e-4


UNITS = [
    pytest.param("block", dict(dynamic=True), id="block"),
    pytest.param("stage", dict(dynamic=True), id="stage", marks=slow),
    pytest.param("model", dict(dynamic=True), id="model", marks=slow),
    pytest.param("model", {}, id="model by default", marks=slow),
]


@dynamic
@pytest.mark.parametrize(("unit", "options"), UNITS)
@pytest.mark.parametrize("pad", PAD_MODES)
def test_few_graphs_for_all_sizes(tiny_model, pad: str, unit: str, options: dict):
    """At most three graphs for each model, stage or block: one image, several, and, by default, the first size."""
    model, reference = (tiny_model(pad=pad, arch=SHALLOW) for _ in range(2))
    backends = compile_units(model, unit, "aot_eager", **options)
    compare(model, reference, SHAPES)
    assert all(b.graphs <= 3 for b in backends)
    total = sum(b.graphs for b in backends)
    assert total >= len(backends)
    if unit == "block":  # one graph, whatever the number of images (torch compiles the very first one twice)
        assert total <= len(backends) + 1


@dynamic
@slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(("unit", "sizes"), [("block", 4), ("model", 1)])
def test_inductor(tiny_model, unit: str, sizes: int):
    """The code that inductor writes; the whole model for one size only, as others would take ten minutes."""
    model, reference = (tiny_model(pad="window", arch=SHALLOW, **TWO_STAGES) for _ in range(2))
    compile_units(model, unit, "inductor", dynamic=sizes > 1)
    compare(model, reference, SHAPES[:sizes])


@dynamic
@slow
def test_whole_model(tiny_model):
    """Few graphs for several images of any size, in two stages."""
    model, reference = (tiny_model(pad="window", arch=SHALLOW, **TWO_STAGES) for _ in range(2))
    (backend,) = compile_units(model, "model", "aot_eager", dynamic=True)
    compare(model, reference, ((2, 3, 300, 300), (3, 3, 350, 290), (2, 3, 97, 401), (4, 3, 256, 320)))
    assert 1 <= backend.graphs <= 3


@dynamic
def test_blocks_of_equal_shape_share_a_graph(tiny_model):
    """So the time to compile does not grow with the depth, and torch's limit of eight graphs is kept."""
    model, images = tiny_model(arch={**TINY, "depths": (2, 2, 6, 2)}, pad="window"), torch.randn(2, 3, 100, 132)
    with torch.no_grad():
        wanted = model(images)
        torch._dynamo.reset()
        backend = Backend("eager")
        for block in units(model, "block"):
            block.compile(fullgraph=True, backend=backend, dynamic=True)
        for got, w in zip(model(images), wanted, strict=True):
            assert relative_error(got, w) < 1e-5
    assert 8 <= backend.graphs <= 9  # local and global, in each of four stages


@pytest.mark.skipif(TORCH < (2, 2), reason="torch 2.1 cannot trace a checkpointed block")
@pytest.mark.parametrize("unit", ["model", "block"])
def test_training_step(tiny_model, unit: str):
    """With activation checkpointing, and with drop path that always keeps or always drops."""
    model, reference = (tiny_model(arch=SHALLOW, pad="window", with_cp=True).train() for _ in range(2))
    for network in (model, reference):
        network.stages[2].blocks[0].drop_path_rate = 1.0
    images = torch.randn(2, 3, 64, 72)
    compile_units(model, unit, "aot_eager")
    for network in (model, reference):
        loss_of(network(images)).backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if "stages.2.blocks" in name:
            assert not parameter.grad.any(), name
            assert not wanted[name].grad.any(), name
        else:
            assert relative_error(parameter.grad, wanted[name].grad) < 1e-4, name


def test_block_wrapped_by_torch_compile(tiny_model):
    """``torch.compile(block)`` in place of the block, as some trainers do."""
    model, images = tiny_model(arch=SHALLOW, pad="window"), torch.randn(2, 3, 100, 132)
    with torch.no_grad():
        wanted = model(images)
        for stage in model.stages:
            for i, block in enumerate(stage.blocks):
                stage.blocks[i] = torch.compile(block, backend="eager")
        for got, w in zip(model(images), wanted, strict=True):
            assert relative_error(got, w) < 1e-5
