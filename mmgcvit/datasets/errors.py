"""Former location of two of :mod:`mmgcvit.errors`; kept for one release."""

from mmgcvit.errors import ClassificationDataError, CorruptPictureError

__all__ = ["ClassificationDataError", "CorruptPictureError"]
