"""Former place of :mod:`mmgcvit.tasks.classification`; its names stay importable from here."""

from mmgcvit.tasks.classification.classifier import GCViTClassifier
from mmgcvit.tasks.classification.metric import TopKAccuracy
from mmgcvit.tasks.classification.preprocessor import ClassificationPreprocessor

__all__ = ["ClassificationPreprocessor", "GCViTClassifier", "TopKAccuracy"]
