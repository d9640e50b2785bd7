"""GC ViT (Global Context Vision Transformer) as a backbone for dense prediction with OpenMMLab.

Importing the package registers its models, hooks and transforms in mmengine's root registries, makes ``mmgcvit::...``
known as a place for ``_base_`` configs, and ``gcvit://...`` and ``timm://...`` as checkpoints.
"""

from importlib.util import find_spec

from mmgcvit.version import __version__

try:
    from mmengine.config.utils import MODULE2PACKAGE

    from mmgcvit.backbone import GCViT
    from mmgcvit.checkpoint import load_pretrained
    from mmgcvit.classification import ClassificationPreprocessor, GCViTClassifier, TopKAccuracy
    from mmgcvit.engine import (
        ClassificationHook,
        CorruptImageHook,
        EMAValLoop,
        InvalidLossHook,
        ReproducibleHook,
        ResumableTrainLoop,
    )
    from mmgcvit.optim import GCViTLayerDecayOptimWrapperConstructor, WarmupCosineLR
except (ImportError, OSError, RuntimeError) as _error:
    # Something that the backbone needs is absent or broken (a torch without its libraries raises OSError). The package
    # still imports, so that `mmgcvit doctor` can say what; whoever asks for the backbone gets the reason.
    _reason = _error

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(
                f"mmgcvit.{name} cannot be imported: {_reason}. "
                "`python -m mmgcvit doctor` says what is missing and how to mend it."
            ) from _reason
        raise AttributeError(f"module 'mmgcvit' has no attribute {name!r}")
else:
    from mmgcvit.datasets.classification import ClassificationDataset  # noqa: F401

    if find_spec("mmcv"):  # the backbone and classifiers do without
        from mmgcvit.datasets.images import LoadCheckedImage  # noqa: F401
    MODULE2PACKAGE["mmgcvit"] = "mmgcvit"

__all__ = ["ClassificationHook", "ClassificationPreprocessor", "CorruptImageHook", "EMAValLoop", "GCViT",
           "GCViTClassifier", "GCViTLayerDecayOptimWrapperConstructor", "InvalidLossHook", "ReproducibleHook",
           "ResumableTrainLoop", "TopKAccuracy", "WarmupCosineLR", "__version__", "load_pretrained"]  # fmt: skip
