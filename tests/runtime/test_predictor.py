"""Predictions of exported models: boxes in pixels of the image, batches, tiles, padding, all tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_models import CLASSES, scene, write_model

from mmgcvit.errors import UsageError
from mmgcvit.runtime import Predictor, Resize
from mmgcvit.runtime.predictions import suppress

SCENES = [
    ((97, 401), (10, 20, 100, 50)),
    ((64, 64), (0, 0, 64, 64)),
    ((97, 401), (200, 5, 301, 97)),
    ((300, 211), (50, 40, 120, 250)),
    ((97, 401), (300, 60, 401, 90)),
]
IMAGES = [scene(*size, box) for size, box in SCENES]
BOXES = np.array([box for _, box in SCENES], np.float32)


def predictor(tmp_path: Path, task: str = "detection", options: dict | None = None, **changed) -> Predictor:
    return Predictor(write_model(tmp_path / "model.onnx", task, **changed), threads=1, **(options or {}))


def counted(model: Predictor) -> list[int]:
    """Batch sizes of the calls of the model."""
    sizes: list[int] = []
    run = model.session._run

    def counting(images: np.ndarray):
        sizes.append(len(images))
        return run(images)

    model.session._run = counting
    return sizes


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_boxes_and_order(tmp_path: Path, batch_size: int):
    model = predictor(tmp_path, options=dict(batch_size=batch_size))
    sizes = counted(model)
    found = model(IMAGES)
    np.testing.assert_array_equal(np.concatenate([one.boxes for one in found]), BOXES)
    for one, (size, _) in zip(found, SCENES, strict=True):
        assert (one.height, one.width) == size
        assert one.scores.tolist() == [1.0]
        assert one.labels.tolist() == [1]
        assert one.names == ["dog"]
        assert one.masks is None
        assert one.classes == CLASSES
    assert [one.name for one in found] == ["0", "1", "2", "3", "4"]
    assert sizes == {1: [1] * 5, 2: [1] * 5, 8: [3, 1, 1]}[batch_size]


def test_equal_sizes_are_batched(tmp_path: Path):
    model = predictor(tmp_path, options=dict(batch_size=2))
    sizes = counted(model)
    found = model(IMAGES[0::2])
    np.testing.assert_array_equal(np.concatenate([one.boxes for one in found]), BOXES[0::2])
    assert sizes == [2, 1]


def test_fixed_batch(tmp_path: Path):
    model = predictor(tmp_path, shape=(2, None, None))
    sizes = counted(model)
    found = model(IMAGES[0::2])
    np.testing.assert_array_equal(np.concatenate([one.boxes for one in found]), BOXES[0::2])
    assert sizes == [2, 2]
    with pytest.raises(UsageError, match=r"batch_size=3; allowed by .*model\.onnx: 2, which it was exported with"):
        predictor(tmp_path, shape=(2, None, None), options=dict(batch_size=3))


@pytest.mark.parametrize("shape", [(None, None, None), (3, 224, 352), (None, 256, 512)])
@pytest.mark.parametrize("masks", ["", "box", "image"])
def test_resized_and_padded(tmp_path: Path, shape: tuple, masks: str):
    resize = Resize("keep_ratio", (333, 200))
    model = predictor(tmp_path, masks=masks, resize=resize, shape=shape, pad=(20, 20, 20), options=dict(batch_size=3))
    for one, (size, box) in zip(model(IMAGES), SCENES, strict=True):
        pixel = max(max(size) / 333, min(size) / 200, max(size) / 352 if shape[1] else 0)  # of the network's input
        assert np.abs(one.boxes - box).max() <= max(1, pixel)
        assert one.boxes.min() >= 0
        assert (one.boxes[:, 2:] <= size[::-1]).all()
        if masks:
            (mask,) = one.masks
            assert mask.shape == size
            x1, y1, x2, y2 = box
            wanted = np.zeros(size, bool)
            wanted[y1:y2, x1 : (x1 + x2) // 2 if masks == "box" else x2] = True
            assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9


def test_objects_in_the_padding_are_dropped(tmp_path: Path):
    model = predictor(tmp_path, shape=(1, 100, 120), pad=(200, 200, 200))
    assert len(model(scene(100, 110, None))[0]) == 0
    assert model(scene(100, 110, (10, 20, 30, 40)))[0].boxes.tolist() == [[10, 0, 110, 100]]


def test_mask_of_a_box_that_reaches_into_the_padding(tmp_path: Path):
    model = predictor(tmp_path, masks="box", shape=(1, 128, 128), pad=(200, 200, 200))
    image = np.full((128, 60, 3), 20, np.uint8)
    image[30:70, 40:] = 200
    run = model.session._run

    def cut(images: np.ndarray):
        others = run(images)[1:]
        return [np.float32([[[40, 30, 80, 70], [0, 0, 0, 0]]]), *others]

    model.session._run = cut
    (found,) = model(image)
    assert found.boxes.tolist() == [[40, 30, 60, 70]]
    rows, columns = np.nonzero(found.masks[0])  # the left half of the box
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 69, 40, 59)
    assert found.masks[0][50, 40:].all()


def test_image_larger_than_the_input(tmp_path: Path):
    model = predictor(tmp_path, shape=(1, 100, 120))
    with pytest.raises(
        UsageError, match=r"image '1': an image of 401 x 97 pixels .*allowed by this model: at most 120"
    ):
        model([scene(20, 30, None), IMAGES[0]])


def test_orientation_grey_and_pillow_images(tmp_path: Path):
    image = Image.fromarray(IMAGES[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=100)
    image.convert("L").save(tmp_path / "grey.png")
    model = predictor(tmp_path)
    turned, grey, pillow = model([tmp_path / "turned.jpg", tmp_path / "grey.png", image])
    assert (turned.height, turned.width) == (401, 97)
    assert turned.boxes.tolist() == [[97 - 50, 10, 97 - 20, 100]]
    assert grey.boxes.tolist() == pillow.boxes.tolist() == [[10, 20, 100, 50]]
    assert [one.name for one in (turned, grey, pillow)] == ["turned.jpg", "grey.png", "2"]


def test_one_channel_and_float(tmp_path: Path):
    Image.fromarray(IMAGES[0][..., 0].astype(np.uint16) * 100).save(tmp_path / "deep.png")
    model = predictor(tmp_path, channels=1, dtype="float32")
    (found,) = model(tmp_path / "deep.png")
    assert found.scores.tolist() == [100.0]
    assert found.boxes.tolist() == [[0, 0, 401, 97]]  # the dark part has 2000
    assert model(IMAGES[0][..., 0])[0].boxes.tolist() == [[10, 20, 100, 50]]


@pytest.mark.parametrize("kind", ["box", "image"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_detector_in_tiles(tmp_path: Path, kind: str, batch_size: int):
    """Each tile finds one object; of the box that two tiles share both find a part."""
    image = scene(97, 401, (10, 20, 60, 50)) | scene(97, 401, (200, 5, 290, 60)) | scene(97, 401, (330, 70, 401, 97))
    model = predictor(tmp_path, masks=kind, options=dict(tile=128, batch_size=batch_size))
    sizes = counted(model)
    (found,) = model(image)
    assert sizes == ([1] * 4 if batch_size == 1 else [3, 1])  # tiles of 97 x 128 at 0, 96, 192 and 273
    assert sorted(found.boxes.tolist()) == [
        [10, 20, 60, 50],
        [200, 5, 224, 60],
        [200, 5, 290, 60],
        [273, 5, 401, 97],
    ]
    assert found.masks.shape == (4, 97, 401)
    for mask, (x1, y1, x2, y2) in zip(found.masks, found.boxes.astype(int), strict=True):
        wanted = np.zeros((97, 401), bool)
        wanted[y1:y2, x1 : (x1 + x2 + 1) // 2] = True
        if kind == "image":
            wanted = (image[..., 0] > 128) & np.pad(np.ones((y2 - y1, x2 - x1), bool), ((y1, 97 - y2), (x1, 401 - x2)))
        assert (mask & wanted).sum() / (mask | wanted).sum() > 0.9


def test_tiles_of_a_file_with_a_fixed_size(tmp_path: Path):
    model = predictor(tmp_path, shape=(1, 128, 128), options=dict(tile=128))
    np.testing.assert_array_equal(model(scene(97, 401, (10, 20, 60, 50)))[0].boxes, [[10, 20, 60, 50]])
    with pytest.raises(UsageError, match=r"tile=200; allowed by .*: at most 128 pixels"):
        predictor(tmp_path, shape=(1, 128, 128), options=dict(tile=200))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_one_unsuitable_image_in_tiles(tmp_path: Path, task: str):
    model = predictor(tmp_path, task, options=dict(tile=128))
    run = model.session._run

    def picky(images: np.ndarray):
        if images.shape[2] < 97:
            raise RuntimeError("too small")
        return run(images)

    model.session._run = picky
    failed: list[UsageError] = []
    sources = list(model.load.sources(IMAGES[:3]))
    assert [source.name for source, _ in model.run(sources, failed.append)] == ["0", "2"]
    (error,) = failed
    assert str(error).startswith("image '1': ")
    assert "too small" in str(error)
    with pytest.raises(UsageError, match=r"image '1': .*too small"):
        list(model.run(sources))


def test_suppression_equals_mmcv():
    ops = pytest.importorskip("mmcv.ops")
    import torch

    rng = np.random.default_rng(0)
    corners = rng.random((200, 2)) * 100
    boxes = np.concatenate([corners, corners + rng.random((200, 2)) * 60], axis=1).astype(np.float32)
    scores = rng.permutation(200).astype(np.float32) / 200
    _, wanted = ops.nms(torch.tensor(boxes), torch.tensor(scores), 0.5)
    assert suppress(boxes, scores, 0.5).tolist() == wanted.tolist()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("shape", [(None, None, None), (4, 320, 416)])
def test_segmentor(tmp_path: Path, batch_size: int, shape: tuple):
    model = predictor(tmp_path, "segmentation", shape=shape, pad=(255,) * 3, options=dict(batch_size=batch_size))
    for one, image in zip(model(IMAGES), IMAGES, strict=True):
        np.testing.assert_array_equal(one.labels, image[..., 0] > 128)
        assert one.labels.dtype == np.uint8


def test_segmentor_in_another_size(tmp_path: Path):
    model = predictor(tmp_path, "segmentation", resize=Resize("keep_ratio", (2 * 401, 2 * 300)))
    for one, image in zip(model(IMAGES), IMAGES, strict=True):
        assert one.labels.shape == image.shape[:2]
        assert (one.labels != (image[..., 0] > 128)).mean() < 0.02


@pytest.mark.parametrize("shape", [(None, None, None), (2, 64, 96)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.6])
def test_segmentor_in_tiles(tmp_path: Path, shape: tuple, overlap: float):
    options = dict(tile=64, overlap=overlap, batch_size=2)
    model = predictor(tmp_path, "segmentation", shape=shape, options=options)
    for one, image in zip(model(IMAGES), IMAGES, strict=True):
        np.testing.assert_array_equal(one.labels, image[..., 0] > 128)
    with pytest.raises(UsageError, match=r"tile=65; allowed by .*: at most 64 pixels"):
        predictor(tmp_path, "segmentation", shape=(2, 64, 96), options=dict(tile=65))


def test_classifier(tmp_path: Path):
    resize = Resize("shorter_side", (36, 36), (32, 32), "bicubic", antialias=True)
    model = predictor(tmp_path, "classification", resize=resize, options=dict(batch_size=4))
    sizes = counted(model)
    red, blue = np.zeros((97, 401, 3), np.uint8), np.zeros((60, 50, 3), np.uint8)
    red[..., 0], blue[..., 2] = 100, 150
    first, second = model([red, blue])
    assert sizes == [2]
    wanted = np.exp([2, 0, 0]) / np.exp([2, 0, 0]).sum()
    np.testing.assert_allclose(first.probabilities, wanted, rtol=1e-5)
    assert [name for name, _ in first.top(2)] == ["cat", "dog"]
    assert second.top(1) == [(CLASSES[2], pytest.approx(np.exp(3) / (np.exp(3) + 2), rel=1e-5))]
    with pytest.raises(UsageError, match="tile=64: not supported for classifiers; omit it"):
        predictor(tmp_path, "classification", options=dict(tile=64))


def test_options(tmp_path: Path):
    for options, words in (
        (dict(batch_size=0), "batch_size=0; allowed: at least 1"),
        (dict(tile=16), "tile=16; allowed: at least 32 pixels"),
        (dict(overlap=1), "overlap=1; allowed: from 0 to below 1"),
    ):
        with pytest.raises(UsageError, match=words):
            predictor(tmp_path, options=options)


def test_drawing_of_another_image(tmp_path: Path):
    model = predictor(tmp_path)
    (found,) = model(IMAGES[0])
    assert model.draw(IMAGES[0], found).size == (401, 97)
    for wrong in (IMAGES[1], IMAGES[:2]):
        with pytest.raises(UsageError, match=r"image: of .* pixels; allowed: one image of 401 x 97"):
            model.draw(wrong, found)


def test_values_that_are_not_finite(tmp_path: Path):
    for task, name in (("detection", "boxes"), ("detection", "scores"), ("classification", "probabilities")):
        model = predictor(tmp_path, task)
        run = model.session._run
        index = model.info.outputs.index(name)

        def broken(images: np.ndarray, run=run, index=index):
            outputs = [np.array(values) for values in run(images)]
            outputs[index][0, 0] = np.nan
            return outputs

        model.session._run = broken
        with pytest.raises(UsageError, match=r"model\.onnx: predicts NaN or infinite values"):
            model(IMAGES[0])


def test_stream_is_lazy(tmp_path: Path):
    taken: list[int] = []

    def images():
        for i, image in enumerate(IMAGES):
            taken.append(i)
            yield image

    stream = predictor(tmp_path).stream(images())
    assert next(stream).boxes.tolist() == [[10, 20, 100, 50]]
    assert taken == [0]


def test_more_classes_than_names(tmp_path: Path):
    for task in ("detection", "segmentation", "classification"):
        model = predictor(tmp_path, task, classes=("cat",), palette=((1, 2, 3),))
        with pytest.raises(UsageError, match=r"model\.onnx: predicts .*; it names"):
            model(IMAGES[0])
