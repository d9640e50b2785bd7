"""Description of an exported model, stored in its file: what it takes, what it returns, and the names of its classes.

This module needs the standard library only, so that exported models run without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmgcvit.errors import UsageError

#: Key of the description in the metadata of the file.
KEY = "mmgcvit"
#: Version of the description. It changes whenever an older runtime would misread a file.
FORMAT = 1
#: Outputs of a model, by task, in the order of the graph. Only instance segmentors have ``masks``.
OUTPUTS = {
    "detection": ("boxes", "scores", "labels", "masks"),
    "segmentation": ("labels",),
    "classification": ("probabilities",),
}
#: What the masks of a detector cover.
MASKS = ("box", "image")
RESIZES = ("none", "keep_ratio", "fixed", "shorter_side")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class Resize:
    """How an image is brought to the size of the network's input.

    Attributes:
        kind: 'none'; 'keep_ratio': to the largest size that fits into ``size`` in either orientation (longer side,
            shorter side), as mmcv does; 'fixed': to ``size`` (height, width); 'shorter_side': the shorter side to
            ``size[0]``, then the central ``crop`` (height, width), as timm does.
        size: two numbers of pixels.
        crop: height and width of the central crop, for 'shorter_side'.
        interpolation: 'nearest', 'bilinear' or 'bicubic'.
        antialias: whether the filter is widened when an image is reduced, as Pillow does and OpenCV does not.
    """

    kind: str = "none"
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str = "bilinear"
    antialias: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """Description of an exported model.

    The input ``images`` is (B, channels, H, W): RGB if there are three channels, values as in the image file. All
    images of a batch have the same size. Outputs, by task:

    - detection: ``boxes`` (B, N, 4) x1, y1, x2, y2 in pixels of the input, ``scores`` (B, N), descending, ``labels``
      (B, N), and for instance segmentors ``masks``: (B, N, h, w) probabilities, over the box (``masks='box'``) or over
      the input image (``masks='image'``). Unused places have score 0 and label -1.
    - segmentation: ``labels`` (B, H, W), the class of each pixel of the input.
    - classification: ``probabilities`` (B, classes).

    Attributes:
        task: 'detection', 'segmentation' or 'classification'.
        classes: class names.
        palette: RGB colour of each class.
        channels: channels of the input.
        dtype: 'uint8' or 'float32'.
        shape: batch size, height and width of the input; None where any is allowed.
        resize: how the config's test pipeline resizes images.
        pad: value of each channel for padding to ``shape``, close to the mean.
        exif: whether images are turned upright by their EXIF orientation.
        value_range: for images of more than 8 bits and dtype 'uint8', the values that become 0 and 255; None: those of
            16 bits. With dtype 'float32', images of more than 8 bits keep their values.
        masks: what the masks cover, see above; '' without masks.
        mask_threshold: smallest probability that belongs to a mask.
        model: type of the model, such as 'MaskRCNN'.
        source: names of the config and of the checkpoint.
        version: version of mmgcvit that wrote the file.
    """

    task: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    channels: int = 3
    dtype: str = "uint8"
    shape: tuple[int | None, int | None, int | None] = (None, None, None)
    resize: Resize = Resize()
    pad: tuple[float, ...] = ()
    exif: bool = True
    value_range: tuple[float, float] | None = None
    masks: str = ""
    mask_threshold: float = 0.5
    model: str = ""
    source: tuple[str, str] = ("", "")
    version: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        names = OUTPUTS[self.task]
        return names if self.masks or "masks" not in names else names[:-1]

    def to_json(self) -> str:
        """Return the description as a JSON object."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | None, file: str) -> ModelInfo:
        """Read the description of a file.

        Args:
            text: the JSON object; None if the file has none.
            file: name of the file, for errors.

        Raises:
            UsageError: the file has no description, or one that is damaged or of a newer version.
        """
        if text is None:
            raise UsageError(
                f"{file}: has no description of a model in its metadata ({KEY!r}); allowed: files written by "
                "`mmgcvit export`"
            )
        try:
            content = json.loads(text)
            version = content.pop("format")
            if version != FORMAT:
                raise UsageError(f"{file}: description of format {version!r}; allowed: {FORMAT}. Update mmgcvit")
            content["resize"] = Resize(**_tuples(content["resize"]))
            info = cls(**_tuples(content))
            info.validate(file)
        except UsageError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{file}: its description of the model is damaged: {error!r}") from error
        return info

    def validate(self, file: str) -> None:
        """Raise a UsageError that names the file if a value is not allowed."""
        allowed: tuple[tuple[str, Any, Any], ...] = (
            ("task", self.task, tuple(OUTPUTS)),
            ("dtype", self.dtype, ("uint8", "float32")),
            ("masks", self.masks, ("", *MASKS)),
            ("resize.kind", self.resize.kind, RESIZES),
            ("resize.interpolation", self.resize.interpolation, INTERPOLATIONS),
        )
        for name, value, choices in allowed:
            if value not in choices:
                raise UsageError(f"{file}: {name}={value!r}; allowed: {', '.join(map(repr, choices))}")
        resize = self.resize
        sizes = {
            "shape": len(self.shape) == 3 and all(size is None or _is_size(size) for size in self.shape),
            "channels": _is_size(self.channels),
            "classes": len(self.classes) > 0 and all(isinstance(name, str) for name in self.classes),
            "palette": len(self.palette) == len(self.classes) and all(len(colour) == 3 for colour in self.palette),
            "pad": len(self.pad) in (0, self.channels),
            "value_range": self.value_range is None or len(self.value_range) == 2,
            "resize.size": resize.kind == "none" or _is_pair(resize.size),
            "resize.crop": _is_pair(resize.crop) if resize.kind == "shorter_side" else _is_pair(resize.crop or (1, 1)),
        }
        for name, fits in sizes.items():
            if not fits:
                value = resize if name.startswith("resize") else self
                raise UsageError(
                    f"{file}: its description of the model is damaged: {name}="
                    f"{getattr(value, name.removeprefix('resize.'))!r}"
                )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_size, value))


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON's lists as tuples."""

    def convert(value: Any) -> Any:
        return tuple(map(convert, value)) if isinstance(value, list) else value

    return {name: convert(value) for name, value in content.items()}
