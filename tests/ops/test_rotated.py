"""Operators of rotated boxes: against shapely, upright boxes, differences, and mmcv's compiled operators."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmgcvit.compat import TorchDispatchMode, storage_id, tree_leaves
from mmgcvit.ops import rotated

mmcv_ops = pytest.importorskip("mmcv.ops")
from operator_modules import compiled_only, ours  # noqa: E402


def random_boxes(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Boxes that overlap often, of any angle."""
    random = torch.rand(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.tensor([60, 60, 40, 25, 4 * math.pi]), torch.tensor([0, 0, 1, 1, -2 * math.pi])
    return (random * scale[0] + scale[1]).to(dtype)


def polygon(box: Tensor):
    """A box as a polygon of shapely."""
    affinity, geometry = pytest.importorskip("shapely.affinity"), pytest.importorskip("shapely.geometry")
    x, y, width, height, angle = box.tolist()
    upright = geometry.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return affinity.rotate(upright, angle, use_radians=True)


# Boxes whose edges and corners coincide, touch, or are parallel.
SPECIAL = torch.tensor([
    [50, 50, 20, 10, 0.3], [50, 50, 20, 10, 0.3], [50, 50, 20, 10, 0.3 + math.pi], [50, 50, 10, 20, 0.3 + math.pi / 2],
    [50 + 20 * math.cos(0.3), 50 + 20 * math.sin(0.3), 20, 10, 0.3], [50, 50, 4, 2, 0.3], [50, 50, 4, 2, 1.1],
    [50 + 10 * math.cos(0.3), 50 + 10 * math.sin(0.3), 20, 10, 0.3], [10, 10, 4, 4, 0], [12, 10, 4, 4, 0],
    [14, 10, 4, 4, 0], [10, 10, 4, 4, math.pi / 4], [10, 10, 0, 4, 0], [1e4, 1e4, 3, 3, 1], [1e4 + 1, 1e4, 3, 3, 1],
], dtype=torch.float64)  # fmt: skip


@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("boxes", [random_boxes(40), SPECIAL], ids=["random", "special"])
def test_overlaps_are_those_of_polygons(boxes: Tensor, mode: str):
    polygons = [polygon(box) for box in boxes]
    wanted = torch.zeros(len(boxes), len(boxes), dtype=torch.float64)
    for i, a in enumerate(polygons):
        for j, b in enumerate(polygons):
            common = a.intersection(b).area
            if a.area and b.area:
                wanted[i, j] = common / (a.area + b.area - common if mode == "iou" else a.area)
    assert (wanted > 0).sum() > 30
    with ours():
        for clockwise in (True, False):
            seen = boxes * torch.tensor([1, 1, 1, 1, 1 if clockwise else -1])
            found = mmcv_ops.box_iou_rotated(seen, seen, mode, clockwise=clockwise)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-8)
        pairs = mmcv_ops.box_iou_rotated(boxes, boxes.flip(0), mode, aligned=True)
        torch.testing.assert_close(pairs, wanted.flip(1).diagonal(), rtol=1e-9, atol=1e-8)
        empty = boxes[:0]
        assert mmcv_ops.box_iou_rotated(empty, boxes).shape == (0, len(boxes))
        assert mmcv_ops.box_iou_rotated(empty, empty, aligned=True).shape == (0,)


def test_half_precision_and_gradients():
    """In float16, coordinates above 1024 are whole pixels: bounds are computed in double precision."""
    boxes = torch.tensor([[1100, 1100, 61, 0.75, 0.8], [1101, 1101, 61, 0.75, 0.8], [1100, 1100, 1.5, 1.5, 0.4]])
    with ours():
        wanted = mmcv_ops.box_iou_rotated(boxes.half().double(), boxes.half().double())
        found = mmcv_ops.box_iou_rotated(boxes.half().requires_grad_(), boxes.half())
    assert (wanted > 0).sum() == 9
    assert not found.requires_grad
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("ratio", [0, 2])
def test_regions_that_are_not_finite(ratio: int):
    """They get zeros or NaN, as in mmcv; the others get their values, in bounded memory."""
    maps = torch.randn(2, 3, 9, 11)
    rois = torch.tensor([[0, 4, 4, 3, 2, 0.3], [1, 5, 4, math.inf, 3, 0.1], [1, 5, 4, math.nan, 3, 0.1]])
    with ours():
        found = mmcv_ops.RoIAlignRotated((2, 3), 1.0, ratio)(maps, rois)
        alone = mmcv_ops.RoIAlignRotated((2, 3), 1.0, ratio)(maps, rois[:1])
    torch.testing.assert_close(found[:1], alone)
    assert alone.abs().sum() > 0


def test_nms():
    boxes = random_boxes(80, 1)
    scores = torch.rand(80, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.arange(80) % 3
    with ours():
        overlaps = mmcv_ops.box_iou_rotated(boxes, boxes)
        for threshold in (0.0, 0.1, 0.5, 1.0):
            for kinds in (None, labels):
                wanted: list[int] = []
                for i in scores.argsort(descending=True).tolist():
                    rivals = [j for j in wanted if kinds is None or kinds[i] == kinds[j]]
                    if not (overlaps[i, rivals] > threshold).any():
                        wanted.append(i)
                kept, indices = mmcv_ops.nms_rotated(boxes, scores, threshold, labels=kinds)
                assert indices.tolist() == wanted
                torch.testing.assert_close(kept, torch.cat([boxes, scores[:, None]], dim=1)[wanted])


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_upright_regions_are_those_of_roi_align(aligned: bool, ratio: int):
    maps = torch.randn(2, 3, 20, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([
        [0, 3, 5, 40, 37], [1, -8.3, 2, 70.7, 30], [1, 20, 10, 23, 40], [0, 100, 100, 140, 120],
    ], dtype=torch.float64)  # fmt: skip
    centres, sides = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    rotated = torch.cat([boxes[:, :1], centres, sides, torch.zeros(4, 1).double()], dim=1)
    with ours():
        wanted = mmcv_ops.roi_align(maps, boxes, (4, 3), 0.5, ratio, "avg", aligned)
        found = mmcv_ops.roi_align_rotated(maps, rotated, (4, 3), 0.5, ratio, aligned, True)
        torch.testing.assert_close(found, wanted)
        # A quarter turn clockwise: what was along the columns is along the rows.
        turned = rotated[:, [0, 1, 2, 4, 3, 5]] + torch.tensor([0, 0, 0, 0, 0, math.pi / 2], dtype=torch.float64)
        found = mmcv_ops.roi_align_rotated(maps, turned, (3, 4), 0.5, ratio, aligned, True)
        torch.testing.assert_close(found.transpose(2, 3).flip(3), wanted)
        back = turned * torch.tensor([1, 1, 1, 1, 1, -1])
        assert torch.equal(mmcv_ops.roi_align_rotated(maps, back, (3, 4), 0.5, ratio, aligned, False), found)
        assert mmcv_ops.roi_align_rotated(maps, rotated[:0], (3, 4), 0.5, ratio, aligned, False).shape == (0, 3, 3, 4)


@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_of_roi_align(ratio: int):
    maps = torch.randn(2, 2, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0, 8, 6, 9, 5, 0.4], [1, 9, 7, 12, 20, -1.0]]).double()
    with ours():
        assert torch.autograd.gradcheck(
            lambda x: mmcv_ops.roi_align_rotated(x, rois, (2, 3), 0.5, ratio, True, True), maps.requires_grad_()
        )


def dense(maps: Tensor, roi: Tensor, size: tuple[int, int], ratio: int) -> Tensor:
    """One region (6,), aligned and clockwise, with all samples at once: (B, C, H, W) -> (C, h, w)."""
    x, y, width, height, angle = roi[1:].tolist()
    places, counts = [], []
    for side, bins in ((height, size[0]), (width, size[1])):
        counts.append(ratio or math.ceil(side / bins))
        total = bins * counts[-1]
        places.append((torch.arange(total, dtype=maps.dtype) + 0.5) * side / total - side / 2)
    down, right = torch.meshgrid(*places, indexing="ij")
    columns = right * math.cos(angle) - down * math.sin(angle) + x - 0.5
    lines = right * math.sin(angle) + down * math.cos(angle) + y - 0.5
    limit = torch.tensor(maps.shape[:1:-1])
    grid = torch.stack([columns, lines], dim=2)
    inside = ((grid >= -1) & (grid <= limit)).all(dim=2)
    found = F.grid_sample(maps[int(roi[0])][None], (2 * grid / (limit - 1) - 1)[None], "bilinear", "border", True)[0]
    bins = (found * inside).view(-1, size[0], counts[0], size[1], counts[1])
    return bins.mean(dim=(2, 4))


@pytest.mark.parametrize("most", [1000, 2**16])
@pytest.mark.parametrize("ratio", [0, 3])
def test_regions_larger_than_the_map(ratio: int, most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rotated, "MOST", most)  # bins begin in one part of the samples and end in the next
    maps = torch.randn(2, 3, 23, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([
        [0, 12, 9, 610, 433, 0.4], [1, -80, 140, 500, 470, -2.2], [1, 10, 11, 700, 0.7, 1.0], [0, 15, 11, 9, 900, 3.0],
        [0, 400, 9, 90, 90, 0.3], [1, 20, 13, 12, 9, 0.7],
    ], dtype=torch.float64)  # fmt: skip
    wanted = torch.stack([dense(maps, roi, (2, 3), ratio) for roi in rois])
    with ours():
        found = mmcv_ops.roi_align_rotated(maps, rois, (2, 3), 1.0, ratio, True, True)
    torch.testing.assert_close(found, wanted)
    on_map = (wanted.abs().amax(dim=(1, 2, 3)) > 0).tolist()
    assert ratio > 0 or on_map == [True, True, True, True, False, True]


class Made(TorchDispatchMode):
    """Sizes of the tensors that are made, without views and operations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        known = {storage_id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        leaves = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.sizes += [leaf.numel() for leaf in leaves if storage_id(leaf) not in known]
        return made


def run(maps: Tensor, rois: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, list[int], list[int]]:
    """Result, gradient of its sum, and the sizes of what the forward and the backward pass make."""
    pooled, gradient = maps.new_empty(len(rois), maps.shape[1], *size), torch.empty_like(maps)
    with Made() as forward:
        rotated.roi_align_rotated_forward(maps, rois, pooled, *size, 1.0, 0, True, True)
    with Made() as backward:
        rotated.roi_align_rotated_backward(torch.ones_like(pooled), rois, gradient, *size, 1.0, 0, True, True)
    return pooled, gradient, forward.sizes, backward.sizes


@pytest.mark.parametrize("turns", [0, 1])
def test_memory_of_a_huge_region(turns: int):
    """Samples of 2 x 3 bins of 20 000 000 x 20 000 000 pixels are a quarter of a pixel from the centres of pixels."""
    maps = torch.randn(2, 3, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rois = torch.tensor([[1, 6.25, 5.25, 6e7, 4e7, turns * math.pi / 2]], dtype=torch.float64)
    padded = F.pad(maps[1:], (1, 1, 1, 1), mode="replicate")[0]
    lines = 0.75 * padded[:, :-1] + 0.25 * padded[:, 1:]
    samples = 0.75 * lines[:, :, :-1] + 0.25 * lines[:, :, 1:]
    parts = [samples[:, :, 7:], samples[:, :, :7]] if turns else [samples[:, :6], samples[:, 6:]]
    sums = torch.stack([part.sum(dim=(1, 2)) for part in parts], dim=1) / 2e7**2
    wanted = F.pad(sums.detach()[:, :, None], (1, 1))  # the map is in the second of three columns of bins
    pooled, gradient, *sizes = run(maps.detach(), rois, (2, 3))
    torch.testing.assert_close(pooled[0], wanted, atol=1e-21, rtol=1e-7)
    torch.testing.assert_close(gradient, torch.autograd.grad(sums.sum(), maps)[0], atol=1e-21, rtol=1e-7)
    assert max(sizes[0] + sizes[1]) < 10_000


@pytest.mark.parametrize("side", [1e10, 1e30, 3e38])
def test_regions_of_any_size_have_finite_results(side: float):
    maps = torch.ones(1, 2, 9, 11)
    rois = torch.tensor(
        [[0, 6, 5, side, 3, 0.2], [0, 6, 5, side, side, 0.2], [0, side, 5, 3, 3, 0.0], [0, 4, 4, 3, 2, 0]]
    )
    pooled, gradient, *sizes = run(maps, rois, (2, 3))
    torch.testing.assert_close(pooled[3], torch.ones(2, 2, 3))
    assert pooled.isfinite().all()
    assert gradient.isfinite().all()
    assert max(sizes[0] + sizes[1]) < 10_000


def test_maps_are_not_made_for_each_part(monkeypatch: pytest.MonkeyPatch):
    maps = torch.randn(2, 4, 100, 120, generator=torch.Generator().manual_seed(0))
    boxes = random_boxes(50, 6, torch.float32)
    rois = torch.cat([torch.arange(50)[:, None] % 2, boxes], dim=1)
    counts, results = [], []
    for most in (2**16, 500):  # 2**16: one part
        monkeypatch.setattr(rotated, "MOST", most)
        *result, forward, backward = run(maps, rois, (3, 4))
        counts.append([sum(size >= maps.numel() for size in sizes) for sizes in (forward, backward)])
        results.append(result)
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    assert counts[0] == counts[1]
    assert max(counts[0]) <= 2


@compiled_only
def test_equal_to_compiled_operators():
    """In float32: mmcv's do not take float64."""
    maps = torch.randn(2, 5, 30, 40, generator=torch.Generator().manual_seed(0))
    boxes, others = random_boxes(60, 3, torch.float32), random_boxes(30, 4, torch.float32)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(5))
    rois = torch.cat([torch.arange(60)[:, None] % 2, boxes], dim=1)

    def run() -> list[Tensor]:
        found = [mmcv_ops.box_iou_rotated(boxes, others, mode) for mode in ("iou", "iof")]
        found += [mmcv_ops.nms_rotated(boxes, scores, threshold)[1] for threshold in (0.05, 0.3, 0.7)]
        for ratio, aligned, clockwise in ((2, True, True), (0, True, False), (0, False, True), (3, False, False)):
            source = maps.clone().requires_grad_()
            pooled = mmcv_ops.roi_align_rotated(source, rois, (7, 5), 0.5, ratio, aligned, clockwise)
            weights = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
            found += [pooled.detach(), torch.autograd.grad(pooled, source, weights)[0]]
        return found

    compiled = run()
    with ours():
        found = run()
    for own, wanted in zip(found, compiled, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4)
