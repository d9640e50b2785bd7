"""Resizing in numpy and Pillow equals that of OpenCV, mmcv and timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmgcvit.errors import UsageError
from mmgcvit.runtime.metadata import ModelInfo, Resize
from mmgcvit.runtime.resize import center_crop, prepare, resize

cv2 = pytest.importorskip("cv2")
SIZES = [(97, 401), (64, 64), (31, 7), (1, 1), (1, 50), (300, 211)]


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Noise of several frequencies."""
    rng = np.random.default_rng(height * 1000 + width)
    image = sum(
        cv2.resize(rng.random((max(1, height // s), max(1, width // s), channels)), (width, height)).reshape(
            height, width, channels
        )
        for s in (1, 4, 16)
    )
    return (image * 85).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(80, 333), (33, 20), (150, 150), (1, 2), (48, 200)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_equals_opencv(size: tuple[int, int], target: tuple[int, int], interpolation: str):
    how = Resize("fixed", target, interpolation=interpolation)
    flag = dict(nearest=cv2.INTER_NEAREST, bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC)[interpolation]
    for image in (photo(*size), photo(*size, 1), photo(*size, 6), photo(*size).astype(np.float32) * 200):
        wanted = cv2.resize(image, target[::-1], interpolation=flag).reshape(*target, image.shape[2])
        found = resize(image, how)
        assert found.dtype == image.dtype
        errors = np.abs(found.astype(np.float64) - wanted)
        if interpolation == "nearest":
            assert not errors.any()
        elif image.dtype == np.uint8:
            assert errors.max() <= 1
            assert errors.mean() < (0.1 if interpolation == "bicubic" else 0.01)
        else:
            assert errors.max() <= 1e-4 * image.max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [(333, 80), (80, 333), (1333, 800)])
def test_keep_ratio_equals_mmcv(size: tuple[int, int], scale: tuple[int, int]):
    mmcv = pytest.importorskip("mmcv")
    image = photo(*size)
    if min(mmcv.imrescale(image, scale).shape[:2] if size not in ((1, 50), (31, 7)) else (1,)) < 1:
        pytest.skip("mmcv makes an image without pixels")
    wanted = mmcv.imrescale(image, scale)
    found = resize(image, Resize("keep_ratio", scale))
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("img_size", "crop_pct", "crop_mode"),
    [(224, 0.875, "center"), (64, 1.0, "center"), (65, 0.9, "squash"), ((48, 64), 1.0, "squash"), (32, 1.2, "center")],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_timm(size, img_size, crop_pct: float, crop_mode: str, interpolation: str):
    from timm.data import create_transform

    transform = create_transform(
        input_size=(3, *((img_size, img_size) if isinstance(img_size, int) else img_size)),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        interpolation=interpolation,
        use_prefetcher=True,
    )
    crop = (img_size, img_size) if isinstance(img_size, int) else img_size
    scaled = int(crop[0] / crop_pct), int(crop[1] / crop_pct)
    kind = "fixed" if crop_mode == "squash" else "shorter_side"
    how = Resize(kind, scaled, crop, interpolation, antialias=True)
    image = photo(*size)
    wanted = torch.as_tensor(transform(Image.fromarray(image))).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(resize(image, how), wanted)


def test_antialias_for_other_types_and_channels():
    image = photo(97, 101, 5)
    how = Resize("fixed", (20, 30), antialias=True)
    found = resize(image, how)
    wanted = np.asarray(Image.fromarray(image[..., 3]).resize((30, 20), Image.Resampling.BILINEAR))
    assert np.abs(found[..., 3].astype(int) - wanted).max() <= 1
    floats = resize(image.astype(np.float32) * 100, how)
    assert floats.dtype == np.float32
    assert np.abs(floats[..., 3] / 100 - wanted).max() <= 1


def test_center_crop_of_a_smaller_image():
    image = photo(3, 8)
    found = center_crop(image, (6, 5))
    np.testing.assert_array_equal(found[1:4], image[:, 2:7])  # as torchvision: half of the odd pixel is cut off
    assert not found[[0, 4, 5]].any()


def info(**changed) -> ModelInfo:
    return ModelInfo("detection", ("cat",), ((0, 0, 0),), **changed)


def test_padding_to_a_fixed_shape():
    found = prepare(photo(97, 401), info(resize=Resize("keep_ratio", (200, 64)), shape=(1, 64, 224), pad=(1, 2.6, 3)))
    assert found.pixels.shape == (64, 224, 3)
    assert (found.height, found.width) == (48, 200)
    assert found.scale == (200 / 401, 48 / 97)
    assert (found.pixels[48:] == (1, 3, 3)).all()
    assert (found.pixels[:, 200:] == (1, 3, 3)).all()
    np.testing.assert_array_equal(found.pixels[:48, :200], resize(photo(97, 401), Resize("fixed", (48, 200))))


def test_image_in_another_orientation_than_the_fixed_shape():
    """A tall image becomes smaller than the config says, so that it fits a wide input."""
    found = prepare(photo(401, 97), info(resize=Resize("keep_ratio", (200, 64)), shape=(1, 64, 224)))
    assert found.pixels.shape == (64, 224, 3)
    assert (found.height, found.width) == (64, 15)


def test_image_larger_than_the_fixed_shape():
    with pytest.raises(UsageError, match=r"401 x 97 pixels .*at most 224 x 64\. Cut it into tiles \(tile=64\)"):
        prepare(photo(97, 401), info(shape=(1, 64, 224)))
    assert prepare(photo(63, 220), info(shape=(1, 64, 224))).pixels.shape == (64, 224, 3)
