"""The size that a config's test pipeline gives to images, as a rule for the runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmgcvit.errors import ExportError
from mmgcvit.registry import type_name
from mmgcvit.runtime.metadata import Resize

#: Transforms of a test pipeline that do not change the size of images.
UNCHANGED = ("LoadImageFromFile", "LoadCheckedImage", "LoadPillowImage", "LoadAnnotations", "LoadPanopticAnnotations",
             "CheckLabelFile", "CheckLabels", "PackDetInputs", "PackSegInputs")  # fmt: skip


@dataclass(frozen=True)
class InputRule:
    """What the test pipeline does to an image before the model gets it.

    Attributes:
        resize: the resizing.
        size: height and width that all images have afterwards; None if they differ.
        pad: value of the pixels that the pipeline adds to reach ``size``; None if it adds none.
    """

    resize: Resize
    size: tuple[int, int] | None = None
    pad: float | None = None


def input_rule(pipeline: Sequence[Mapping[str, Any]]) -> InputRule:
    """Read the rule from a test pipeline of mmdet, mmseg or the package's classifiers.

    Raises:
        ExportError: a transform changes images in another way.
    """
    rule = InputRule(Resize())
    for transform in pipeline:
        name = type_name(transform)
        if name in ("Resize", "TimmTransform") and rule != InputRule(Resize()):
            raise ExportError(
                f"the test pipeline has {name!r} after another transform of sizes; allowed: it comes first"
            )
        if name == "Resize":
            rule = _resize(transform)
        elif name == "Pad":
            rule = _pad(transform, rule)
        elif name == "TimmTransform":
            rule = _timm(transform)
        elif name not in UNCHANGED:
            raise ExportError(
                f"the test pipeline has {name!r}; allowed for export: {', '.join(UNCHANGED)}, Resize, Pad to a size, "
                "TimmTransform"
            )
    return rule


def fit_rule(rule: InputRule, shape: tuple[int, int] | None, dynamic: bool) -> InputRule:
    """Return the rule for an input of another size than the test pipeline's.

    Args:
        rule: the rule of the test pipeline.
        shape: height and width of the input, if they are given.
        dynamic: whether any size is asked for.

    Raises:
        ExportError: images would not be prepared as in the test.
    """
    if dynamic and rule.pad is not None:
        raise ExportError("--dynamic: the test pipeline pads all images to one size; allowed: without --dynamic")
    if shape is None or shape == rule.size:
        return rule
    if rule.resize.crop is not None:
        raise ExportError(
            f"--shape {shape[0]} {shape[1]}: the test pipeline gives images of {rule.resize.crop}; allowed: this size. "
            "input_size of its TimmTransform changes it"
        )
    if rule.resize.kind == "fixed":
        return replace(rule, resize=replace(rule.resize, size=shape), size=shape)
    return rule


def _resize(transform: Mapping[str, Any]) -> InputRule:
    scale, interpolation = transform.get("scale"), transform.get("interpolation", "bilinear")
    if scale is None:
        raise ExportError(f"Resize of the test pipeline: scale_factor={transform.get('scale_factor')}; allowed: scale")
    width, height = (scale, scale) if isinstance(scale, int) else scale
    common = dict(interpolation=interpolation, antialias=transform.get("backend") == "pillow")
    if transform.get("keep_ratio", False):
        return InputRule(Resize("keep_ratio", (max(width, height), min(width, height)), **common))
    return InputRule(Resize("fixed", (height, width), **common), (height, width))


def _pad(transform: Mapping[str, Any], rule: InputRule) -> InputRule:
    size, value = transform.get("size"), transform.get("pad_val", 0)
    value = value.get("img", 0) if isinstance(value, Mapping) else value
    if size is None and transform.get("pad_to_square") and rule.resize.size and len(set(rule.resize.size)) == 1:
        size = rule.resize.size
    if size is None or (not isinstance(value, (int, float)) and len(set(value)) > 1):
        raise ExportError(f"Pad of the test pipeline: {dict(transform)}; allowed: size, and one value for all channels")
    width, height = size
    return InputRule(rule.resize, (height, width), float(value if isinstance(value, (int, float)) else value[0]))


def _timm(transform: Mapping[str, Any]) -> InputRule:
    size = transform.get("input_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    ratio = transform.get("crop_pct") or 0.875  # timm's default
    mode = transform.get("crop_mode") or "center"
    larger = math.floor(height / ratio), math.floor(width / ratio)
    common = dict(crop=(height, width), interpolation=transform.get("interpolation", "bilinear"), antialias=True)
    if mode == "squash":
        return InputRule(Resize("fixed", larger, **common), (height, width))
    if mode == "center" and height == width and not transform.get("crop_border_pixels"):
        return InputRule(Resize("shorter_side", larger, **common), (height, width))
    raise ExportError(
        f"TimmTransform of the test pipeline: crop_mode={mode!r}, input_size={size}; allowed for export: 'squash', or "
        "'center' with a square"
    )
