"""Parameter groups, learning-rate schedules, and optimizer steps with few kernels."""

from mmgcvit.optim.cosine import WarmupCosineLR
from mmgcvit.optim.fused import MergedGroupsHook, with_fused_optimizer
from mmgcvit.optim.layer_decay import GCViTLayerDecayOptimWrapperConstructor

__all__ = ["GCViTLayerDecayOptimWrapperConstructor", "MergedGroupsHook", "WarmupCosineLR", "with_fused_optimizer"]
