"""Images as exported files take them."""

import numpy as np
import pytest
from PIL import Image

from mmgcvit.export.inputs import made_up_images, network_inputs
from mmgcvit.runtime.metadata import ModelInfo, Resize


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((None, None, None), [(1, 3, 90, 120), (3, 3, 60, 90)]),
        ((None, 100, 130), [(1, 3, 100, 130), (3, 3, 100, 130)]),
        ((2, None, None), [(2, 3, 90, 120), (2, 3, 60, 90)]),
        ((1, 100, 130), [(1, 3, 100, 130)]),
    ],
)
def test_sizes_and_batches(tmp_path, shape, expected):
    """Of an image of 60 x 80 pixels that the pipeline enlarges by half."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    resize = Resize("keep_ratio", (120, 90))
    info = ModelInfo("detection", ("a",), ((1, 2, 3),), shape=shape, resize=resize, pad=(9, 8, 7))
    batches = list(network_inputs(info, [tmp_path]))
    assert [batch.shape for batch in batches] == expected
    for batch in batches:
        assert batch.dtype == np.uint8
        if len(batch) > 1:
            np.testing.assert_array_equal(batch[1], batch[0][:, :, ::-1])
    if shape[1]:
        assert (batches[0][0, :, 95, 125] == (9, 8, 7)).all()


@pytest.mark.parametrize("shape", [(None, None, None), (2, 64, 96)])
def test_made_up_images(shape):
    images = made_up_images(ModelInfo("detection", ("a",), ((1, 2, 3),), channels=4, shape=shape))
    for image in images:
        assert image.dtype == np.uint8
        assert image.std() > 30
        assert all(fixed in (None, size) for fixed, size in zip(shape, (len(image), *image.shape[2:]), strict=True))
    assert len({image.shape for image in images}) == (4 if shape[1] is None else 1)
