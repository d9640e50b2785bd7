"""Former location of :mod:`mmgcvit.tasks.classification.hook`; kept for one release."""

from mmgcvit.tasks.classification.hook import ClassificationHook

__all__ = ["ClassificationHook"]
