"""Former location of the classification data set, now in :mod:`mmgcvit.tasks.classification`; kept for one release."""

from mmgcvit.tasks.classification.dataset import ClassificationDataset, check_names
from mmgcvit.tasks.classification.readers import ShardReader, TarReader
from mmgcvit.tasks.classification.transforms import LoadPillowImage, TimmTransform

__all__ = ["ClassificationDataset", "LoadPillowImage", "ShardReader", "TarReader", "TimmTransform", "check_names"]
