"""Reading and validation of the label maps of segmentation data sets.

mmseg reads any file as 8-bit labels. It does not report values that are not a class, until a loss fails on them, nor
classes without any pixel.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS, MODELS
from PIL import Image

from mmgcvit.datasets.files import THREADS, header, missing_problems
from mmgcvit.datasets.problems import Problem, metrics_of, refuse
from mmgcvit.datasets.processes import Processes
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.datasets.text import read_names, read_utf8
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import base_names, type_name
from mmgcvit.tasks.segmentation.pairs import (
    DEEP,
    GREY,
    header_problems,
    mode_problem,
    other_suffixes,
    partners,
    size_problem,
    unused_label_maps,
)
from mmgcvit.utils.images import any_image_size, require_pixels

IGNORED = 255
PIXELS = 2**27  # of label maps that are decoded at the same time before a run
DECODED = 100  # label maps that are decoded before a run; of larger data sets, as many at equal distances
OUTSIDE = 256  # label for values that are neither a class nor ignored


@dataclass
class LabelMaps:
    """File pairs of a data set, and the meaning of the values in its label maps."""

    pairs: list[tuple[str, str]]  # image, label map
    classes: tuple[str, ...]
    meaning: np.ndarray  # (256,) uint16: for each value in a file its label, IGNORED, or OUTSIDE
    ignored: dict[str, int]  # the ignored label, by the component that ignores it; `meaning` uses the first
    image_folder: str
    image_suffix: str
    label_folder: str
    label_suffix: str
    loaded: bool  # whether mmseg's LoadAnnotations loads them; another transform may read files of any kind
    listed: bool  # whether a list names the pairs; otherwise they are all files with these suffixes
    crop: tuple[int, int] | None  # height, width; None without crops or if the size before cropping is not known
    resize: Mapping | None  # the transform that resizes images before the crop
    look: Callable[[str], tuple[tuple[int, int] | None, list[Problem]]]  # decodes an image: its size, and problems


@dataclass
class _Pair:
    """Content of one file pair."""

    size: tuple[int, int] | None = None  # width, height
    counts: np.ndarray | None = None  # (257,): pixels by label
    crops: tuple[int, int] = (0, 0)  # number of crops without any label, total number of crops
    problems: tuple[Problem, ...] = ()


def has_label_maps(dataset: Mapping) -> bool:
    """Whether a data set of a config has label maps; mmseg's data sets name their folder in ``data_prefix``.

    '' means ``data_root`` itself, also for a data set of mmseg without a ``data_prefix``.
    """
    prefix = dataset.get("data_prefix")
    if isinstance(prefix, Mapping):
        return prefix.get("seg_map_path") is not None
    return is_base_seg_dataset(dataset)


def is_base_seg_dataset(dataset: Mapping) -> bool:
    """Whether a data set is one of mmseg's, with or without label maps."""
    return "BaseSegDataset" in base_names(DATASETS, dataset)


def read_label_maps(dataset: Mapping, model: Mapping | None, evaluator: Any = None) -> LabelMaps:
    """Read the file pairs and classes of a config's data set, as paired by mmseg.

    Args:
        dataset: data set config.
        model: model config; the losses of its heads determine the ignored labels.
        evaluator: the metric or metrics for this data set, if any.

    Raises:
        AnnotationError: mmseg cannot build the data set, or the data set has no classes or no images.
    """
    from mmgcvit.datasets.loading import ImageChecker

    root, prefix = dataset.get("data_root") or "", dataset.get("data_prefix") or {}
    for path in (prefix.get("img_path"), prefix.get("seg_map_path"), dataset.get("ann_file")):
        if path and not dataset.get("backend_args") and not os.path.exists(os.path.join(root, path)):
            raise AnnotationError(f"{os.path.join(root, path)}: no such file or folder")
    name = (dataset.get("metainfo") or {}).get("classes")
    if isinstance(name, str) and not os.path.isfile(name):
        raise AnnotationError(
            f"metainfo.classes={name!r}; allowed: a tuple of names, such as ({name!r}, ), or a file "
            "with one name per line"
        )
    if isinstance(name, str):
        read_names("metainfo.classes", name)
    if dataset.get("ann_file") and not dataset.get("backend_args"):
        read_utf8("ann_file", os.path.join(root, dataset["ann_file"]))
    for key in ("img_suffix", "seg_map_suffix"):
        if not isinstance(dataset.get(key, ""), str):
            raise AnnotationError(
                f"{key}={dataset[key]!r}; allowed: one suffix. For several, use dataset=dict(type='ConcatDataset', "
                f"datasets=[...]) with a {type_name(dataset)} for each, or rename the files"
            )
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False, "serialize_data": False})
        infos = [built.get_data_info(i) for i in range(len(built))]
    except Exception as error:  # report any failure of a data set
        raise AnnotationError(f"{dataset.get('type')} cannot be built: {type(error).__name__}: {error}") from error
    classes = tuple(built.metainfo.get("classes") or ())
    if not classes:
        raise AnnotationError(f"{dataset.get('type')}: no classes; set metainfo=dict(classes=(...))")
    if not infos:
        folder = built.data_prefix.get("img_path") or ""
        there = Counter(Path(name).suffix for name in os.listdir(folder)) if os.path.isdir(folder) else {}
        raise AnnotationError(
            f"no images *{built.img_suffix} in {folder}; there are "
            f"{', '.join(f'{count} *{suffix}' for suffix, count in there.items()) or 'none at all'} (img_suffix of the "
            "data set): training would hang"
        )
    ignored = {f"model.{name}": head.get("ignore_index", IGNORED) for name, head in heads(model)}
    for metric in metrics_of(evaluator):
        if str(metric.get("type")).endswith("IoUMetric"):
            ignored["the metric"] = metric.get("ignore_index", IGNORED)
    ignored = ignored or {"mmseg's losses": IGNORED}
    crop, resize = _crop(dataset.get("pipeline") or ())
    return LabelMaps(
        [(info["img_path"], info["seg_map_path"]) for info in infos],
        classes,
        _meaning(len(classes), built.reduce_zero_label, built.label_map, next(iter(ignored.values()))),
        ignored | {"the data set": built.ignore_index},
        built.data_prefix["img_path"],
        built.img_suffix,
        built.data_prefix["seg_map_path"],
        built.seg_map_suffix,
        not (pipeline := dataset.get("pipeline")) or any(type_name(step) == "LoadAnnotations" for step in pipeline),
        bool(dataset.get("ann_file")),
        crop,
        resize,
        ImageChecker(dataset, model),
    )


def check_label_maps(
    dataset: Mapping, model: Mapping | None, evaluator: Any = None, others: Sequence[Mapping] = ()
) -> None:
    """Check the classes, heads and file pairs of a data set, the headers of many pairs and the values of a few.

    ``others`` are the other data sets of the same split.

    Raises:
        AnnotationError: there are no images, images have no label maps or are left out, heads have another number of
            classes, heads, metric and data set ignore different labels, or a label map cannot be used.
    """
    found = read_label_maps(dataset, model, evaluator)
    refuse([*_outputs(model, found), *partners(found.pairs), *_others(found, others)])
    refuse(list(missing_problems([image for image, _ in found.pairs])))
    if not found.loaded:
        return
    deep: list[str] = []
    refuse(list(header_problems(found.pairs, dataset.get("pipeline"), deep)))
    chosen = list(dict.fromkeys([path for _, path in found.pairs[:: max(1, -(-len(found.pairs) // DECODED))]] + deep))
    sizes = [known[0] for path in chosen if (known := header(path, False))]
    largest = max((width * height for width, height in sizes), default=1)
    with ThreadPoolExecutor(max(1, min(THREADS, PIXELS // max(1, largest)))) as pool:
        decoded = pool.map(lambda path: _look_at_labels(path, None, found), chosen)
        refuse([problem for pair in decoded for problem in pair.problems])


def check_labels(
    name: str,
    dataset: Mapping,
    model: Mapping | None,
    workers: int,
    advance: Callable[[int], None],
    evaluator: Any = None,
    others: Sequence[Mapping] = (),
) -> DatasetReport:
    """Check every image and label map of a data set.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: data set config, with label maps (:func:`has_label_maps`).
        model: model config, whose heads must have the same number of classes.
        workers: number of processes that decode files.
        advance: called after each pair with the total number of pairs.
        evaluator: the metric or metrics for this data set, if any.
        others: the other data sets of the same split.

    Returns:
        Counts in pixels; problems that break a run or make a metric meaningless, and other problems.
    """
    folder = (dataset.get("data_prefix") or {}).get("seg_map_path") or ""
    source = os.path.join(dataset.get("data_root") or "", folder)
    report = DatasetReport(name, source, unit="pixels")
    try:
        found = read_label_maps(dataset, model, evaluator)
    except AnnotationError as error:
        report.problems.append(Problem("label maps", source, str(error), True))
        return report
    report.images = len(found.pairs)
    report.problems = [*_outputs(model, found), *partners(found.pairs), *_others(found, others)]
    if not found.listed:
        report.problems += unused_label_maps(found.pairs, found.label_folder, found.label_suffix)
    report.files = [image for image, _ in found.pairs]
    counts = np.zeros(OUTSIDE + 1, np.int64)
    empty_crops = crops = 0
    with Processes(partial(_look, found=found), workers) as pool:
        for pair in pool.map(found.pairs, lambda index: found.pairs[index][0]):
            advance(report.images)
            report.problems += pair.problems
            if pair.size:
                report.sizes[pair.size] += 1
            if pair.counts is not None:
                counts += pair.counts
                report.empty += not pair.counts[: len(found.classes)].any()
            empty_crops, crops = empty_crops + pair.crops[0], crops + pair.crops[1]
    report.objects, report.kept = int(counts.sum()), int(counts[: len(found.classes)].sum())
    report.classes = {label: int(count) for label, count in zip(found.classes, counts, strict=False)}
    value = next(iter(found.ignored.values()))
    report.ignored = {f"ignored ({value})": int(counts[IGNORED])}
    if not found.loaded:
        what = "the pipeline has no LoadAnnotations: label maps that other transforms load are not checked"
        report.problems.append(Problem("label maps", source, what, False))
    elif not report.kept:
        report.problems.append(
            Problem(
                "empty",
                source,
                f"none of {report.objects} pixels has a label: the loss would be 0 or NaN, "
                f"{counts[IGNORED]} are ignored ({value})"
                + (", with reduce_zero_label=True 0 is ignored" if dataset.get("reduce_zero_label") else ""),
                True,
            )
        )
    elif report.empty:
        report.problems.append(
            Problem("ignored", source, f"{report.empty} of {report.images} label maps have no label at all", False)
        )
    if empty_crops and report.kept and found.crop:
        report.problems.append(
            Problem(
                "ignored",
                source,
                f"{empty_crops} of {crops} crops of {found.crop[0]} x {found.crop[1]} (height x width"
                f"{', of resized images' if found.resize else ''}) have no label at all: nothing is learned from them",
                False,
            )
        )
    return report


def compare_splits(reports: Sequence[DatasetReport]) -> None:
    """Report classes that are missing in one of the splits: their IoU would be 0 or NaN."""
    reports = [report for report in reports if report.unit == "pixels" and report.kept]
    learnt: Counter = Counter()
    for report in reports:
        if report.name == "train":
            learnt.update(report.classes)
    for report in reports:
        for label, count in report.classes.items():
            if report.name == "train":
                if not learnt[label]:
                    report.problems.append(
                        Problem(
                            "class", report.source, f"no pixel of class {label!r}: its IoU will be 0, or NaN", False
                        )
                    )
            elif not count:
                report.problems.append(
                    Problem(
                        "class",
                        report.source,
                        f"no pixel of class {label!r}: its IoU will be NaN, or 0 if anything is predicted as it",
                        False,
                    )
                )
        without = [label for label, count in report.classes.items() if not count]
        for label, count in report.ignored.items():
            if count and without:
                report.problems.append(
                    Problem(
                        "class",
                        report.source,
                        f"{count} pixels are {label}, while class "
                        f"{without[0]!r} has none: classes are numbered 0, 1, ..., so a mask "
                        "of 0 and 255 must use 1 instead of 255",
                        False,
                    )
                )


def _meaning(classes: int, reduce_zero_label: bool, label_map: Mapping | None, ignored: int) -> np.ndarray:
    """Label that mmseg assigns to each 8-bit value."""
    labels: np.ndarray = np.arange(256)
    if reduce_zero_label:
        labels = np.where(labels == 0, IGNORED, labels - 1)
        labels[IGNORED] = IGNORED
    before = labels.copy()
    for old, new in (label_map or {}).items():
        labels[before == old] = new
    labels = np.where((labels < classes) & (labels != ignored), labels, np.where(labels == ignored, IGNORED, OUTSIDE))
    return labels.astype(np.uint16)


def heads(model: Mapping | None) -> Iterator[tuple[str, Mapping]]:
    """Yield the heads of a config's segmentor, by name."""
    for name in ("decode_head", "auxiliary_head"):
        head = (model or {}).get(name)
        if isinstance(head, (list, tuple)):
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(head))
        elif head:
            yield name, head


def _outputs(model: Mapping | None, found: LabelMaps) -> Iterator[Problem]:
    """Yield heads whose number of classes differs from the data set's, and differing ignored labels."""
    for name, head in heads(model):
        if "STDCHead" in base_names(MODELS, head):
            continue  # its two classes are boundaries and the rest
        if head.get("num_classes") == 1 and head.get("out_channels") is None:
            yield Problem(
                "classes",
                f"model.{name}",
                "num_classes=1: with one class there is nothing to "
                "distinguish, and the loss is 0; add the background as a class",
                True,
            )
        if head.get("num_classes") != len(found.classes):
            yield Problem(
                "classes",
                f"model.{name}",
                f"num_classes={head.get('num_classes')}; the data set has "
                f"{len(found.classes)}: {', '.join(map(repr, found.classes))}",
                True,
            )
    first, *others = found.ignored.items()
    for name, value in others:
        if value != first[1]:
            yield Problem("ignore_index", name, f"ignore_index={value}; allowed: {first[1]}, as {first[0]} has", True)


def _others(found: LabelMaps, others: Sequence[Mapping]) -> list[Problem]:
    """Problems of images that are left out because of their suffixes."""
    if found.listed:
        return []
    folders = found.image_folder, found.image_suffix, found.label_folder, found.label_suffix
    return list(other_suffixes(found.pairs, *folders, others))


def _look(paths: tuple[str, str], found: LabelMaps) -> _Pair:
    """Decode an image and its label map."""
    path, label_map = paths
    size, problems = found.look(path)
    pair = _look_at_labels(label_map, size, found) if size and found.loaded else _Pair(size)
    pair.problems = (*problems, *pair.problems)
    return pair


def _look_at_labels(label_map: str, size: tuple[int, int] | None, found: LabelMaps) -> _Pair:
    """Decode a label map; ``size`` is the width and height of its image, if known."""
    if not os.path.isfile(label_map):
        return _Pair(size)  # already reported
    try:
        with any_image_size(), Image.open(label_map) as image:
            require_pixels(*image.size)
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many types of errors
        return _Pair(size, problems=(Problem("label map", label_map, f"cannot be decoded: {error}", True),))
    if mode not in GREY + DEEP:
        return _Pair(size, problems=(mode_problem(label_map, mode),))
    if mode in DEEP and (values.min() < 0 or values.max() > IGNORED):
        return _Pair(
            size,
            problems=(
                Problem(
                    "depth",
                    label_map,
                    f"has values from {values.min()} to {values.max()} ({mode!r}); allowed: 0 to "
                    f"{IGNORED}, as larger values are silently truncated to 8 bits",
                    True,
                ),
            ),
        )
    problems = []
    if size and values.shape[::-1] != size:
        problems.append(size_problem(label_map, (values.shape[1], values.shape[0]), size))
    counts, wrong = np.zeros(OUTSIDE + 1, np.int64), np.zeros(0, np.int64)
    ignored = np.zeros(values.shape, bool)
    for rows in _bands(values.shape):
        labels = found.meaning[values[rows].astype(np.uint8)]  # (rows, width)
        counts += np.bincount(labels.ravel(), minlength=OUTSIDE + 1)
        wrong = np.union1d(wrong, values[rows][labels == OUTSIDE])
        ignored[rows] = labels == IGNORED
    if counts[OUTSIDE]:
        problems.append(
            Problem(
                "value",
                label_map,
                f"{counts[OUTSIDE]} pixels of value "
                f"{', '.join(map(str, wrong[:8]))}{', ...' if len(wrong) > 8 else ''}; allowed: "
                f"{_ranges(np.flatnonzero(found.meaning != OUTSIDE))}",
                True,
            )
        )
    crops = (0, 0)
    if found.crop:
        crops = _crops(ignored, found.crop, _resized((values.shape[0], values.shape[1]), found.resize))
    return _Pair(size, counts, crops, tuple(problems))


def _bands(shape: Sequence[int]) -> Iterator[slice]:
    """Yield the rows of a label map (H, W) in parts of about a million pixels: counting needs 8 bytes for each."""
    step = max(1, 2**20 // max(1, shape[1]))
    yield from (slice(start, start + step) for start in range(0, shape[0], step))


def _crop(pipeline: Sequence[Mapping]) -> tuple[tuple[int, int] | None, Mapping | None]:
    """Height and width of a pipeline's crops, and the preceding resize transform; None if not known."""
    resize = None
    for transform in pipeline:
        kind = str(transform.get("type")).rpartition(".")[2]
        if kind == "RandomCrop":
            crop = transform["crop_size"]
            return ((crop, crop) if isinstance(crop, int) else (crop[0], crop[1])), resize
        if "Resize" in kind:
            if resize or kind not in ("Resize", "RandomResize") or transform.get("resize_type", "Resize") != "Resize":
                break
            resize = transform
    return None, None


def _resized(shape: tuple[int, int], resize: Mapping | None) -> tuple[int, int]:
    """Height and width of an image of (height, width) after mmcv's Resize, or at the middle of RandomResize's range."""
    if resize is None:
        return shape
    scale = resize.get("scale")
    if scale is None:
        factor = resize["scale_factor"]
        x, y = (factor, factor) if isinstance(factor, (int, float)) else factor
        return max(1, round(shape[0] * y)), max(1, round(shape[1] * x))
    if isinstance(scale, int):
        scale = scale, scale
    if not isinstance(scale[0], int):  # the ends of RandomResize's range
        scale = tuple(sum(ends) / 2 for ends in zip(*scale, strict=True))
    ratio = sum(resize.get("ratio_range") or (1, 1)) / 2
    scale = tuple(side * ratio for side in scale)
    if not resize.get("keep_ratio"):
        return max(1, round(scale[1])), max(1, round(scale[0]))
    from mmcv.image import rescale_size

    width, height = rescale_size(shape[::-1], scale)
    return max(1, height), max(1, width)


def _crops(ignored: np.ndarray, crop: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int]:
    """Divide a label map into adjacent crops; returns the number of crops without labels and of all crops.

    Args:
        ignored: (H, W), True where the label map is ignored.
        crop: height and width of a crop of the resized image.
        resized: height and width of the resized image.
    """
    height, width = (max(1, side // step) for side, step in zip(resized, crop, strict=True))
    if not ignored.any():
        return 0, height * width
    rows, columns = (
        np.minimum(np.arange(side) * after // (side * step), count - 1)
        for side, after, step, count in zip(ignored.shape, resized, crop, (height, width), strict=True)
    )
    labelled = np.zeros((height, width), np.int64)
    for band in _bands(ignored.shape):
        np.add.at(labelled, (rows[band, None], columns[None, :]), ~ignored[band])
    return int((labelled == 0).sum()), height * width


def _ranges(values: np.ndarray) -> str:
    """Format values as ranges: 0, 1, 2, 3, 255 -> '0 to 3, 255'."""
    parts = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
