"""Parameter groups, learning-rate schedules, and the choice of fused optimizers."""

from mmgcvit.optim.cosine import WarmupCosineLR
from mmgcvit.optim.fused import with_fused_optimizer
from mmgcvit.optim.layer_decay import GCViTLayerDecayOptimWrapperConstructor

__all__ = ["GCViTLayerDecayOptimWrapperConstructor", "WarmupCosineLR", "with_fused_optimizer"]
