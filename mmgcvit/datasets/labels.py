"""Former location of :mod:`mmgcvit.tasks.segmentation.label_maps`; kept for one release."""

from mmgcvit.datasets.problems import dataset_class
from mmgcvit.tasks.segmentation.label_maps import (
    LabelMaps,
    check_label_maps,
    check_labels,
    compare_splits,
    has_label_maps,
    read_label_maps,
)

__all__ = [
    "LabelMaps",
    "check_label_maps",
    "check_labels",
    "compare_splits",
    "dataset_class",
    "has_label_maps",
    "read_label_maps",
]
