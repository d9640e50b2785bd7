"""Image loading with mmcv that reports images which cannot be decoded."""

from __future__ import annotations

import logging
from typing import Any

import mmcv
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log

from mmgcvit.datasets.files import require_annotated_size
from mmgcvit.datasets.images import unreadable
from mmgcvit.errors import CorruptImageError
from mmgcvit.registry import TRANSFORMS
from mmgcvit.utils.images import any_image_size

TAIL = 1024  # an intact file has its end mark in this many bytes at its end
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND"))  # first bytes and end marks: JPEG, PNG


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile with a check that the image is complete.

    OpenCV decodes a truncated file without an error. If the end mark of a JPEG or PNG is missing, the file is also
    decoded by Pillow, which raises an error; for complete files only the last bytes are compared.

    Args:
        corrupt: 'stop': stop the run and name the image. 'skip': log the image's name, count it in ``skipped``, and let
            mmengine's data set load another one.
        **kwargs: arguments of LoadImageFromFile; ``ignore_empty=True`` means 'skip'.

    Raises:
        CorruptImageError: an image cannot be decoded, with ``corrupt='stop'``.
        AnnotationError: an image has another size than its annotations say.
    """

    def __init__(self, corrupt: str = "stop", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadCheckedImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        self.corrupt = corrupt
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # shared by all workers

    def transform(self, results: dict) -> dict | None:
        """Load ``results['img_path']``; returns None if it is skipped."""
        path = results["img_path"]
        try:
            if self.file_client_args is None:
                content = fileio.get(path, backend_args=self.backend_args)
            else:
                content = fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        except OSError as error:
            self._corrupt(path, f"cannot be read: {error}")
            return None
        complete = next((end in content[-TAIL:] for begin, end in ENDS if content.startswith(begin)), True)
        reason = None if complete else unreadable(content)
        image = None
        if reason is None:
            try:
                with any_image_size():  # for the backend 'pillow'
                    image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
            except Exception as error:  # OpenCV, Pillow, turbojpeg and tifffile raise different errors
                reason = f"cannot be decoded: {error}"
        if image is None:
            self._corrupt(path, reason or "cannot be decoded")
            return None
        require_annotated_size(path, image.shape, results)
        if self.to_float32:
            image = image.astype("float32")
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def _corrupt(self, path: str, reason: str) -> None:
        if self.corrupt == "stop" and not self.ignore_empty:
            raise CorruptImageError(
                f"image {path}: {reason}. This stops the run; use `tools/train.py --corrupt "
                "skip` to skip and count such images"
            )
        self.skipped += 1
        # Log at level ERROR: mmengine hides lower levels in all processes but the first.
        print_log(f"skipped image {path}: {reason}", logger="current", level=logging.ERROR)
