"""Validation of the annotations of a config's detection data sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmgcvit.datasets.files import image_loader, missing_problems, size_problems
from mmgcvit.datasets.problems import Problem, data_sets, dataset_class, refuse
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
from mmgcvit.utils.text import counted

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

#: Data sets that read COCO files, with their subclasses, and the key of an image with its name.
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
        dataloader: data loader of a config. Of subclasses that read files of their own, only the existence of the file
            is checked; other types of data sets are not checked.
        evaluator: the metric or metrics for this data loader, if any.

    Raises:
        AnnotationError: classes are missing in the file or have another order, there are no objects, annotations cannot
            be read, or images are missing or of another size; names the file, the image id and the annotation id.
    """
    for dataset in data_sets((dataloader or {}).get("dataset")):
        if not dataset.get("ann_file") or dataset.get("backend_args"):
            continue  # only mmdet reads remote files
        if not coco_like(dataset):
            path = os.path.join(dataset.get("data_root") or "", str(dataset["ann_file"]))
            if "CocoDataset" in _bases(dataset) and not os.path.exists(path):
                raise AnnotationError(f"annotation file {path!r}: no such file")
            continue
        found = read_dataset(dataset, evaluator)
        refuse(found.problems)
        refuse(image_problems(found.images, dataset))


def image_problems(images: Sequence[AnnotatedImage], dataset: Mapping) -> list[Problem]:
    """Problems of images that are missing or have another size than annotated, found without decoding any.

    Images may be missing in training data whose loader skips corrupt images. It skips those of another size, too, so
    they do not break the run.
    """
    loader = image_loader(dataset.get("pipeline"))
    if loader is None:
        return []
    skips = not dataset.get("test_mode") and (loader.get("corrupt") == "skip" or loader.get("ignore_empty"))
    sizes = size_problems([(image.path, image.width, image.height) for image in images], loader)
    if skips:
        return [replace(problem, breaks=False) for problem in sizes]
    return [*missing_problems([image.path for image in images]), *sizes]


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
    found = read_coco(path, classes, prefix, with_mask, test_mode, evaluated, _name_key(dataset) or "")
    if test_mode and evaluated.boxes and not found.objects:
        what = (
            "has no annotations, so there is nothing to evaluate. To predict on these images, use `mmgcvit predict` "
            "with --ann-file; or set format_only=True and an outfile_prefix in the evaluator"
        )
        found.problems.insert(0, Problem("metric", path, what, breaks=True))
        return found
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
    return f"none of {counted(found.objects, 'annotation')} can be used{size}: {end}{why}"


def coco_like(dataset: Mapping) -> bool:
    """Whether a data set of a config reads COCO JSON files as CocoDataset does, or as LVIS's data sets do.

    Subclasses do, unless they override the methods that read the file or an image's entry: it may have any content.
    """
    return _name_key(dataset) is not None


def _bases(dataset: Mapping) -> dict[str, Any]:
    """Class of a config's data set and its bases, by name; only the name if mmdet is not installed."""
    kind = dataset_class(dataset)
    return {base.__name__: base for base in kind.__mro__} if isinstance(kind, type) else {type_name(dataset): None}


def _name_key(dataset: Mapping) -> str | None:
    """Key of an image with its name in the COCO file of a data set; None if it does not read such files."""
    for name, kind in _bases(dataset).items():
        if name in COCO_LIKE:
            return COCO_LIKE[name]
        if {"load_data_list", "parse_data_info"} & set(getattr(kind, "__dict__", ())):
            return None
    return None


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
    own = dataset_class(dataset) or getattr(datasets, type_name(dataset), None)
    return own and own.METAINFO.get("classes")


def wants_masks(pipeline: Sequence[Mapping] | None) -> bool:
    """Whether a pipeline loads masks."""
    return any(t.get("with_mask", False) for t in pipeline or () if str(t.get("type")).endswith("LoadAnnotations"))
