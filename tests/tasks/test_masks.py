"""Masks of COCO annotations: each broken one is described, and intact ones are not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pycocotools")

from pycocotools import mask as coco_mask

from mmgcvit.tasks.detection.masks import decompress, extent, mask_error, usable_polygons

WIDTH, HEIGHT = 64, 48
AREA = WIDTH * HEIGHT


def blobs(seed: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A random mask (H, W), which begins with background or an object."""
    small = np.random.default_rng(seed).random((shape[0] // 6 + 1, shape[1] // 7 + 1)) < 0.4
    return np.kron(small, np.ones((6, 7), bool))[: shape[0], : shape[1]]


@pytest.mark.parametrize("shape", [(48, 64), (1, 1), (501, 777), (3, 5)])
def test_decompressed_runs_are_those_of_the_mask(shape: tuple[int, int]):
    for seed in range(20):
        mask = blobs(seed, shape)
        runs = decompress(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode())
        values = np.arange(len(runs)) % 2
        assert (np.repeat(values, runs) == mask.ravel(order="F")).all()


@pytest.mark.parametrize("text", ["abc~", "o", "PPPo", "oooooooo1", "ü", "\0", " ", "/"])
def test_strings_that_are_no_runs(text: str):
    assert decompress(text) is None


def test_intact_masks():
    mask = blobs(0)
    compressed = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    for counts in (compressed, decompress(compressed).tolist(), [AREA], [0, AREA]):
        assert mask_error(dict(size=[HEIGHT, WIDTH], counts=counts), WIDTH, HEIGHT, True) is None
    for polygons in ([[5, 5, 20.5, 5, 20, 20]], [[-3, -3, 70, 0, 70, 50]], [[0, 0, 9, 0, 9, 9], [1, 2, 3, 4]]):
        assert mask_error(polygons, WIDTH, HEIGHT, True) is None


@pytest.mark.parametrize(("change", "says"), [
    (dict(size=[WIDTH, HEIGHT]), "run lengths of size [64, 48]; allowed: [48, 64], height and width of the image"),
    (dict(size=[5, 5], counts=[25]), "run lengths of size [5, 5]; allowed: [48, 64]"),
    (dict(size=[48.0, 64.0]), "run lengths of size [48.0, 64.0]; allowed: [48, 64]"),
    (dict(size="x"), "run lengths of size 'x'"),
    (dict(size=[48, 64, 1]), "run lengths of size [48, 64, 1]"),
    (dict(size=[10**6, 10**6], counts=[10**12]), "run lengths of size [1000000, 1000000]"),
    (dict(counts=None), "run lengths without counts"),
    (dict(size=None), "run lengths without size"),
    (dict(counts=[]), "run lengths of 0 pixels in all; allowed: 3072"),
    (dict(counts=""), "run lengths of 0 pixels in all"),
    (dict(counts=[1]), "run lengths of 1 pixel in all"),
    (dict(counts=[0, 10**7]), "run lengths of 10000000 pixels in all"),
    (dict(counts=[2**40]), f"run lengths of {2**40} pixels in all"),
    (dict(counts=[-1, AREA + 1]), "a run length of -1; allowed: 0 or more"),
    (dict(counts=[1.5, AREA - 1.5]), "counts=[1.5, 3070.5]; allowed: a list of integers"),
    (dict(counts=[[AREA]]), "counts=[[3072]]; allowed: a list of integers"),
    (dict(counts=5), "counts=5; allowed: a list of integers, or a string of compressed run lengths"),
    (dict(counts="0" * 100000), "run lengths of 0 pixels in all"),
    (dict(counts="o" * 5000), "no compressed run lengths"),
    (dict(counts="PPYo1"), "pixels in all; allowed: 3072"),
])  # fmt: skip
def test_broken_run_lengths(change: dict, says: str):
    mask = dict(size=[HEIGHT, WIDTH], counts=[0, AREA]) | change
    for evaluated in (False, True):
        assert says in mask_error(mask, WIDTH, HEIGHT, evaluated)


@pytest.mark.parametrize(("mask", "says"), [
    (None, "no segmentation; use a detector without masks if there are only boxes"),
    ([], "no segmentation"),
    ("none", "segmentation; allowed: a list of polygons, or run lengths"),
    ([1, 2, 3, 4, 5, 6], "segmentation; allowed: a list of polygons"),
    ([[1, 2, "x", 4, 5, 6]], "a polygon contains something other than numbers"),
    ([[[1, 2], [3, 4], [5, 6]]], "a polygon contains something other than numbers"),
    ([[0, 0, 1, 0, 1, float("nan")]], "a polygon contains something other than numbers"),
    ([[0, 0, 1, 0, 1, float("inf")]], "a polygon contains something other than numbers"),
    ([[0, 0, 1, 0, 1, 10**400]], "a polygon contains something other than numbers"),
    ([[0, 0, 1, 0, True, 1]], "a polygon contains something other than numbers"),
    ([[0, 0, 1e9, 0, 1e9, 1e9]], "a polygon with coordinates from 0 to 1e+09, in an image of 64 x 48"),
    ([[0, 0, 1e6, 0, 1e6, 1e6]], "a polygon of 3e+06 pixels around, with coordinates from 0 to 1e+06"),
    ([[0, 0, 9000, 9000] * 100], "a polygon of 1.8e+06 pixels around"),
])  # fmt: skip
def test_broken_polygons(mask: object, says: str):
    for evaluated in (False, True):
        assert says in mask_error(mask, WIDTH, HEIGHT, evaluated)


def test_long_polygons_in_large_images():
    comb = [value for i in range(400) for value in (i, 9000 * (i % 2))]
    assert mask_error([comb], 400, 9000, False) == (
        "a polygon of 3.6e+06 pixels around, with coordinates from 0 to 9000, in an image of 400 x 9000; allowed: at "
        "most 1000000 pixels around"
    )
    assert mask_error([comb], 9000, 9000, False) is None


@pytest.mark.parametrize("mask", [
    [[]], [[1, 2]], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[], [0, 0, 9, 0, 9, 9]], [[1, 2, 3, 4], [0, 0, 9, 0, 9, 9]],
    [[1], [0, 0, 9, 0, 9, 9]], [[0, 0, 9, 0, 9, 9, 5]]])  # fmt: skip
def test_short_polygons_break_only_evaluations(mask: list):
    """mmdet leaves them out in training; pycocotools fails, or takes four numbers for a box."""
    assert mask_error(mask, WIDTH, HEIGHT, False) is None
    assert "allowed: x, y of at least 3 points: the evaluation of masks would fail" in mask_error(
        mask, WIDTH, HEIGHT, True
    )


def test_extent():
    polygons = [[5, 6, 20, 7, 10, 30], [1, 2, 3, 4], [3, 8, 4, 9, 2, 40, 7]]
    assert usable_polygons(polygons) == polygons[:1]
    assert extent([polygons[0], [3, 8, 4, 9, 2, 40]]) == (2, 6, 20, 40)
