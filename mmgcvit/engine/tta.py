"""Former location of :class:`BoxTTAModel`, now in :mod:`mmgcvit.tasks.detection.tta`; kept for one release."""

from mmgcvit.tasks.detection.tta import BoxTTAModel

__all__ = ["BoxTTAModel"]
