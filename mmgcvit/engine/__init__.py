"""Hooks, loops and optimizer wrappers for mmengine."""

from mmgcvit.engine.bfloat16 import CPUAmpOptimWrapper
from mmgcvit.engine.hooks import CorruptImageHook, InvalidLossHook, LoadedWeightsHook, ReproducibleHook
from mmgcvit.engine.loops import EMAValLoop, ResumableTrainLoop
from mmgcvit.engine.record import RunRecordHook
from mmgcvit.engine.saving import SafeCheckpointHook
from mmgcvit.engine.sharding import FSDPAmpOptimWrapper, FSDPOptimWrapper
from mmgcvit.engine.single_device import revert_sync_bn, scale_single_device_lr
from mmgcvit.engine.stopping import StopHook
from mmgcvit.errors import InvalidLossError
from mmgcvit.tasks.classification.hook import ClassificationHook

CorruptPictureHook = CorruptImageHook  # former name, kept for one release

__all__ = [
    "CPUAmpOptimWrapper",
    "ClassificationHook",
    "CorruptImageHook",
    "CorruptPictureHook",
    "EMAValLoop",
    "FSDPAmpOptimWrapper",
    "FSDPOptimWrapper",
    "InvalidLossError",
    "InvalidLossHook",
    "LoadedWeightsHook",
    "ReproducibleHook",
    "ResumableTrainLoop",
    "RunRecordHook",
    "SafeCheckpointHook",
    "StopHook",
    "revert_sync_bn",
    "scale_single_device_lr",
]
