"""RoIAlign on a CPU as weighted sums of pixels: the values and gradients of torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from mmgcvit.ops import roi, roi_cpu
from mmgcvit.ops.roi_cpu import Setting

SETTINGS = [
    Setting((7, 7), 0.25, 0, True),
    Setting((3, 5), 0.5, 2, True),
    Setting((2, 3), 1.0, 0, False),
    Setting((1, 1), 0.125, 3, False),
]


def regions(count: int, dtype: torch.dtype) -> Tensor:
    """Regions in and around two images of 52 x 76 (height x width), half of them small, one without area."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 4, generator=generator, dtype=torch.float64) * 90 - 10
    image = torch.randint(2, (count, 1), generator=generator)
    found = torch.cat([image, corners], 1)
    found[:, 3:] = found[:, 1:3] + found[:, 3:].abs() * torch.tensor([0.25, 1.0])[torch.arange(count) % 2, None]
    found[0, 1:] = torch.tensor([5, 5, 5, 5])
    return found.to(dtype)


def expected(maps: Tensor, boxes: Tensor, gradient: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    maps = maps.clone().requires_grad_()
    pooled = roi_align(maps, boxes, setting.size, setting.scale, setting.ratio, setting.aligned)
    return pooled.detach(), torch.autograd.grad(pooled, maps, gradient)[0]


@pytest.mark.parametrize("most", [2**22, 1000, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, setting: Setting, dtype: torch.dtype, most: int):
    """Also where the regions are taken in several parts."""
    monkeypatch.setattr(roi_cpu, "MOST", most)
    shape = (2, 3, round(52 * setting.scale), round(76 * setting.scale))
    maps, boxes = torch.randn(shape, dtype=dtype), regions(41, dtype)
    gradient = torch.randn(41, 3, *setting.size, dtype=dtype)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    pooled, of_maps = expected(maps, boxes, gradient, setting)
    torch.testing.assert_close(roi_cpu.pool(maps, boxes, setting), pooled, rtol=tolerance, atol=tolerance)
    found = roi_cpu.pool_gradient(gradient, boxes, shape, setting)
    torch.testing.assert_close(found, of_maps, rtol=tolerance, atol=tolerance)
    assert torch.equal(found, roi_cpu.pool_gradient(gradient, boxes, shape, setting))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30, 1e30])
def test_regions_without_samples(value: float):
    setting = Setting((2, 2), 1.0, 0, True)
    boxes = torch.tensor([[0, 4, 4, 1, 2], [1, 3, 3, 3, 3], [0, value, 1, 2, 3], [0, 1, 1, 2, value]])
    if not roi_cpu.pays((2, 3, 1, 1), boxes, setting):
        return  # torchvision computes it
    pooled = roi_cpu.pool(torch.randn(2, 3, 9, 8), boxes, setting)
    assert not pooled[:2].any()
    assert not roi_cpu.pool_gradient(torch.randn(4, 3, 2, 2), boxes[:2], (2, 3, 9, 8), setting).any()


def test_where_it_pays():
    setting = Setting((7, 7), 0.25, 0, True)
    box = torch.tensor([[0.0, 0, 0, 100, 100]])  # 25 x 25 pixels of the map: 28 x 28 samples
    assert roi_cpu.pays((1, 8, 30, 40), box, setting)
    assert not roi_cpu.pays((1, 8, 60, 40), box, setting)
    assert roi_cpu.pays((1, 8, 60, 40), box.repeat(2, 1), setting)
    assert not roi_cpu.pays((1, 8, 30, 40), box[:0], setting)
    assert not roi_cpu.pays((1, 8, 30, 40), box.to("meta"), setting)
    assert not roi_cpu.pays((1, 8, 30, 40), torch.tensor([[0.0, 0, 0, 1e6, 9]]), setting)  # a table of all its samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_used(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype):
    setting = Setting((7, 7), 0.25, 0, True)
    maps, boxes = torch.randn(2, 3, 13, 19).to(dtype), regions(40, torch.float32)
    output = torch.empty(40, 3, 7, 7, dtype=dtype)
    gradient = torch.empty_like(maps)
    pooled, of_maps = expected(maps.float(), boxes, pool_of := torch.randn(40, 3, 7, 7).to(dtype).float(), setting)
    arguments = (7, 7, 0.25, 0, 1, True)
    monkeypatch.setattr(roi, "roi_align", None)
    monkeypatch.setattr(roi, "roi_align_gradient", None)
    nothing = torch.empty(0)
    roi.roi_align_forward(maps, boxes.to(dtype).float(), output, nothing, nothing, *arguments)
    roi.roi_align_backward(pool_of.to(dtype), boxes, nothing, nothing, gradient, *arguments)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(gradient.float(), of_maps, rtol=tolerance, atol=tolerance)
    if dtype == torch.float32:
        torch.testing.assert_close(output, pooled, rtol=tolerance, atol=tolerance)
