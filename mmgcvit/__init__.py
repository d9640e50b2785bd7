"""GC ViT (Global Context Vision Transformer) as a backbone for dense prediction with OpenMMLab.

Importing the package registers ``GCViT`` and ``GCViTClassifier`` in mmengine's root registries, and everything else in
its own registries with the scope ``mmgcvit`` (:mod:`mmgcvit.registry`). It also enables ``mmgcvit::...`` as a location
of ``_base_`` configs, and ``gcvit://...`` and ``timm://...`` as names of checkpoints. Where mmcv has no compiled
operators, it supplies them (:mod:`mmgcvit.ops`).
"""

from mmgcvit import early_settings, ops
from mmgcvit.version import __version__

if early_settings.is_command():
    early_settings.apply()
ops.install()
try:
    from mmengine.config.utils import MODULE2PACKAGE

    from mmgcvit.backbone import GCViT
    from mmgcvit.checkpoint import load_pretrained
    from mmgcvit.engine import (
        ClassificationHook,
        CorruptImageHook,
        CorruptPictureHook,
        EMAValLoop,
        InvalidLossHook,
        ReproducibleHook,
        ResumableTrainLoop,
    )
    from mmgcvit.optim import GCViTLayerDecayOptimWrapperConstructor, MergedGroupsHook, WarmupCosineLR
    from mmgcvit.tasks.classification.classifier import GCViTClassifier
    from mmgcvit.tasks.classification.dataset import ClassificationDataset
    from mmgcvit.tasks.classification.metric import TopKAccuracy
    from mmgcvit.tasks.classification.preprocessor import ClassificationPreprocessor
    from mmgcvit.tasks.classification.transforms import LoadPillowImage, TimmTransform
except KeyboardInterrupt:
    raise
except BaseException as _error:
    # A requirement of the backbone is missing or broken. Broken packages raise all kinds of exceptions: OSError for a
    # torch without its libraries, BaseException from an extension written in Rust. mmgcvit can still be imported, so
    # that `mmgcvit doctor` can report the problem; accessing the backbone raises an ImportError with the reason.
    _reason = _error

    def __getattr__(name: str) -> object:
        if name in __all__:
            from mmgcvit.utils.text import describe

            raise ImportError(
                f"mmgcvit.{name} cannot be imported: {describe(_reason)}. "
                "Run `python -m mmgcvit doctor` to see what is missing and how to fix it."
            ) from _reason
        raise AttributeError(f"module 'mmgcvit' has no attribute {name!r}")
else:
    MODULE2PACKAGE["mmgcvit"] = "mmgcvit"

__all__ = ["ClassificationDataset", "ClassificationHook", "ClassificationPreprocessor", "CorruptImageHook",
           "CorruptPictureHook", "EMAValLoop", "GCViT", "GCViTClassifier", "GCViTLayerDecayOptimWrapperConstructor",
           "InvalidLossHook", "LoadPillowImage", "MergedGroupsHook", "ReproducibleHook", "ResumableTrainLoop",
           "TimmTransform", "TopKAccuracy", "WarmupCosineLR", "__version__", "load_pretrained"]  # fmt: skip
