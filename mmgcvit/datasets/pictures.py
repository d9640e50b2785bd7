"""Former location of :mod:`mmgcvit.datasets.images` and ``loading``; kept for one release."""

from mmgcvit.datasets.images import image_size as picture_size
from mmgcvit.datasets.images import unreadable
from mmgcvit.datasets.loading import LoadCheckedImage

__all__ = ["LoadCheckedImage", "picture_size", "unreadable"]
