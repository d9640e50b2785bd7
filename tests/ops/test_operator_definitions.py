"""Operators against definitions written out here, and gradients against differences: no compiled operators needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from conftest import relative_error
from mmcv.ops import (
    CARAFE,
    CARAFENaive,
    MaskedConv2d,
    RoIPool,
    SoftmaxFocalLoss,
    batched_nms,
    deform_conv2d,
    modulated_deform_conv2d,
    nms,
    roi_align,
    sigmoid_focal_loss,
    soft_nms,
    softmax_focal_loss,
)
from mmcv.ops.carafe import CARAFEFunction
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from mmcv.ops.roi_pool import RoIPoolFunction
from operator_modules import ours
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, one_hot


@pytest.fixture(autouse=True)
def _ours():
    with ours():
        yield


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def gradients_are_right(function: Callable[..., Tensor], *tensors: Tensor) -> bool:
    return torch.autograd.gradcheck(function, tuple(tensor.detach().requires_grad_() for tensor in tensors))


# Boxes: the first and the second overlap by 80 of 120, the third is alone.
BOXES = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [50, 50, 60, 60]])
SCORES = torch.tensor([0.6, 0.9, 0.3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_nms(dtype: torch.dtype):
    boxes, scores = BOXES.to(dtype), SCORES.to(dtype)
    assert nms(boxes, scores, 0.5)[1].tolist() == [1, 2]
    assert nms(boxes, scores, 0.7)[1].tolist() == [1, 0, 2]


def test_nms_with_inclusive_pixels():
    """Two boxes that share one column: an IoU of 0 between coordinates, 10 / 210 between pixels."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [9, 0, 19, 9]])
    assert len(nms(boxes, SCORES[:2], 0.04)[1]) == 2
    assert len(nms(boxes, SCORES[:2], 0.04, offset=1)[1]) == 1


def test_nms_of_classes():
    """Boxes of different classes do not suppress each other unless asked to."""
    classes = torch.tensor([0, 1, 1])
    assert batched_nms(BOXES, SCORES, classes, dict(type="nms", iou_threshold=0.5))[1].tolist() == [1, 0, 2]
    assert batched_nms(BOXES, SCORES, classes, dict(type="nms", iou_threshold=0.5), True)[1].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("method", "factor"), [("naive", 0), ("linear", 1 - 2 / 3), ("gaussian", math.exp(-((2 / 3) ** 2) / 0.5))]
)
def test_soft_nms(method: str, factor: float):
    found, indices = soft_nms(BOXES, SCORES, 0.3, 0.5, 1e-3, method)
    wanted = {1: 0.9, 2: 0.3} if not factor else {1: 0.9, 0: 0.6 * factor, 2: 0.3}
    assert dict(zip(indices.tolist(), found[:, 4].tolist(), strict=True)) == pytest.approx(wanted)
    assert torch.equal(found[:, :4], BOXES[indices])
    assert found[:, 4].tolist() == sorted(found[:, 4].tolist(), reverse=True)


def sample(plane: Tensor, y: float, x: float) -> float:
    """Bilinear value of a plane at pixel coordinates; zero further than a pixel outside, the border's value within."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    upper = (1 - along) * plane[top, left] + along * plane[top, right]
    lower = (1 - along) * plane[bottom, left] + along * plane[bottom, right]
    return float((1 - down) * upper + down * lower)


REGIONS = torch.tensor([[1.0, 2, 1, 13, 11], [0, -5, -3, 6, 8], [1, 8, 8, 8, 8], [0, 50, 50, 60, 70]]).double()


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(ratio: int, aligned: bool, pool_mode: str):
    maps, scale, (rows, columns) = random(2, 2, 5, 7), 0.5, (2, 3)
    found = roi_align(maps, REGIONS, (rows, columns), scale, ratio, pool_mode, aligned)
    for n, (image, *corners) in enumerate(REGIONS.tolist()):
        x1, y1, x2, y2 = (corner * scale - 0.5 * aligned for corner in corners)
        height, width = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1), max(x2 - x1, 1))
        down, along = (ratio, ratio) if ratio else (math.ceil(height / rows), math.ceil(width / columns))
        for c, i, j in itertools.product(range(2), range(rows), range(columns)):
            values = [
                sample(
                    maps[int(image), c],
                    y1 + (i + (k + 0.5) / down) * height / rows,
                    x1 + (j + (m + 0.5) / along) * width / columns,
                )
                for k, m in itertools.product(range(down), range(along))
            ]
            nothing = 0.0 if pool_mode == "avg" else -10000.0
            wanted = (sum(values) / len(values) if pool_mode == "avg" else max(values)) if values else nothing
            assert float(found[n, c, i, j]) == pytest.approx(wanted, abs=1e-12)
    assert gradients_are_right(lambda maps: roi_align(maps, REGIONS, (2, 3), scale, 2, pool_mode, aligned), maps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_of_half_precision(dtype: torch.dtype):
    """Computed in float32; regions may have another dtype than the map."""
    maps = random(2, 2, 5, 7).to(dtype)
    found = roi_align(maps, REGIONS.float(), 3, 0.5, 2)
    assert found.dtype == dtype
    assert torch.equal(found, roi_align(maps.float(), REGIONS.float(), 3, 0.5, 2).to(dtype))


def test_roi_pool():
    """Bins from floor to ceil, of regions that are not rounded."""
    maps, scale, (rows, columns) = random(2, 2, 5, 7), 0.5, (2, 3)
    rois = torch.cat([REGIONS, torch.tensor([[1.0, 9, 9, 7, 7]])])  # the last one has a negative size
    found = RoIPool((rows, columns), scale)(maps, rois)
    for n, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = corners[0] * scale, corners[1] * scale, (corners[2] + 1) * scale, (corners[3] + 1) * scale
        for c, i, j in itertools.product(range(2), range(rows), range(columns)):
            top, bottom = (math.floor(y1 + i * (y2 - y1) / rows), math.ceil(y1 + (i + 1) * (y2 - y1) / rows))
            left, right = (math.floor(x1 + j * (x2 - x1) / columns), math.ceil(x1 + (j + 1) * (x2 - x1) / columns))
            part = maps[int(image), c, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            wanted = float(part.max()) if part.numel() and x2 > x1 and y2 > y1 else 0.0
            assert float(found[n, c, i, j]) == wanted
    assert gradients_are_right(lambda maps: RoIPoolFunction.apply(maps, rois, (rows, columns), scale), maps)


@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolution(groups: int):
    """Offsets of zero give a convolution, offsets of one pixel one of the shifted map, factors scale it."""
    maps, weight, bias = random(2, 4, 6, 7), random(6, 4 // groups, 3, 3), random(6)
    offset, mask = torch.zeros(2, 18, 4, 5).double(), torch.full((2, 9, 4, 5), 0.5).double()
    plain = conv2d(maps, weight, groups=groups)
    assert relative_error(deform_conv2d(maps, offset, weight, 1, 0, 1, groups), plain) < 1e-12
    found = modulated_deform_conv2d(maps, offset, mask, weight, bias, 1, 0, 1, groups)
    assert relative_error(found, plain / 2 + bias[:, None, None]) < 1e-12
    offset[:, 0::2] = 1  # down
    shifted = conv2d(torch.cat([maps[:, :, 1:], torch.zeros(2, 4, 1, 7)], dim=2), weight, groups=groups)
    assert relative_error(deform_conv2d(maps, offset, weight, 1, 0, 1, groups), shifted) < 1e-12


def test_gradients_of_deformable_convolution():
    maps, weight, bias = random(2, 2, 4, 5), random(2, 1, 3, 3), random(2)
    offset, mask = 0.3 * random(2, 36, 4, 5) + 0.2, random(2, 18, 4, 5).sigmoid()  # two groups of offsets
    geometry = (1, 1, 1, 2, 2)  # stride, padding, dilation, groups, groups of offsets
    assert gradients_are_right(lambda *all: deform_conv2d(*all, *geometry), maps, offset, weight)
    assert gradients_are_right(lambda *all: modulated_deform_conv2d(*all, *geometry), maps, offset, mask, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deformable_convolution_in_half_precision(dtype: torch.dtype):
    maps, weight, offset = random(2, 2, 4, 5).to(dtype), random(2, 2, 3, 3).to(dtype), random(2, 18, 2, 3).to(dtype)
    found = deform_conv2d(maps, offset, weight)
    assert found.dtype == dtype
    assert relative_error(found.float(), deform_conv2d(maps.float(), offset.float(), weight.float())) < 0.01


def test_sigmoid_focal_loss():
    """-a (1 - p)^g log p for the class, -(1 - a) p^g log(1 - p) for the others; 3 of 3 classes is the background."""
    scores, classes = random(5, 3), torch.tensor([0, 2, 3, 1, 1])
    p, target = scores.sigmoid(), one_hot(classes, 4)[:, :3].bool()
    wanted = torch.where(target, -0.3 * (1 - p) ** 1.5 * p.log(), -0.7 * p**1.5 * (1 - p).log())
    torch.testing.assert_close(sigmoid_focal_loss(scores, classes, 1.5, 0.3, None, "none"), wanted)
    torch.testing.assert_close(sigmoid_focal_loss(scores, classes, 1.5, 0.3, None, "sum"), wanted.sum())
    weights = torch.tensor([1.0, 2, 3]).double()
    found = sigmoid_focal_loss(scores, classes, 1.5, 0.3, weights, "none")
    torch.testing.assert_close(found, wanted * torch.tensor([1.0, 3, 1, 2, 2])[:, None])  # by class of the sample
    assert gradients_are_right(lambda scores: sigmoid_focal_loss(scores, classes, 1.5, 0.3, weights, "mean"), scores)


@pytest.mark.parametrize("score", [100.0, -100.0])
def test_sigmoid_focal_loss_of_extreme_scores(score: float):
    scores = torch.full((2, 2), score, requires_grad=True)
    loss = sigmoid_focal_loss(scores, torch.tensor([0, 1]), 2.0, 0.25, None, "sum")
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


def test_softmax_focal_loss():
    scores, classes = random(5, 3), torch.tensor([0, 2, 2, 1, 1])
    plain = cross_entropy(scores, classes, reduction="none")
    wanted = 0.3 * (1 - (-plain).exp()) ** 1.5 * plain
    torch.testing.assert_close(softmax_focal_loss(scores, classes, 1.5, 0.3, None, "none"), wanted)
    weights = torch.tensor([1.0, 2, 3]).double()
    torch.testing.assert_close(
        SoftmaxFocalLoss(1.5, 0.3, weights, "mean")(scores, classes), (wanted * weights[classes]).mean()
    )
    assert gradients_are_right(lambda scores: softmax_focal_loss(scores, classes, 1.5, 0.3, weights, "sum"), scores)


@pytest.mark.parametrize("sizes", [[(4, 5)], [(4, 5), (2, 3), (1, 1)]])
def test_deformable_attention(sizes: list[tuple[int, int]]):
    """Equals mmcv's own version in Python, with samples inside and outside of the maps."""
    shapes = torch.tensor(sizes)
    value = random(2, int(shapes.prod(1).sum()), 3, 2)
    locations, weights = random(2, 4, 3, len(sizes), 2, 2, seed=1) + 0.5, random(2, 4, 3, len(sizes), 2, seed=2)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    found = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)
    wanted = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    torch.testing.assert_close(found, wanted)
    assert gradients_are_right(
        lambda value, locations, weights: MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, locations, weights, 64
        ),
        value, locations, weights,
    )  # fmt: skip


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(("kernel", "groups", "scale"), [(3, 1, 2), (5, 2, 3), (1, 2, 1)])
def test_carafe(kernel: int, groups: int, scale: int, naive: bool):
    features, masks = random(2, 4, 3, 4), random(2, groups * kernel**2, 3 * scale, 4 * scale, seed=1)
    found = (CARAFENaive if naive else CARAFE)(kernel, groups, scale)(features, masks)
    for b, c, y, x in itertools.product(range(2), range(4), range(3 * scale), range(4 * scale)):
        total = 0.0
        for i, j in itertools.product(range(kernel), range(kernel)):
            row, column = y // scale + i - kernel // 2, x // scale + j - kernel // 2
            if 0 <= row < 3 and 0 <= column < 4:
                channel = (c // (4 // groups) * kernel + i) * kernel + j
                total += float(features[b, c, row, column] * masks[b, channel, y, x])
        assert float(found[b, c, y, x]) == pytest.approx(total)


def test_gradients_of_carafe():
    features, masks = random(2, 4, 3, 4), random(2, 18, 6, 8, seed=1)
    assert gradients_are_right(lambda *all: CARAFEFunction.apply(*all, 3, 2, 2), features, masks)


@pytest.mark.filterwarnings("ignore:This overload of addmm is deprecated")
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0), (5, 2), ((3, 1), (1, 0))])
def test_masked_convolution(kernel, padding):
    """A convolution at the pixels of the mask, zero elsewhere."""
    torch.manual_seed(0)
    layer = MaskedConv2d(3, 4, kernel, padding=padding).double()
    maps = random(1, 3, 6, 7)
    mask = random(1, 6, 7, seed=1) > 0
    with torch.no_grad():
        torch.testing.assert_close(layer(maps, mask), layer(maps) * mask)
        assert not layer(maps, torch.zeros(1, 6, 7)).any()
