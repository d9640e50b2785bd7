"""The transforms of a config's pipelines that load images."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import TRANSFORMS

from mmgcvit.registry import class_of, type_name

#: Transforms that load an image, by class name, and the ones that are used in their place.
LOADERS = {
    "LoadImageFromFile": "mmgcvit.LoadCheckedImage",
    "LoadCheckedImage": "mmgcvit.LoadCheckedImage",
    "LoadPillowImage": "mmgcvit.LoadPillowImage",
}
PANOPTIC = "LoadPanopticAnnotations"  # mmdet's needs the package panopticapi
LIBRARIES = ("mmcv", "mmengine", "mmdet", "mmseg", "mmgcvit")
#: Transforms that need three channels; all but RandomGrayscale also clip values at 255, or expect them below it.
COLOUR = ("PhotoMetricDistortion", "YOLOXHSVRandomAug", "RandomGrayscale")


def image_loaders(part: Any, names: Container[str] = LOADERS) -> Iterator[dict]:
    """Yield the configs of all transforms that load an image in a part of a config, including nested ones.

    ``names`` are the class names of other transforms to look for.
    """
    if isinstance(part, dict):
        if type_name(part) in names:
            yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from image_loaders(inner, names)


def loading_arguments(pipeline: Sequence[Mapping] | None) -> dict[str, Any]:
    """Arguments of the first transform of a pipeline that loads an image, without those about corrupt images.

    Empty if there is none.
    """
    loader: Mapping = next(image_loaders(list(pipeline or ())), {})
    return {key: value for key, value in loader.items() if key not in ("type", "_scope_", "corrupt", "ignore_empty")}


def use_checked_loading(part: Any, corrupt: str | None = None) -> None:
    """Replace all transforms that load an image in a part of a config, in place, by those that check it.

    mmdet's LoadPanopticAnnotations is replaced by ours, too.

    Args:
        part: data loaders, or other parts with pipelines.
        corrupt: handling of images that cannot be decoded: 'stop', 'skip', or None for the config's own setting.
    """
    for loader in image_loaders(part):
        loader.update(type=LOADERS[type_name(loader)], **({} if corrupt is None else {"corrupt": corrupt}))
        loader.pop("_scope_", None)
    for loader in image_loaders(part, (PANOPTIC,)):
        loader["type"] = f"mmgcvit.{PANOPTIC}"
        loader.pop("_scope_", None)
    for pipeline in _pipelines(part):
        colour = [name for step in pipeline if (name := type_name(step)) in COLOUR]
        for loader in image_loaders(pipeline) if colour else ():
            if type_name(loader) == "LoadCheckedImage":
                loader["colour_transforms"] = colour


def loads_annotations(pipeline: Sequence[Mapping]) -> bool:
    """Whether a pipeline has a LoadAnnotations, or a transform of the user's own, which may do the same."""
    for step in pipeline:
        own = getattr(class_of(TRANSFORMS, step), "__module__", "")
        if "LoadAnnotations" in type_name(step) or (own and own.split(".")[0] not in LIBRARIES):
            return True
    return False


def _pipelines(part: Any) -> Iterator[list]:
    """Yield all lists of transforms, and of anything else, in a part of a config."""
    if isinstance(part, dict):
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        if isinstance(part, list):
            yield part
        for inner in part:
            yield from _pipelines(inner)
