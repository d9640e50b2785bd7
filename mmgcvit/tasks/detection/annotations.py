"""Validation of the annotations of a config's detection data sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence

from mmgcvit.datasets.files import image_loader, missing_problems, size_problems
from mmgcvit.datasets.problems import Problem, data_sets, refuse
from mmgcvit.datasets.text import read_names
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import type_name
from mmgcvit.tasks.detection.boxes import outside
from mmgcvit.tasks.detection.coco import (
    LEFT_OUT,
    AnnotatedImage,
    Annotations,
    evaluation,
    image_file_name,
    read_coco,
    read_lists,
)

__all__ = [
    "AnnotatedImage",
    "Annotations",
    "check_before_run",
    "coco_like",
    "image_file_name",
    "image_problems",
    "outside",
    "read_coco",
    "read_dataset",
    "read_lists",
    "wants_masks",
]

#: Types of data sets that read COCO files, and the key of an image with its name.
COCO_LIKE = {
    "CocoDataset": "file_name",
    "LVISDataset": "file_name",
    "LVISV05Dataset": "file_name",
    "LVISV1Dataset": "coco_url",
}


def check_before_run(dataloader: Mapping | None, evaluator: object = None) -> None:
    """Check that a run can use the annotations, classes and images of each CocoDataset in a data loader.

    mmdet numbers the classes in the order of the file, regardless of the order in the config, and ignores names that
    are not in the file; without any usable object the data set is empty, and training hangs.

    Args:
        dataloader: data loader of a config; other types of data sets are not checked.
        evaluator: the metric or metrics for this data loader, if any.

    Raises:
        AnnotationError: classes are missing in the file or have another order, there are no objects, annotations cannot
            be read, or images are missing or of another size; names the file, the image id and the annotation id.
    """
    for dataset in data_sets((dataloader or {}).get("dataset")):
        if not coco_like(dataset) or not dataset.get("ann_file") or dataset.get("backend_args"):
            continue  # only mmdet reads remote files
        found = read_dataset(dataset, evaluator)
        refuse(found.problems)
        refuse(image_problems(found.images, dataset))


def image_problems(images: Sequence[AnnotatedImage], dataset: Mapping) -> list[Problem]:
    """Problems of images that are missing or have another size than annotated, found without decoding any.

    Images may be missing in training data whose loader skips corrupt images.
    """
    loader = image_loader(dataset.get("pipeline"))
    if loader is None:
        return []
    skips = not dataset.get("test_mode") and (loader.get("corrupt") == "skip" or loader.get("ignore_empty"))
    return [
        *([] if skips else missing_problems([image.path for image in images])),
        *size_problems([(image.path, image.width, image.height) for image in images], loader),
    ]


def read_dataset(dataset: Mapping, evaluator: object = None) -> Annotations:
    """Call :func:`read_coco` for a config's COCO-like data set, and add the problems with its classes.

    Raises:
        AnnotationError: see :func:`read_coco`.
    """
    root, name = dataset.get("data_root") or "", dataset["ann_file"]
    if not isinstance(name, str):
        raise AnnotationError(
            f"ann_file={name!r}; allowed: one file. To join several, use dataset=dict(type='ConcatDataset', "
            f"datasets=[...]) with a {dataset['type']} for each of them"
        )
    path = os.path.join(root, name)
    classes = _classes(dataset) or ()
    prefix = os.path.join(root, (dataset.get("data_prefix") or {}).get("img", ""))
    test_mode, evaluated = bool(dataset.get("test_mode")), evaluation(evaluator)
    with_mask = wants_masks(dataset.get("pipeline"))
    found = read_coco(path, classes, prefix, with_mask, test_mode, evaluated, COCO_LIKE[type_name(dataset)])
    least = 0 if test_mode else (dataset.get("filter_cfg") or {}).get("min_size", 0)
    if not (dataset.get("metainfo") or {}).get("classes") and classes and not set(classes) & set(found.categories):
        found.problems.append(
            Problem(
                "classes",
                path,
                f"has {', '.join(map(repr, found.categories))}, none of which is a class of "
                f"{dataset['type']}; set metainfo=dict(classes=(...)) in the config's data sets",
                breaks=True,
            )
        )
    elif (dataset.get("metainfo") or {}).get("classes") and [
        name for name in found.categories if name in classes
    ] != list(classes):
        found.problems.append(
            Problem(
                "classes",
                path,
                f"classes={tuple(classes)!r}; allowed, as {path} has them: "
                f"{', '.join(map(repr, found.categories))}, all or some, in this order",
                breaks=True,
            )
        )
    elif (not test_mode or evaluated.boxes) and not any(
        image.boxes and min(image.width, image.height) >= least for image in found.images
    ):
        found.problems.append(Problem("empty", path, _why_empty(found, test_mode, least), breaks=True))
    return found


def _why_empty(found: Annotations, test_mode: bool, least: int) -> str:
    kinds = Counter(problem.kind for problem in found.problems if not problem.breaks and problem.kind in LEFT_OUT)
    reasons = [f"{kind}: {count}" for kind, count in kinds.items()]
    if found.crowds:
        reasons.append(f"iscrowd=1, which are ignored: {found.crowds}")
    size = f" (filter_cfg.min_size={least})" if least else ""
    end = "the metrics would be meaningless" if test_mode else "training would hang"
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return f"none of {found.objects} annotations can be used{size}: {end}{why}"


def coco_like(dataset: Mapping) -> bool:
    """Whether a data set of a config reads COCO JSON files."""
    return type_name(dataset) in COCO_LIKE


def _classes(dataset: Mapping) -> Sequence[str] | None:
    """Class names of the run: those of the config (possibly in a file), or else those of the data set class."""
    classes = (dataset.get("metainfo") or {}).get("classes")
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise AnnotationError(
                f"metainfo.classes={classes!r}; allowed: a tuple of names, such as ({classes!r}, ), "
                "or a file with one name per line"
            )
        return read_names("metainfo.classes", classes)
    if classes:
        return classes
    try:
        from mmdet import datasets
    except ImportError:
        return None
    own = getattr(datasets, type_name(dataset), None)
    return own and own.METAINFO.get("classes")


def wants_masks(pipeline: Sequence[Mapping] | None) -> bool:
    """Whether a pipeline loads masks."""
    return any(t.get("with_mask", False) for t in pipeline or () if str(t.get("type")).endswith("LoadAnnotations"))
