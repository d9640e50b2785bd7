"""What is added to mmengine's runs."""

from mmgcvit.tasks.classification.hook import ClassificationHook
from mmgcvit.engine.hooks import CorruptImageHook, InvalidLossError, InvalidLossHook, ReproducibleHook
from mmgcvit.engine.loops import EMAValLoop, ResumableTrainLoop
from mmgcvit.engine.sharding import FSDPAmpOptimWrapper, FSDPOptimWrapper

__all__ = [
    "ClassificationHook",
    "CorruptImageHook",
    "EMAValLoop",
    "FSDPAmpOptimWrapper",
    "FSDPOptimWrapper",
    "InvalidLossError",
    "InvalidLossHook",
    "ReproducibleHook",
    "ResumableTrainLoop",
]
