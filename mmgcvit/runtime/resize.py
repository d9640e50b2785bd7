"""Resizing as OpenCV, Pillow and timm do, and padding, in numpy and Pillow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmgcvit.errors import UsageError
from mmgcvit.runtime.metadata import ModelInfo, Resize

ROWS = 64  # rows of the result that are computed at once
COEF = 2048  # OpenCV's integer weights for 8-bit images are multiples of 1 / 2048
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
Limit = tuple[int | None, int | None]  # largest height and width


@dataclass(frozen=True)
class NetworkImage:
    """An image at the size of the network's input.

    Attributes:
        pixels: (H, W, C); the image is at the top left, the rest is padding.
        height, width: size of the image in it.
        original: height and width before resizing.
    """

    pixels: np.ndarray
    height: int
    width: int
    original: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Horizontal and vertical factor of the resizing."""
        return self.width / self.original[1], self.height / self.original[0]


def prepare(image: np.ndarray, info: ModelInfo) -> NetworkImage:
    """Resize and pad an image (H, W, C) as a model needs it.

    Raises:
        UsageError: the image is larger than the fixed input, and the model's images are not to be resized.
    """
    return pad(resize(image, info.resize, info.shape[1:]), image.shape[:2], info)


def pad(image: np.ndarray, original: tuple[int, ...], info: ModelInfo) -> NetworkImage:
    """Pad an image (H, W, C) on the right and at the bottom to the model's fixed height and width, if it has them.

    Raises:
        UsageError: the image is larger.
    """
    height, width = image.shape[:2]
    target = [fixed or size for fixed, size in zip(info.shape[1:], (height, width), strict=True)]
    if height > target[0] or width > target[1]:
        raise UsageError(
            f"an image of {width} x {height} pixels (width x height); allowed by this model: at most "
            f"{target[1]} x {target[0]}. Cut it into tiles (tile={min(target)})"
        )
    if target != [height, width]:
        values = np.array(info.pad or (0,), np.float64)
        values = (np.round(values) if image.dtype == np.uint8 else values).astype(image.dtype)
        padded = np.empty((*target, image.shape[2]), image.dtype)
        padded[:] = values
        padded[:height, :width] = image
        image = padded
    return NetworkImage(image, height, width, (original[0], original[1]))


def resize(image: np.ndarray, how: Resize, limit: Limit = (None, None)) -> np.ndarray:
    """Resize an image (H, W, C), and crop it if ``how`` says so.

    Args:
        image: uint8 or float32.
        how: the rule.
        limit: largest height and width of the result, for 'keep_ratio'.
    """
    target = resized_size(image.shape[:2], how, limit)
    if target != image.shape[:2]:
        scaled = _pillow if how.antialias else _opencv
        image = scaled(image, target, how.interpolation)
    return image if how.crop is None else center_crop(image, how.crop)


def resized_size(size: tuple[int, ...], how: Resize, limit: Limit = (None, None)) -> tuple[int, int]:
    """Return height and width of an image of this size after resizing, before the crop."""
    height, width = size
    if how.kind == "keep_ratio" and how.size is not None:
        # as mmcv.rescale_size
        scale = min(max(how.size) / max(height, width), min(how.size) / min(height, width))
        scale = min([scale, *(most / size for most, size in zip(limit, (height, width), strict=True) if most)])
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    if how.kind == "shorter_side" and how.size is not None:
        # as torchvision's Resize of one number
        short, long = how.size[0], int(how.size[0] * max(height, width) / min(height, width))
        return (short, long) if height <= width else (long, short)
    if how.kind == "fixed" and how.size is not None:
        return how.size
    return height, width


def crop_offset(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int]:
    """Return row and column at which the central crop of an image of this size begins; negative if it is smaller."""
    offsets = []
    for there, wanted in zip(size, crop, strict=True):
        missing = max(0, wanted - there)
        offsets.append(round((there + missing - wanted) / 2) - missing // 2)
    return offsets[0], offsets[1]


def center_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop the centre of an image (H, W, C); where it is smaller it is padded with zeros, as by torchvision."""
    missing = [max(0, wanted - there) for wanted, there in zip(size, image.shape[:2], strict=True)]
    if any(missing):
        image = np.pad(image, [*((count // 2, (count + 1) // 2) for count in missing), (0, 0)])
    top, left = (round((there - wanted) / 2) for wanted, there in zip(size, image.shape[:2], strict=True))
    return image[top : top + size[0], left : left + size[1]]


def _pillow(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize as Pillow does: the filter is widened when the image is reduced."""
    height, width = size
    if image.dtype == np.uint8 and image.shape[2] in (1, 3, 4):
        pillow = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        scaled = np.asarray(pillow.resize((width, height), FILTERS[interpolation]))
        return scaled[..., None] if scaled.ndim == 2 else scaled
    planes = [
        np.asarray(Image.fromarray(image[..., i].astype(np.float32)).resize((width, height), FILTERS[interpolation]))
        for i in range(image.shape[2])
    ]
    scaled = np.stack(planes, axis=2)
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8) if image.dtype == np.uint8 else scaled


def _opencv(image: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize as cv2.resize does: two (bilinear) or four (bicubic) neighbours, however much the image is reduced."""
    rows, row_weights = _neighbours(image.shape[0], size[0], interpolation)
    columns, column_weights = _neighbours(image.shape[1], size[1], interpolation)
    if interpolation == "nearest":
        return image[rows[0]][:, columns[0]]
    integer = image.dtype == np.uint8 and interpolation == "bilinear"
    if integer:  # OpenCV's arithmetic
        row_weights, column_weights = (np.rint(w * COEF).astype(np.int32) for w in (row_weights, column_weights))
    result = np.empty((*size, image.shape[2]), image.dtype)
    for start in range(0, size[0], ROWS):
        used, inverse = np.unique(rows[:, start : start + ROWS], return_inverse=True)
        source = image[used].astype(row_weights.dtype)
        wide = sum(source[:, c] * w[:, None] for c, w in zip(columns, column_weights, strict=True))
        places = inverse.reshape(len(rows), -1)
        weights = row_weights[:, start : start + ROWS, None, None]
        if integer:
            wide = wide >> 4
            block = (sum((wide[r] * w) >> 16 for r, w in zip(places, weights, strict=True)) + 2) >> 2
        else:
            block = sum(wide[r] * w for r, w in zip(places, weights, strict=True))
            block = np.clip(np.rint(block), 0, 255) if image.dtype == np.uint8 else block
        result[start : start + ROWS] = block
    return result


def _neighbours(length: int, size: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights, both (neighbours, size), of the pixels that each pixel of the result is computed from."""
    scale = 1 / (size / length)
    if interpolation == "nearest":
        indices = np.minimum(np.floor(np.arange(size) * scale).astype(np.int64), length - 1)
        return indices[None], np.ones((1, size), np.float32)
    position = ((np.arange(size) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    part = position - first.astype(np.float32)
    if interpolation == "bilinear":
        offsets = np.array([0, 1])
        weights = np.stack([1 - part, part])
    else:  # cubic convolution with OpenCV's a = -0.75
        offsets, a = np.array([-1, 0, 1, 2]), -0.75
        distance = np.abs(part - offsets[:, None])
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        weights = np.where(distance <= 1, near, far)
    return np.clip(first + offsets[:, None], 0, length - 1), weights.astype(np.float32)
