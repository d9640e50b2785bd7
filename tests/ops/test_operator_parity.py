"""Outputs and gradients equal those of mmcv's compiled operators, where these are installed and run on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("mmcv.ops")
from mmcv.ops import (
    batched_nms,
    bbox_overlaps,
    deform_conv2d,
    modulated_deform_conv2d,
    nms,
    nms_match,
    roi_align,
    soft_nms,
)
from mmcv.ops.psa_mask import psa_mask
from operator_modules import compiled_only, ours

pytestmark = compiled_only
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def agree(run: Callable[[], object], rtol: float | None = None, atol: float | None = None) -> object:
    """Run a function with compiled operators and with ours; compare the results, which are returned."""
    compiled = run()
    with ours():
        found = run()
    torch.testing.assert_close(found, compiled, rtol=rtol, atol=atol, equal_nan=True)
    return found


def with_gradients(function: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """Output of a function, and the gradients of a weighted sum of it by the tensors."""
    tensors = tuple(tensor.clone().requires_grad_() for tensor in tensors)
    output = function(*tensors)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, tensors, weights)]


def boxes_and_scores(count: int, seed: int, levels: int | None = None) -> tuple[Tensor, Tensor]:
    """Random overlapping boxes; ``levels`` limits the number of different scores."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40], dim=1)
    scores = torch.rand(count, generator=generator)
    return boxes, scores if levels is None else (scores * levels).floor() / levels


BOXES = {
    "random": boxes_and_scores(300, 0),
    "ties": boxes_and_scores(300, 1, levels=5),
    "one score": boxes_and_scores(100, 2, levels=1),
    "none": (torch.zeros(0, 4), torch.zeros(0)),
    "one": (torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([0.5])),
    "equal": (torch.tensor([[1.0, 2, 30, 40]]).repeat(7, 1), torch.linspace(0, 1, 7)),
    "no area": (
        torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9], [9, 9, 0, 0]]),
        torch.tensor([0.1, 0.2, 0.3, 1]),
    ),
    "negative": (boxes_and_scores(50, 3)[0] - 80, boxes_and_scores(50, 3)[1]),
    "NaN scores": (boxes_and_scores(6, 4)[0], torch.tensor([0.5, torch.nan, 0.7, torch.nan, 0.6, 0.7])),
    "NaN boxes": (boxes_and_scores(6, 4)[0].index_fill(0, torch.tensor([2]), torch.nan), torch.linspace(1, 0, 6)),
    "whole numbers": (boxes_and_scores(200, 5)[0].round(), boxes_and_scores(200, 5)[1]),
}
BOX_CASES = pytest.mark.parametrize("case", BOXES)


@BOX_CASES
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_nms(case: str, threshold: float, offset: int):
    boxes, scores = BOXES[case]
    agree(lambda: nms(boxes, scores, threshold, offset=offset))


def test_nms_at_the_threshold():
    """An overlap that equals the threshold in float32 does not suppress."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 3], [0, 0, 10, 6], [0, 0, 10, 7]])
    for threshold in (0.3, 0.6, 0.7):
        agree(lambda threshold=threshold: nms(boxes, torch.tensor([4.0, 3, 2, 1]), threshold))


def test_nms_with_few_results_and_low_scores():
    boxes, scores = BOXES["random"]
    _, kept = agree(lambda: nms(boxes, scores, 0.5, score_threshold=0.4, max_num=5))
    assert len(kept) == 5


@pytest.mark.parametrize("kind", ["nms", "soft_nms"])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("split", [10000, 10])
def test_batched_nms(kind: str, agnostic: bool, split: int):
    boxes, scores = BOXES["random"]
    classes = torch.arange(len(boxes)) % 4
    settings = dict(type=kind, iou_threshold=0.4, split_thr=split)
    agree(lambda: batched_nms(boxes, scores, classes, settings, class_agnostic=agnostic))


@BOX_CASES
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(case: str, method: str, offset: int):
    boxes, scores = BOXES[case]
    agree(lambda: soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset))


@BOX_CASES
def test_nms_match(case: str):
    boxes, scores = BOXES[case]
    agree(lambda: nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.4))


@DTYPES
@pytest.mark.parametrize("mode", ["iou", "iof"])
@pytest.mark.parametrize("offset", [0, 1])
def test_overlaps(mode: str, offset: int, dtype: torch.dtype):
    first, second = (
        torch.cat([BOXES["random"][0][part], BOXES["no area"][0]]).to(dtype) for part in (slice(9), slice(9, 40))
    )
    agree(lambda: bbox_overlaps(first, second, mode, False, offset))
    agree(lambda: bbox_overlaps(first, second[: len(first)], mode, True, offset))


def regions(dtype: torch.dtype) -> Tensor:
    """Regions in images of 44 x 60 pixels: inside, across the border, outside, without area, tiny, the whole image."""
    corners = [
        [3.2, 4.1, 30.7, 25.9], [-12, -9, 20, 15], [40, 30, 80, 60], [100, 100, 130, 120], [7, 7, 7, 7],
        [9.3, 9.3, 9.31, 20], [0, 0, 60, 44], [59.9, 43.9, 60, 44], [-4, -4, -3, -3], [12, 3, 14, 40],
    ]  # fmt: skip
    image = torch.arange(len(corners)) % 2
    return torch.cat([image[:, None], torch.tensor(corners)], dim=1).to(dtype)


@DTYPES
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [(7, 7), (2, 5), 1])
def test_roi_align(size, sampling_ratio: int, aligned: bool, pool_mode: str, dtype: torch.dtype):
    maps = torch.randn(2, 3, 11, 15, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def pooled(maps: Tensor) -> Tensor:
        return roi_align(maps, regions(dtype), size, 0.25, sampling_ratio, pool_mode, aligned)

    agree(lambda: with_gradients(pooled, maps))


def test_roi_align_of_no_regions():
    """As in a batch whose images are all empty."""
    maps = torch.randn(2, 3, 11, 15)
    output, gradient = agree(lambda: with_gradients(lambda maps: roi_align(maps, torch.zeros(0, 5), 7, 0.25, 2), maps))
    assert output.shape == (0, 3, 7, 7)
    assert not gradient.any()


def test_roi_align_of_an_image_without_regions():
    maps = torch.randn(3, 2, 11, 15)
    rois = regions(torch.float32)[1::2].contiguous()  # all in the second image; mmcv ignores strides
    _, gradient = agree(lambda: with_gradients(lambda maps: roi_align(maps, rois, 3, 0.25, 2), maps))
    assert [bool(part.any()) for part in gradient] == [False, True, False]


def convolution(dtype: torch.dtype, groups: int, deform_groups: int, batch: int) -> list[Tensor]:
    """A map, offsets of up to several pixels, factors, weights and a bias of a 3 x 2 convolution with a stride of 2."""
    generator = torch.Generator().manual_seed(groups + 10 * deform_groups + batch)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, generator=generator)

    maps, weight, bias = random(batch, 4, 9, 12), random(6, 4 // groups, 3, 2), random(6)
    offset, mask = 2 * random(batch, deform_groups * 12, 5, 7), random(batch, deform_groups * 6, 5, 7).sigmoid()
    return [maps, offset, mask, weight, bias]


GROUPS = pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])


@DTYPES
@GROUPS
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_deformable_convolution(groups: int, deform_groups: int, batch: int, dtype: torch.dtype):
    maps, offset, _, weight, _ = convolution(dtype, groups, deform_groups, batch)
    geometry = ((2, 2), (1, 1), (1, 1), groups, deform_groups)
    agree(lambda: with_gradients(lambda *tensors: deform_conv2d(*tensors, *geometry), maps, offset, weight))


@DTYPES
@GROUPS
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_modulated_deformable_convolution(
    groups: int, deform_groups: int, batch: int, with_bias: bool, dtype: torch.dtype
):
    tensors = convolution(dtype, groups, deform_groups, batch)
    geometry = ((2, 2), (1, 1), (1, 1), groups, deform_groups)

    def run(*tensors: Tensor) -> Tensor:
        return modulated_deform_conv2d(*tensors, *([] if with_bias else [None]), *geometry)

    agree(lambda: with_gradients(run, *tensors[: 5 if with_bias else 4]))


def test_dilated_deformable_convolution():
    maps, _, _, weight, _ = convolution(torch.float64, 1, 1, 2)
    offset = torch.randn(2, 12, 7, 10, dtype=torch.float64)
    agree(
        lambda: with_gradients(
            lambda *all: deform_conv2d(*all, 1, (1, 0), (2, 2), 1, 1), maps, offset[:, :, :7], weight
        )
    )


@DTYPES
@pytest.mark.parametrize("kind", [0, 1], ids=["collect", "distribute"])
@pytest.mark.parametrize("size", [(5, 7), (3, 3), (9, 11)])
def test_attention_masks(size: tuple[int, int], kind: int, dtype: torch.dtype):
    masks = torch.randn(2, size[0] * size[1], 4, 6, dtype=dtype)
    agree(lambda: with_gradients(lambda masks: psa_mask(masks, kind, size), masks))
