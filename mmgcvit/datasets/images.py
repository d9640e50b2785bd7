"""Loading images in training, where one that cannot be decoded must not be met in silence."""

from __future__ import annotations

import io
import logging
import os

import mmcv
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS
from PIL import Image, ImageOps

from mmgcvit.errors import CorruptImageError

Image.MAX_IMAGE_PIXELS = None  # a large image is no attack: the data is the user's own
TAIL = 1024  # bytes in which a whole file's end mark stands
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND"))  # beginnings and end marks: JPEG, PNG


def unreadable(content: bytes) -> str | None:
    """Why an image cannot be decoded to its last pixel; None where it can.

    OpenCV fills what is missing of a truncated file with grey and says nothing; Pillow tells.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        return f"cannot be decoded: {error}"
    return None


def image_size(path: str) -> tuple[tuple[int, int] | None, str | None]:
    """Width and height of an image as mmcv would load it (turned as its EXIF says), or why it cannot be."""
    if not os.path.isfile(path):
        return None, "there is no such file"
    with open(path, "rb") as file:
        content = file.read()
    reason = unreadable(content)
    if reason:
        return None, reason
    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).size, None


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile, which also sees that an image is whole.

    OpenCV decodes a truncated file without a word. Here a JPEG or PNG that lacks its end mark is decoded by Pillow too,
    which tells; whole files cost a look at their last bytes.

    Args:
        corrupt: 'stop': the run ends with the image's name. 'skip': the image is named in the log and counted in
            ``skipped``, and mmengine's data set takes another one.
        **kwargs: LoadImageFromFile's; ``ignore_empty=True`` means 'skip' there.

    Raises:
        CorruptImageError: from calls, with ``corrupt='stop'``.
    """

    def __init__(self, corrupt: str = "stop", **kwargs) -> None:
        super().__init__(**kwargs)
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadCheckedImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        self.corrupt = corrupt
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # of all workers

    def transform(self, results: dict) -> dict | None:
        """Load ``results['img_path']``; None where it is skipped."""
        path = results["img_path"]
        try:
            if self.file_client_args is None:
                content = fileio.get(path, backend_args=self.backend_args)
            else:
                content = fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        except OSError as error:
            return self._corrupt(path, f"cannot be read: {error}")
        whole = next((end in content[-TAIL:] for begin, end in ENDS if content.startswith(begin)), True)
        reason = None if whole else unreadable(content)
        image = None
        if reason is None:
            try:
                image = mmcv.imfrombytes(content, flag=self.color_type, backend=self.imdecode_backend)
            except Exception as error:  # OpenCV, Pillow, turbojpeg, tifffile: each has its own
                reason = f"cannot be decoded: {error}"
        if image is None:
            return self._corrupt(path, reason or "cannot be decoded")
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
        # An error, as of the processes but the first mmengine shows nothing less.
        print_log(f"skipped image {path}: {reason}", logger="current", level=logging.ERROR)
