"""GC ViT (Global Context Vision Transformer) as a backbone for dense prediction with OpenMMLab.

Importing the package registers its models, hooks and transforms in mmengine's root registries, makes ``mmgcvit::...``
known as a place for ``_base_`` configs, and ``gcvit://...`` and ``timm://...`` as checkpoints.
"""

from importlib import import_module

from mmgcvit.version import __version__

try:
    from mmengine.config.utils import MODULE2PACKAGE

    from mmgcvit.backbone import GCViT
    from mmgcvit.checkpoint import load_pretrained
    from mmgcvit.classification import ClassificationPreprocessor, GCViTClassifier, TopKAccuracy
    from mmgcvit.datasets.classification import ClassificationDataset  # noqa: F401
    from mmgcvit.engine import (
        ClassificationHook,
        CorruptPictureHook,
        EMAValLoop,
        InvalidLossHook,
        ReproducibleHook,
        ResumableTrainLoop,
    )
    from mmgcvit.optim import GCViTLayerDecayOptimWrapperConstructor, WarmupCosineLR
except KeyboardInterrupt:
    raise
except BaseException as _error:
    # Something that the backbone needs is missing or broken, and a broken package raises anything: a torch without its
    # libraries OSError, an extension written in Rust a BaseException. The package still imports, so that
    # `mmgcvit doctor` can report it; accessing the backbone raises an ImportError with the reason.
    _reason = _error

    def __getattr__(name: str) -> object:
        if name in __all__:
            from mmgcvit.doctor import describe

            raise ImportError(
                f"mmgcvit.{name} cannot be imported: {describe(_reason)}. "
                "`python -m mmgcvit doctor` says what is missing and how to fix it."
            ) from _reason
        raise AttributeError(f"module 'mmgcvit' has no attribute {name!r}")
else:
    MODULE2PACKAGE["mmgcvit"] = "mmgcvit"
    try:
        import_module("mmcv.transforms")
    except KeyboardInterrupt:
        raise
    except BaseException:
        pass  # the backbone and classifiers need no mmcv; whoever does imports it too, and gets the error
    else:
        from mmgcvit.datasets.pictures import LoadCheckedImage  # noqa: F401

__all__ = ["ClassificationHook", "ClassificationPreprocessor", "CorruptPictureHook", "EMAValLoop", "GCViT",
           "GCViTClassifier", "GCViTLayerDecayOptimWrapperConstructor", "InvalidLossHook", "ReproducibleHook",
           "ResumableTrainLoop", "TopKAccuracy", "WarmupCosineLR", "__version__", "load_pretrained"]  # fmt: skip
