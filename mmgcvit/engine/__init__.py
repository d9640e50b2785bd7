"""What is added to mmengine's runs."""

from mmgcvit.engine.classes import ClassificationHook
from mmgcvit.engine.hooks import CorruptPictureHook, InvalidLossError, InvalidLossHook, ReproducibleHook
from mmgcvit.engine.loops import EMAValLoop, ResumableTrainLoop
from mmgcvit.engine.sharding import FSDPAmpOptimWrapper, FSDPOptimWrapper

__all__ = [
    "ClassificationHook",
    "CorruptPictureHook",
    "EMAValLoop",
    "FSDPAmpOptimWrapper",
    "FSDPOptimWrapper",
    "InvalidLossError",
    "InvalidLossHook",
    "ReproducibleHook",
    "ResumableTrainLoop",
]
