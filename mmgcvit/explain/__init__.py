"""What a network sees: attention, feature maps, and class activation maps."""

from mmgcvit.explain.attention import AttentionMap, attention_maps, capture_attention, find_backbone
from mmgcvit.explain.commands import METHODS, default_methods, explain, make_scene
from mmgcvit.explain.maps import CAMS, cam, feature_maps, pca_colours

__all__ = ["CAMS", "METHODS", "AttentionMap", "attention_maps", "cam", "capture_attention", "default_methods",
           "explain", "feature_maps", "find_backbone", "make_scene", "pca_colours"]  # fmt: skip
