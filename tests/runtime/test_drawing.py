"""Drawings: colours where they belong, text that is readable, sizes from one pixel to large images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mmgcvit.runtime.drawing import draw
from mmgcvit.runtime.masks import Region
from mmgcvit.runtime.predictions import Classification, Detections, Prediction, Segmentation

CLASSES = ("cat", "dog", "a very long name of a class that does not fit into a small image", "猫")
PALETTE = ((220, 20, 60), (0, 130, 32), (0, 0, 230), (250, 250, 0))


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def detections(height: int, width: int, boxes: list, scores: list, labels: list, regions=None) -> Detections:
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    return Detections("a", height, width, CLASSES, *arrays, regions)


def test_boxes_and_masks():
    region = Region(np.ones((100, 50), bool), 200, 100)
    found = detections(600, 800, [[200, 100, 400, 300], [500, 400, 700, 500]], [0.9, 0.2], [0, 1])
    found.regions = [region, Region(np.ones((100, 200), bool), 500, 400)]
    image = np.asarray(draw(grey(600, 800), found, PALETTE))
    assert image.shape == (600, 800, 3)
    assert image[299, 300].tolist() == [220, 20, 60]  # the lower line of the box
    assert image[200, 399].tolist() == [220, 20, 60]
    assert image[150, 220].tolist() == [154, 64, 82]  # 0.55 x grey + 0.45 x colour
    assert image[250, 220].tolist() == [100, 100, 100]
    assert image[450, 600].tolist() == [100, 100, 100]  # below the threshold
    assert (image[70:100, 200:260] == (220, 20, 60)).all(-1).mean() > 0.3  # the label, above the box
    assert (np.asarray(draw(grey(600, 800), found, PALETTE, 0.1))[420:480, 520:680] != 100).all(-1).mean() > 0.95


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (97, 401), (20, 900), (3000, 4000)])
def test_text_is_readable(size: tuple[int, int]):
    """The letters of a label have a height of at least 9 pixels, and are inside the image."""
    height, width = size
    box = [0, 0, width, height]
    image = np.asarray(draw(np.zeros((height, width, 3), np.uint8), detections(*size, [box], [0.87], [0]), PALETTE))
    white = (image > 200).all(-1)
    rows = np.flatnonzero(white.any(1))
    assert rows[-1] - rows[0] + 1 >= 9
    assert white.sum() > 60


def test_labels_of_neighbours_do_not_overlap():
    boxes = [[100, 100, 300, 300], [102, 101, 300, 310], [98, 103, 310, 300]]
    found = detections(600, 800, boxes, [0.9, 0.8, 0.7], [0, 1, 2])
    image = np.asarray(draw(grey(600, 800), found, PALETTE))
    # of each label the first columns are visible
    for colour in PALETTE[:3]:
        assert (image[:, 104:112] == colour).all(-1).sum() > 60


def test_text_of_every_alphabet():
    draw(grey(64, 64), detections(64, 64, [[3, 4, 60, 60]], [0.9], [3]), PALETTE)
    assert draw(grey(64, 64), Classification("a", 64, 64, CLASSES, np.ones(4) / 4), PALETTE).width >= 480


@pytest.mark.parametrize("size", [(64, 64), (97, 401), (700, 900)])
def test_label_map(size: tuple[int, int]):
    height, width = size
    labels = np.zeros(size, np.uint8)
    labels[:, width // 2 :] = 1
    image = np.asarray(draw(grey(*size), Segmentation("a", *size, CLASSES, labels), PALETTE))
    zoom = max(1, round(512 / max(size)))
    assert image.shape[1] >= zoom * width
    assert image.shape[0] > zoom * height
    assert image[5, 5].tolist() == [160, 60, 80]
    assert image[5, zoom * width - 5].tolist() == [50, 115, 66]
    legend = image[zoom * height :]
    for colour in PALETTE[:2]:
        assert (legend == colour).all(-1).sum() > 100
    assert not (legend == PALETTE[2]).all(-1).any()  # this class is not in the image
    assert (legend > 200).all(-1).sum() > 100


def test_legend_of_many_classes():
    classes = tuple(f"class {i}" for i in range(150))
    palette = [(i, 255 - i, 3) for i in range(150)]
    labels = np.arange(150, dtype=np.uint8).repeat(6 * 600).reshape(900, 600)
    image = draw(np.zeros((900, 600, 3), np.uint8), Segmentation("a", 900, 600, classes, labels), palette)
    assert image.width == 600
    assert 900 < image.height < 1800


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (401, 97), (1500, 2000)])
def test_classes_are_below_the_image(size: tuple[int, int]):
    image = grey(*size)
    found = Classification("a", *size, CLASSES, np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    drawn = np.asarray(draw(image, found, PALETTE))
    zoom = max(1, round(512 / max(size)))
    assert (drawn[: zoom * size[0], : zoom * size[1]] == 100).all()
    assert (drawn[zoom * size[0] :] > 200).all(-1).sum() > 100


@pytest.mark.parametrize(
    "found",
    [
        detections(5, 7, [], [], []),
        detections(5, 7, [[1, 1, 1, 1]], [0.5], [0], [Region(np.zeros((0, 0), bool), 0, 0)]),
    ],
)
def test_nothing_found(found: Prediction):
    assert draw(grey(5, 7), found, PALETTE).size == (7 * 73, 5 * 73)


def test_grey_deep_and_multispectral_images():
    found = detections(64, 64, [[3, 4, 60, 60]], [0.9], [0])
    for pixels in (
        np.full((64, 64, 1), 7, np.uint8),
        np.linspace(0, 4095, 64 * 64, dtype=np.float32).reshape(64, 64, 1),
    ):
        assert draw(pixels, found, PALETTE).mode == "RGB"
    image = np.zeros((64, 64, 6), np.uint8)
    image[..., 1] = 99
    assert np.asarray(draw(image, found, PALETTE))[300, 300].tolist() == [0, 99, 0]


def test_image_is_unchanged():
    image = grey(900, 900)
    draw(image, detections(900, 900, [[3, 4, 60, 60]], [0.9], [0], [Region(np.ones((9, 9), bool), 5, 5)]), PALETTE)
    assert (image == 100).all()
    assert isinstance(draw(image, detections(900, 900, [], [], []), PALETTE), Image.Image)
