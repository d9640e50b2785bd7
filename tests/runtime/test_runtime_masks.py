"""Masks: pasting equals mmdet's, run lengths equal those of pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgcvit.runtime.masks import Region, enlarge, paste

coco_mask = pytest.importorskip("pycocotools.mask")


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_paste_equals_mmdet(threshold: float):
    head = pytest.importorskip("mmdet.models.roi_heads.mask_heads.fcn_mask_head")
    generator = torch.Generator().manual_seed(0)
    height, width, differ = 97, 131, 0
    for i in range(60):
        size = (28, 14, 7)[i % 3]
        mask = torch.rand(1, 1, size, size, generator=generator)
        centre = torch.rand(2, generator=generator) * torch.tensor([width, height])
        sides = torch.rand(2, generator=generator) * torch.tensor([width, height]) * (0.02 if i % 4 else 1)
        box = torch.cat([centre - sides / 2, centre + sides / 2])
        box = torch.stack([box[0::2].clamp(0, width), box[1::2].clamp(0, height)]).T.reshape(1, 4)
        pasted, (rows, columns) = head._do_paste_mask(mask, box, height, width, skip_empty=True)
        wanted = np.zeros((height, width), bool)
        wanted[rows, columns] = (pasted[0] >= threshold).numpy()
        found = paste(mask[0, 0].numpy(), box[0].numpy(), height, width, threshold).full(height, width)
        differ += int((found != wanted).sum())
        assert (found != wanted).sum() <= 2  # values that are the threshold up to rounding
    assert differ <= 5


def test_paste_of_an_empty_box():
    region = paste(np.ones((4, 4), np.float32), np.array([5, 5, 5, 5], np.float32), 10, 20, 0.5)
    assert region.full(10, 20).sum() <= 4


@pytest.mark.parametrize(("mask_size", "part"), [((48, 64), (1.0, 1.0)), ((24, 40), (0.75, 0.9)), ((1, 1), (1.0, 1.0))])
def test_enlarge_equals_interpolation(mask_size: tuple[int, int], part: tuple[float, float]):
    rng = np.random.default_rng(0)
    mask = F.interpolate(torch.tensor(rng.random((1, 1, 3, 4))), mask_size, mode="bilinear")[0, 0].numpy()
    rows, columns = round(mask_size[0] * part[0]), round(mask_size[1] * part[1])
    wanted = F.interpolate(torch.tensor(mask)[None, None, :rows, :columns], (97, 131), mode="bilinear")[0, 0].numpy()
    region = enlarge(mask, part, 97, 131, 0.5)
    found = region.full(97, 131)
    inner = slice(0, 97 - 97 // rows), slice(0, 131 - 131 // columns)  # the padding matters at the border
    if part == (1.0, 1.0):
        inner = slice(None), slice(None)
    assert (found != (wanted >= 0.5))[inner].mean() < 1e-3
    assert region.box() == (0, 0, 0, 0) or (region.mask.any(0)[[0, -1]].all() and region.mask.any(1)[[0, -1]].all())


def check_run_lengths(mask: np.ndarray, region: Region) -> None:
    wanted = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = region.run_lengths(*mask.shape)
    assert found == dict(size=list(wanted["size"]), counts=wanted["counts"].decode())
    np.testing.assert_array_equal(region.full(*mask.shape), mask)
    x1, y1, x2, y2 = region.box()
    assert [x1, y1, x2 - x1, y2 - y1] == coco_mask.toBbox(wanted).tolist()


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(0, 5), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_run_lengths_equal_pycocotools(h: int, w: int, share: float, seed: int, right: int, down: int):
    part = np.random.default_rng(seed).random((h, w)) < share
    mask = np.zeros((h + 2 * down, w + 2 * right), bool)
    mask[down : down + h, right : right + w] = part
    check_run_lengths(mask, Region(part, right, down))


@pytest.mark.parametrize("value", [True, False])
def test_run_lengths_of_full_and_empty_masks(value: bool):
    mask = np.full((1000, 1200), value)
    check_run_lengths(mask, Region(mask, 0, 0))
    check_run_lengths(np.zeros((5, 7), bool), Region(np.zeros((0, 0), bool), 0, 0))
