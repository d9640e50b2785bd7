"""Training of a classifier, or of a backbone on images without labels, from a teacher: a network of timm."""

from mmgcvit.distillation.classifier import DistilledClassifier
from mmgcvit.distillation.losses import FeatureLoss, LogitsLoss
from mmgcvit.distillation.teacher import Teacher

__all__ = ["DistilledClassifier", "FeatureLoss", "LogitsLoss", "Teacher"]
