"""Pillow's limit on the size of images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

_lock = threading.Lock()
_inside = 0  # number of active blocks
_limit: int | None = None  # the limit before the first of them


@contextmanager
def any_image_size() -> Iterator[None]:
    """Lift Pillow's limit on the number of pixels inside the block, and restore it afterwards.

    Large images in a data set are not an attack; outside the block the limit of the host program stays in force. Blocks
    in several threads may overlap: the first one lifts the limit, the last one restores it.

    Example:
        >>> with any_image_size(), Image.open("map.png") as image:
        ...     pixels = np.asarray(image)
    """
    global _inside, _limit
    with _lock:
        if not _inside:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit
