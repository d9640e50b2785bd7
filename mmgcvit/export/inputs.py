"""Images as an exported file takes them, for calibration and verification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mmgcvit.runtime.images import Loader
from mmgcvit.runtime.metadata import ModelInfo
from mmgcvit.runtime.resize import prepare

#: Sides of the images that are made up if there are no others, height and width.
SIZES = ((224, 224), (256, 320), (300, 500), (97, 401))


def network_inputs(info: ModelInfo, images: Sequence[str | Path]) -> Iterator[np.ndarray]:
    """Yield two batches (B, C, H, W) for each image, as a file takes them.

    If the file takes any size, the second one has a part of the image, so that several sizes are compared even if all
    images have the same one. If it takes any batch size, the second one has three images. The images of a batch are the
    same one, mirrored in several ways.

    Args:
        info: description of the file.
        images: image files and folders.

    Raises:
        UsageError: an image cannot be decoded, or does not suit the model.
    """
    for source in Loader(info).sources(images):
        pixels = prepare(source.pixels, info).pixels
        yield _batch(pixels, info.shape[0] or 1)
        if None in info.shape:
            height, width = pixels.shape[:2]
            part = pixels[: max(32, 2 * height // 3), : max(32, 3 * width // 4)] if info.shape[1] is None else pixels
            yield _batch(part, info.shape[0] or 3)


def _batch(pixels: np.ndarray, count: int) -> np.ndarray:
    """Return (count, C, H, W): an image (H, W, C), mirrored in several ways."""
    views = [pixels, pixels[:, ::-1], pixels[::-1], pixels[::-1, ::-1]]
    return np.ascontiguousarray(np.stack([views[i % 4] for i in range(count)]).transpose(0, 3, 1, 2))


def made_up_images(info: ModelInfo, sizes: Sequence[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    """Images with smooth structures and noise, (1, C, H, W), at several sizes, or at the only one."""
    batch, height, width = info.shape
    shapes = [(height or h, width or w) for h, w in sizes]
    rng = np.random.default_rng(0)
    images = []
    for index, (h, w) in enumerate(dict.fromkeys(shapes)):
        count = batch or 1 + index % 3
        coarse = rng.integers(0, 256, (count, info.channels, -(-h // 32), -(-w // 32)))
        image = coarse.repeat(32, 2).repeat(32, 3)[..., :h, :w] + rng.integers(-20, 21, (count, info.channels, h, w))
        images.append(image.clip(0, 255).astype(info.dtype))
    return images
