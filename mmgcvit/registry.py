"""The package's own registries with the scope ``mmgcvit``, and the type names of earlier releases.

Configs refer to these classes with their scope, as in ``type='mmgcvit.TopKAccuracy'``, under any default scope. Only
classes with GCViT in their name are in mmengine's root registries, so that no class of another plugin is replaced.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import Registry

from mmgcvit.errors import MMGCViTError, UsageError
from mmgcvit.utils.text import describe

SCOPE = "mmgcvit"
#: Classes whose module needs mmcv, mmdet or mmseg, or is rarely used; it is imported when the name is first looked up.
LAZY = {
    "BoxTTAModel": "mmgcvit.tasks.detection.tta",
    "CocoMetric": "mmgcvit.tasks.detection.metric",
    "CheckLabelFile": "mmgcvit.tasks.segmentation.transforms",
    "CheckLabels": "mmgcvit.tasks.segmentation.transforms",
    "DetDataPreprocessor": "mmgcvit.tasks.detection.preprocessor",
    "DistilledClassifier": "mmgcvit.distillation.classifier",
    "LoadCheckedImage": "mmgcvit.datasets.loading",
    "LoadPanopticAnnotations": "mmgcvit.tasks.panoptic.transforms",
    "PairVisualizer": "mmgcvit.tasks.visualizer",
    "PanopticFPNHead": "mmgcvit.tasks.panoptic.heads",
    "PanopticMetric": "mmgcvit.tasks.panoptic.metric",
    "SegDataPreProcessor": "mmgcvit.tasks.segmentation.preprocessor",
}


class _Registry(Registry):
    """A registry that imports the modules of :data:`LAZY` classes on demand."""

    def get(self, key: str) -> Any:
        """Return the class with this name, or None."""
        if (module := LAZY.get(key.removeprefix(f"{SCOPE}."))) is not None:
            import_module(module)
        return super().get(key)


def _child(parent: Registry) -> Registry:
    return _Registry(parent.name, parent=parent, scope=SCOPE, locations=[SCOPE])


DATASETS = _child(root.DATASETS)
HOOKS = _child(root.HOOKS)
LOOPS = _child(root.LOOPS)
METRICS = _child(root.METRICS)
MODELS = _child(root.MODELS)
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS)
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS)
TRANSFORMS = _child(root.TRANSFORMS)
VISUALIZERS = _child(root.VISUALIZERS)

#: Type names of earlier releases, from mmengine's root registries. They are supported for one more release.
OLD_TYPES = {
    name: f"{SCOPE}.{name}"
    for name in (
        "BoxTTAModel", "ClassificationDataset", "ClassificationHook", "ClassificationPreprocessor", "EMAValLoop",
        "FSDPAmpOptimWrapper", "FSDPOptimWrapper", "InvalidLossHook", "LoadCheckedImage", "LoadPillowImage",
        "ReproducibleHook", "ResumableTrainLoop", "TimmTransform", "TopKAccuracy", "WarmupCosineLR")
} | {
    "CorruptPictureHook": f"{SCOPE}.CorruptImageHook",
    f"{SCOPE}.CorruptPictureHook": f"{SCOPE}.CorruptImageHook",
    f"{SCOPE}.engine.tta.BoxTTAModel": f"{SCOPE}.BoxTTAModel",
}  # fmt: skip


def type_name(part: Any) -> str:
    """Return the class name of a config dict, whether ``type`` is the class, its name, or the name with a scope."""
    kind = part.get("type") if isinstance(part, Mapping) else part
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


def class_of(registry: Registry, part: Any) -> Any:
    """Return the class of a config dict, looked up in the scope in which it would be built; None if it is unknown."""
    kind = part.get("type")
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(part.get("_scope_")) as scoped:
        return scoped.get(kind)


def base_names(registry: Registry, part: Any) -> set[str]:
    """Return the names of the class of a config dict and of its base classes; empty if the class is unknown."""
    return {base.__name__ for base in getattr(class_of(registry, part), "__mro__", ())}


@contextlib.contextmanager
def building(part: str) -> Iterator[None]:
    """Turn the errors that classes raise while a part of a config is built into UsageErrors that name the part.

    Raises:
        UsageError: the part cannot be built.
    """
    try:
        yield
    except MMGCViTError:
        raise
    except Exception as error:  # classes raise all types
        raise UsageError(f"{part} of the config: cannot be built: {describe(error)}") from error


def rename_old_types(cfg: Config) -> Config:
    """Replace type names of earlier releases in a config, in place and at any depth, and log them on one line.

    A name that another package has registered in mmengine's root registries is not replaced.
    """
    found: dict[str, str] = {}
    taken = {
        name for registry in vars(root).values() if isinstance(registry, Registry) for name in registry.module_dict
    }
    waiting: list[Any] = [cfg[key] for key in cfg]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            kind = part.get("type")
            if isinstance(kind, str) and kind in OLD_TYPES and kind not in taken:
                part["type"] = found[kind] = OLD_TYPES[kind]
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part
    if found:
        names = ", ".join(f"{old!r} is now {new!r}" for old, new in sorted(found.items()))
        print_log(
            f"deprecated type names in the config, which the next release will not support: {names}",
            logger="current",
            level=logging.WARNING,
        )
    return cfg
