"""Former location of :mod:`mmgcvit.tasks.detection.annotations`; kept for one release."""

from mmgcvit.datasets.problems import Problem, data_sets, refuse
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.detection.annotations import (
    AnnotatedImage,
    Annotations,
    check_before_run,
    coco_like,
    image_file_name,
    outside,
    read_coco,
    read_dataset,
    read_lists,
    wants_masks,
)

Picture, picture_name = AnnotatedImage, image_file_name

__all__ = [
    "AnnotationError",
    "Annotations",
    "Picture",
    "Problem",
    "check_before_run",
    "coco_like",
    "data_sets",
    "outside",
    "picture_name",
    "read_coco",
    "read_dataset",
    "read_lists",
    "refuse",
    "wants_masks",
]
