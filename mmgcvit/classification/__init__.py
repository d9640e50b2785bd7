"""Classification: the backbone's last map, pooled, and a linear head."""

from mmgcvit.classification.classifier import GCViTClassifier

__all__ = ["GCViTClassifier"]
