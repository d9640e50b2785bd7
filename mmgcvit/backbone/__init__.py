"""The network: table of variants, layers, window attention, padding, and :class:`GCViT` itself."""

from mmgcvit.backbone.arch import ARCHS, Arch
from mmgcvit.backbone.gcvit import GCViT

__all__ = ["ARCHS", "Arch", "GCViT"]
