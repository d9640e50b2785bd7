"""What a network sees: attention, feature maps, and class activation maps."""

from mmgcvit.explain.attention import AttentionMap, attention_maps, capture_attention, find_backbone

__all__ = ["AttentionMap", "attention_maps", "capture_attention", "find_backbone"]
