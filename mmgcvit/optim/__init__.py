"""Optimizers' parameter groups and learning rates."""

from mmgcvit.optim.cosine import WarmupCosineLR
from mmgcvit.optim.layer_decay import GCViTLayerDecayOptimWrapperConstructor

__all__ = ["GCViTLayerDecayOptimWrapperConstructor", "WarmupCosineLR"]
