"""Image loading with mmcv that reports images which cannot be decoded, and what is lost."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmengine import registry as root
from mmengine.logging import print_log

from mmgcvit.datasets.files import require_annotated_size
from mmgcvit.datasets.images import (
    DepthWarning,
    decode_with_pillow,
    describe_losses,
    incomplete,
    orientation,
    unreadable,
)
from mmgcvit.datasets.pipelines import image_loaders, loading_arguments
from mmgcvit.datasets.problems import Problem
from mmgcvit.errors import AnnotationError, CorruptImageError, UsageError
from mmgcvit.registry import TRANSFORMS, type_name
from mmgcvit.utils.images import TIFF, any_image_size, check_pixels, turn_upright
from mmgcvit.utils.text import counted

JPEG = b"\xff\xd8"
MAX_SKIPPED = 100  # images that are skipped one after the other
REMEDY = "to load all bits: color_type='unchanged', to_float32=True, and mean and std of that range"


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """mmcv's LoadImageFromFile with a check that the image is complete.

    OpenCV decodes a truncated file without an error. If the end mark of a JPEG or PNG is missing, the file is also
    decoded by Pillow, which raises an error; for complete files only the last bytes are compared.

    Three more things differ from mmcv. The EXIF orientation is also applied with ``color_type='unchanged'`` and with
    the backends turbojpeg and tifffile. Formats that OpenCV does not know are decoded by Pillow. With the backend
    tifffile, channels that are stored as pages or planes become the last axis.

    Args:
        corrupt: 'stop': stop the run and name the image. 'skip': log the image's name, count it in ``skipped``, and let
            mmengine's data set load another one.
        colour_transforms: names of later transforms that need 8-bit RGB images (:data:`~.pipelines.COLOUR`).
        **kwargs: arguments of LoadImageFromFile; ``ignore_empty=True`` means 'skip'.

    Raises:
        CorruptImageError: an image cannot be decoded, with ``corrupt='stop'``; or :data:`MAX_SKIPPED` are skipped one
            after the other, as when their drive has gone.
        UsageError: an image does not suit one of the ``colour_transforms``, or tifffile is not installed.
        AnnotationError: an image has another size than its annotations say, with ``corrupt='stop'``.
    """

    def __init__(self, corrupt: str = "stop", colour_transforms: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if corrupt not in ("stop", "skip"):
            raise ValueError(f"LoadCheckedImage: corrupt={corrupt!r}; allowed: 'stop', 'skip'")
        if self.imdecode_backend == "tifffile":
            try:
                import tifffile  # noqa: F401
            except ImportError as error:
                raise UsageError("imdecode_backend='tifffile': not installed; run `pip install tifffile`") from error
        self.corrupt, self.colour_transforms = corrupt, tuple(colour_transforms)
        self.skipped = torch.zeros(1, dtype=torch.int64).share_memory_()  # shared by all workers
        self.in_a_row = 0  # skipped by this worker since its last image
        self.warn = DepthWarning(REMEDY)

    def transform(self, results: dict) -> dict | None:
        """Load ``results['img_path']``; returns None if it is skipped."""
        path = results["img_path"]
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for its other end
                raise OSError("neither a file nor remote")
            if self.file_client_args is None:
                content = fileio.get(path, backend_args=self.backend_args)
            else:
                content = fileio.FileClient.infer_client(self.file_client_args, path).get(path)
        except OSError as error:
            self._corrupt(path, f"cannot be read: {error}")
            return None
        try:
            image = self.decode(content)
        except CorruptImageError as error:
            self._corrupt(path, str(error))
            return None
        try:
            require_annotated_size(path, image.shape, results)
        except AnnotationError as error:
            if self.corrupt == "stop" and not self.ignore_empty:
                raise
            self._corrupt(path, str(error).removeprefix(f"{path}: "))
            return None
        self.warn(path, content, image, _raw)
        self._check_colours(path, image)
        if self.to_float32:
            image = image.astype("float32")
        results.update(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        self.in_a_row = 0
        return results

    def decode(self, content: bytes) -> np.ndarray:
        """Decode a file to an array (H, W) or (H, W, C); colours are in the order BGR, except with tifffile.

        Raises:
            CorruptImageError: it cannot be decoded, with the reason.
        """
        if not content:
            raise CorruptImageError("cannot be decoded: the file is empty")
        check_pixels(content)
        if reason := incomplete(content):
            raise CorruptImageError(reason)
        image, said = None, ""
        try:
            image = self._decode(content)
        except Exception as error:  # OpenCV, Pillow, turbojpeg and tifffile raise different errors
            said = f": {error}"
        if image is None and self.imdecode_backend == "cv2":
            try:
                image = decode_with_pillow(content, self.color_type)
            except Exception as error:  # Pillow's decoders raise many types of errors
                said = said or f": {error}"
        if image is None:
            raise CorruptImageError(f"cannot be decoded{self._hint(content) or said}")
        return image

    def decode_file(self, path: str | Path) -> np.ndarray:
        """Decode a local file, and warn if it is the first one of more than 8 bits that is loaded as 8 bits.

        Raises:
            CorruptImageError: it cannot be decoded, with the reason.
        """
        content = Path(path).read_bytes()
        image = self.decode(content)
        self.warn(str(path), content, image, _raw)
        return image

    def _decode(self, content: bytes) -> np.ndarray | None:
        if self.imdecode_backend == "tifffile":
            return turn_upright(_read_tiff(content), orientation(content))
        flag, backend = self.color_type, self.imdecode_backend
        if backend == "cv2" and content[8:12] == b"WEBP" and flag in ("color", "grayscale"):
            flag += "_ignore_orientation"  # it depends on OpenCV's release whether it turns a WebP
        with any_image_size():  # for the backend 'pillow'
            image = mmcv.imfrombytes(content, flag=flag, backend=backend)
        # OpenCV and Pillow turn a TIFF in any case
        turned = content.startswith(TIFF) or (flag in ("color", "grayscale") and backend != "turbojpeg")
        if image is None or turned or self.color_type.endswith("ignore_orientation"):
            return image
        return turn_upright(image, orientation(content))

    def _hint(self, content: bytes) -> str:
        """Why an intact image cannot be loaded, and how it can."""
        raw = _raw(content)
        if raw is not None and raw.dtype != np.uint8 and self.color_type != "unchanged":
            return (
                f" with color_type={self.color_type!r}: has {raw.dtype} values from {raw.min():g} to {raw.max():g}; "
                f"{REMEDY}"
            )
        if raw is None and content.startswith(TIFF) and self.imdecode_backend != "tifffile":
            return ": a TIFF that OpenCV and Pillow cannot decode; imdecode_backend='tifffile' may"
        return ""

    def _check_colours(self, path: str, image: np.ndarray) -> None:
        if not self.colour_transforms:
            return
        name: str | None = self.colour_transforms[0]
        said = f"{1 if image.ndim == 2 else image.shape[2]} channels"
        if image.ndim == 3 and image.shape[2] == 3:
            name = next((name for name in self.colour_transforms if name != "RandomGrayscale"), None)
            if name is None or image.dtype == np.uint8 or image.max() <= 255:
                return
            said = f"values up to {image.max():g}"
        raise UsageError(
            f"image {path}: loaded with {said}; allowed with {name}: 3 channels with values up to 255. Remove {name} "
            "from the pipeline, or change color_type of the loading transform"
        )

    def _corrupt(self, path: str, reason: str) -> None:
        if self.corrupt == "stop" and not self.ignore_empty:
            raise CorruptImageError(
                f"image {path}: {reason}. This stops the run; use `mmgcvit train --corrupt "
                "skip` to skip and count such images"
            )
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= MAX_SKIPPED:
            raise CorruptImageError(
                f"{counted(self.in_a_row, 'image')} one after the other cannot be loaded, the last {path}: {reason}. "
                "Is their drive there?"
            )
        # Log at level ERROR: mmengine hides lower levels in all processes but the first.
        print_log(f"skipped image {path}: {reason}", logger="current", level=logging.ERROR)


class ImageChecker:
    """Decodes images as the pipeline of a data set does, and reports what cannot be decoded and what is lost.

    Args:
        dataset: config of the data set.
        model: config of the model. If its backbone has ``in_channels``, images must have as many.
    """

    def __init__(self, dataset: Mapping, model: Mapping | None = None) -> None:
        pipeline = list(dataset.get("pipeline") or ())
        self.load = LoadCheckedImage(**loading_arguments(pipeline))
        self.channels = expected_channels(pipeline, model)

    def __call__(self, path: str) -> tuple[tuple[int, int] | None, list[Problem]]:
        """Width and height of an image as loaded, None if it cannot be decoded; and its problems."""
        if not os.path.isfile(path):
            return None, [Problem("image", path, "no such file", True)]
        with open(path, "rb") as file:
            content = file.read()
        try:
            image = self.load.decode(content)
        except CorruptImageError as error:
            return None, [Problem("image", path, str(error), True)]
        reason = unreadable(content)  # also finds files cut off in other formats
        if reason and "cannot identify" not in reason:
            return None, [Problem("image", path, reason, True)]
        problems = []
        if wrong := wrong_channels(image, self.channels, self.load.color_type):
            problems.append(Problem("channels", path, wrong, True))
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            count = int((~np.isfinite(image)).sum())
            problems.append(Problem("image", path, f"{counted(count, 'value is', 'values are')} NaN or infinite", True))
        raw = None if content.startswith(JPEG) or image.dtype != np.uint8 else _raw(content)
        losses = describe_losses(content, image, raw, REMEDY)
        return (image.shape[1], image.shape[0]), problems + [Problem(kind, path, what, False) for kind, what in losses]


def expected_channels(pipeline: Sequence[Mapping], model: Mapping | None) -> int | None:
    """Number of channels that the backbone of a config takes; None if the images may be changed before."""
    backbone = (model or {}).get("backbone") or {}
    loads = any(True for _ in image_loaders(list(pipeline)))
    known = loads and type_name(backbone) == "GCViT" and all(map(_is_known, pipeline))
    return backbone.get("in_channels", 3) if known else None


def wrong_channels(image: np.ndarray, expected: int | None, color_type: str) -> str | None:
    """Return why an image (H, W) or (H, W, C) does not suit the backbone; None if it does."""
    channels = 1 if image.ndim == 2 else image.shape[2]
    if expected in (None, channels):
        return None
    return (
        f"{counted(channels, 'channel')} as loaded (color_type={color_type!r}); allowed: {expected}, as "
        "model.backbone.in_channels says"
    )


def _is_known(transform: Mapping) -> bool:
    """Whether a transform is one of the libraries', which keep the number of channels, and not the user's own."""
    kind = transform.get("type")
    if isinstance(kind, str):
        with root.TRANSFORMS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    return getattr(kind, "__module__", "").split(".")[0] in ("mmcv", "mmdet", "mmseg", "mmgcvit")


def _raw(content: bytes) -> np.ndarray | None:
    """Decode a file without any conversion by OpenCV; None if it cannot."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _read_tiff(content: bytes) -> np.ndarray:
    """Decode a TIFF of any number of channels to (H, W) or (H, W, C)."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        image, axes = file.series[0].asarray(), file.series[0].axes
    others = [i for i, axis in enumerate(axes) if axis not in "YX"]
    if len(others) > 1 or image.ndim > 3:
        raise CorruptImageError(f"has axes {axes} of sizes {image.shape}; allowed: Y, X and one for the channels")
    return np.moveaxis(image, others[0], -1) if others else image
