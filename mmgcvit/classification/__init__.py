"""Classification: bytes normalised and mixed, the backbone's last map, pooled, a linear head, its accuracy."""

from mmgcvit.classification.classifier import GCViTClassifier
from mmgcvit.classification.metric import TopKAccuracy
from mmgcvit.classification.preprocessor import ClassificationPreprocessor

__all__ = ["ClassificationPreprocessor", "GCViTClassifier", "TopKAccuracy"]
