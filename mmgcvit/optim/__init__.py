"""Optimizers' parameter groups."""

from mmgcvit.optim.layer_decay import GCViTLayerDecayOptimWrapperConstructor

__all__ = ["GCViTLayerDecayOptimWrapperConstructor"]
