"""Loading images with mmcv, where one that cannot be decoded is reported."""

from __future__ import annotations

import logging
from typing import Any

import mmcv
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log

from mmgcvit.datasets.images import unreadable
from mmgcvit.errors import CorruptImageError
from mmgcvit.registry import TRANSFORMS
from mmgcvit.utils.images import any_image_size

TAIL = 1024  # bytes at the end of a file in which an intact one has its end mark
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND"))  # first bytes and end marks: JPEG, PNG


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile, which also checks that the image is complete.

    OpenCV decodes a truncated file without an error. Here a JPEG or PNG without its end mark is decoded by Pillow too,
    which raises one; for complete files only the last bytes are compared.

    Args:
        corrupt: 'stop': the run stops, with the image's name. 'skip': the image is named in the log and counted in
            ``skipped``, and mmengine's data set takes another one.
        **kwargs: those of LoadImageFromFile; ``ignore_empty=True`` means 'skip'.

    Raises:
        CorruptImageError: from calls, with ``corrupt='stop'``.
    """

    def __init__(self, corrupt: str = "stop", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadCheckedImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        self.corrupt = corrupt
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # shared by all workers

    def transform(self, results: dict) -> dict | None:
        """Load ``results['img_path']``; None where it is skipped."""
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
                with any_image_size():  # of the backend 'pillow'
                    image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
            except Exception as error:  # OpenCV, Pillow, turbojpeg, tifffile: each raises its own
                reason = f"cannot be decoded: {error}"
        if image is None:
            self._corrupt(path, reason or "cannot be decoded")
            return None
        if self.to_float32:
            image = image.astype("float32")
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        return results

    def _corrupt(self, path: str, reason: str) -> None:
        if self.corrupt == "stop" and not self.ignore_empty:
            raise CorruptImageError(
                f"image {path}: {reason}. It stops the run; with `tools/train.py --corrupt "
                "skip` it would be left out and counted"
            )
        self.skipped += 1
        # At level ERROR: mmengine shows nothing below from the processes other than the first.
        print_log(f"skipped image {path}: {reason}", logger="current", level=logging.ERROR)
