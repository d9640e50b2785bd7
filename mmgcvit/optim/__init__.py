"""Parameter groups and learning-rate schedules."""

from mmgcvit.optim.cosine import WarmupCosineLR
from mmgcvit.optim.layer_decay import GCViTLayerDecayOptimWrapperConstructor

__all__ = ["GCViTLayerDecayOptimWrapperConstructor", "WarmupCosineLR"]
