"""Settings of a network that its weights do not show: windows, padding, normalisation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mmgcvit.backbone import GCViT
from mmgcvit.backbone.arch import resolve_arch
from mmgcvit.registry import type_name
from mmgcvit.tasks.classification.preprocessor import ClassificationPreprocessor

TOLERANCE = 1e-3  # of a mean or a standard deviation
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(GCViT).parameters.items()}


def backbone_settings(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a GCViT by name: those of its arguments, or their defaults.

    Args:
        backbone: the backbone in a config.

    Returns:
        The settings; {} for another network, or arguments that are not understood.
    """
    if not backbone or type_name(backbone) not in ("", "GCViT"):
        return {}
    try:
        arch = resolve_arch(backbone.get("arch", DEFAULTS["arch"]), backbone.get("window_size"), None)
    except (TypeError, ValueError):
        return {}
    names = ("pad", "global_query_reductions", "global_query_interpolation")
    values = {name: backbone.get(name, DEFAULTS[name]) for name in names}
    return {"window_size": arch.window_size} | {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def normalisation(preprocessor: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """Return ``mean`` and ``std`` of pixel values scaled to [0, 1].

    Args:
        preprocessor: the data preprocessor in a config; unless it is ours, its values are for pixels from 0 to 255.

    Returns:
        A value per channel, or one for all; {} if there are none.
    """
    ours = type_name(preprocessor) == ClassificationPreprocessor.__name__
    defaults = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD) if ours else {}
    found = {name: preprocessor.get(name, defaults.get(name)) for name in ("mean", "std")}
    found = {name: (values,) if isinstance(values, (int, float)) else values for name, values in found.items()}
    return {
        name: tuple(round(value / (1 if ours else 255), 6) for value in values)
        for name, values in found.items()
        if isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
    }


def differing(own: Mapping[str, Any], trained: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings with which a network was trained, and which it does not have now."""
    return [name for name, value in trained.items() if not _equal(own[name], value)]


def _equal(a: Any, b: Any) -> bool:
    """Whether two settings are equal; one number of a normalisation stands for all channels."""
    if not all(isinstance(values, tuple) and all(isinstance(value, float) for value in values) for values in (a, b)):
        return a == b
    count = max(len(a), len(b))
    a, b = (values * count if len(values) == 1 else values for values in (a, b))
    return len(a) == len(b) and all(abs(x - y) < TOLERANCE for x, y in zip(a, b, strict=True))
