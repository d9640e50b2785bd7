"""Tests that every configuration of the backbone must pass; a test class sets ``arguments`` and inherits them.

class TestMyPadMode(BackboneContract):
    arguments = dict(pad="mine")
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from conftest import TINY, loss_of, randomise, relative_error

from mmgcvit.backbone import GCViT
from mmgcvit.kernels import cpu

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
SIZES = [(1, 1), (31, 33), (100, 260), (224, 224), (448, 672)]


def expected_shapes(model: GCViT, batch: int, height: int, width: int) -> list[tuple[int, ...]]:
    return [
        (batch, c, -(-height // s), -(-width // s)) for c, s in zip(model.out_channels, model.out_strides, strict=True)
    ]


class BackboneContract:
    """Tests of shapes, batch invariance, gradients, mixed precision, compilation and export for one configuration."""

    arguments: ClassVar[dict[str, Any]]

    @pytest.mark.parametrize("windows", [None, (7, 7, 14, 7)])
    @pytest.mark.parametrize("size", SIZES)
    def test_sizes(self, tiny_model, size: tuple[int, int], windows: tuple[int, ...] | None):
        model = tiny_model(**self.arguments, window_size=windows)
        with torch.no_grad():
            maps = model(torch.randn(2, 3, *size))
        assert [tuple(m.shape) for m in maps] == expected_shapes(model, 2, *size)
        assert all(m.is_contiguous() and m.isfinite().all() for m in maps)

    def test_batch_invariance(self, tiny_model):
        model = tiny_model(**self.arguments)
        image, neighbour = torch.randn(1, 3, 100, 132), 50 + 20 * torch.randn(1, 3, 100, 132)
        with torch.no_grad():
            alone = model(image)
            first = model(torch.cat([image, neighbour, neighbour]))
            last = model(torch.cat([neighbour, neighbour, image]))
        for a, f, z in zip(alone, first, last, strict=True):
            assert relative_error(f[:1], a) < 1e-5
            assert relative_error(z[2:], a) < 1e-5

    def test_activation_checkpointing(self, tiny_model):
        runs = 0

        def count(*args):
            nonlocal runs
            runs += 1

        plain, saving = tiny_model(**self.arguments).train(), tiny_model(**self.arguments, with_cp=True).train()
        saving.load_state_dict(plain.state_dict())
        images = torch.randn(2, 3, 50, 70)
        results = []
        forward = 0
        for model, times in ((plain, 1), (saving, 2)):  # recomputed once more in the backward pass, or not
            runs = 0
            for stage in model.stages:
                for block in stage.blocks:
                    block.norm1.register_forward_hook(count)
            torch.manual_seed(3)
            x = images.clone().requires_grad_()
            maps = model(x)
            forward = forward or runs
            loss_of(maps).backward()
            assert runs == times * forward
            results.append((maps, [x.grad] + [p.grad for p in model.parameters()]))
        for a, b in zip(results[0][0], results[1][0], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(results[0][1], results[1][1], strict=True):
            assert relative_error(b, a) < 1e-5

    @pytest.mark.parametrize("size", [(64, 64), (16, 16), (50, 70)])
    def test_drop_path_drops_whole_images(self, size: tuple[int, int]):
        """An image for which the last block is dropped has the same maps as in a model without this block."""
        torch.manual_seed(0)
        model = randomise(GCViT(**{"arch": TINY, "out_indices": (3,), "drop_path_rate": 0.9, **self.arguments})).train()
        for stage in model.stages[:3]:
            for block in stage.blocks:
                block.drop_path_rate = 0.0
        model.stages[3].blocks[0].drop_path_rate = 0.0
        images = torch.randn(16, 3, *size)
        with torch.no_grad():
            (maps,) = model(images)
            without = copy.deepcopy(model)
            del without.stages[3].blocks[1]
            (plain,) = without(images)
        same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, plain, strict=True)]
        assert 5 <= sum(same) < 16  # 0.9 ** 2 of 16 images are expected to skip both branches of the block

    @pytest.mark.parametrize("batch", [1, 3])
    def test_chunk_size_does_not_matter(self, tiny_model, monkeypatch, batch: int):
        model = tiny_model(**self.arguments, drop_path_rate=0.5).train()
        images = torch.randn(batch, 3, 52, 76)
        results = []
        for chunk in (2**32, 2000, 1):
            monkeypatch.setattr(cpu, "MAX_PACK", chunk)
            monkeypatch.setattr(cpu, "MAX_KEPT_PACK", chunk)
            torch.manual_seed(1)
            model.zero_grad()
            maps = model(images)
            loss_of(maps).backward()
            results.append([m.detach() for m in maps] + [p.grad.clone() for p in model.parameters()])
            model.eval()
            with torch.no_grad():
                results[-1] += model(images)
            model.train()
        for other in results[1:]:
            for a, b in zip(other, results[0], strict=True):
                assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-5

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, tiny_model, dtype: torch.dtype):
        if dtype is torch.float16 and TORCH < (2, 2):
            pytest.skip("torch 2.1 knows bfloat16 only under autocast on a CPU")
        model = tiny_model(**self.arguments).train()
        images = torch.randn(2, 3, 50, 70)
        wanted = model(images)
        with torch.autocast("cpu", dtype):
            maps = model(images)
        for got, full in zip(maps, wanted, strict=True):
            assert relative_error(got.float(), full) < (4e-2 if dtype is torch.bfloat16 else 5e-3)
            assert (got.float() - full).norm() < (2e-2 if dtype is torch.bfloat16 else 2.5e-3) * full.norm()
        loss_of([m.float() for m in maps]).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_compile_without_graph_breaks(self, tiny_model):
        model = tiny_model(**self.arguments)
        images = torch.randn(2, 3, 50, 70)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            for got, wanted in zip(compiled(images), model(images), strict=True):
                assert relative_error(got, wanted) < 1e-5

    @pytest.mark.skipif(TORCH < (2, 6), reason="older exporters fix more sizes than they must")
    def test_export(self, tiny_model):
        """With named sizes, outside of ``no_grad``; also for one image, and for sizes other than the example's."""
        arch = {**TINY, **self.arguments.get("arch", {}), "depths": (1, 2, 1, 1)}
        model = tiny_model(**{**self.arguments, "arch": arch})
        from torch.export import Dim  # torch 2.1 has none

        dims = {0: Dim("batch", max=64), 2: 32 * Dim("h", min=2, max=64), 3: 32 * Dim("w", min=2, max=64)}
        program = torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=(dims,)).module()
        with torch.no_grad():
            for shape in ((2, 3, 96, 128), (1, 3, 64, 64), (5, 3, 64, 96), (3, 3, 224, 160)):
                images = torch.randn(shape)
                for got, wanted in zip(program(images), model(images), strict=True):
                    assert relative_error(got, wanted) < 1e-5

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    def test_trace(self, tiny_model, tmp_path):
        """Traced with one image, run with others, of other sizes."""
        model = tiny_model(**self.arguments)
        with torch.no_grad():
            torch.jit.trace(model, torch.randn(1, 3, 100, 132), check_trace=False).save(tmp_path / "traced.pt")
            traced = torch.jit.load(tmp_path / "traced.pt")
            for shape in ((1, 3, 100, 132), (3, 3, 64, 128), (2, 3, 97, 201), (1, 3, 1, 1)):
                images = torch.randn(shape)
                for got, wanted in zip(traced(images), model(images), strict=True):
                    assert relative_error(got, wanted) < 1e-5

    @pytest.mark.parametrize("channels", [1, 4, 13])
    def test_in_channels(self, tiny_model, channels: int):
        model = tiny_model(in_channels=channels, **self.arguments)
        with torch.no_grad():
            maps = model(torch.randn(2, channels, 40, 30))
        assert [tuple(m.shape) for m in maps] == expected_shapes(model, 2, 40, 30)

    def test_state_dict_holds_parameters_only(self, tiny_model):
        model = tiny_model(**self.arguments)
        assert list(model.state_dict()) == [n for n, _ in model.named_parameters()]
        images = torch.randn(2, 3, 40, 40)
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(model)(images)[3], model(images)[3])
