"""What can be wrong with label maps of segmentation data: found before a run stops, or learns nothing.

mmseg reads whatever a file holds as 8-bit labels, and says nothing of values that are no class until a loss fails on
them, nor of classes that no pixel has.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.registry import DATASETS
from PIL import Image

from mmgcvit.datasets.annotations import AnnotationError, Problem, refuse
from mmgcvit.datasets.pictures import picture_size
from mmgcvit.datasets.report import DatasetReport

IGNORED = 255
OUTSIDE = 256  # a value that is no class and not ignored
GREY = ("1", "L", "P")  # Pillow's modes of one value of 8 bits at most
DEEP = ("I", "I;16", "I;16B", "I;16L")


@dataclass
class LabelMaps:
    """A data set's pairs of files, and what the values of its label maps mean."""

    pairs: list[tuple[str, str]]  # picture, label map
    classes: tuple[str, ...]
    meaning: np.ndarray  # (256,): the label of each value of a file, IGNORED, or OUTSIDE
    folder: str  # of label maps, all of which should have a picture; '' where a list says which are meant
    suffix: str
    crop: tuple[int, int] | None  # height, width


@dataclass
class _Looked:
    """What is in one pair of files."""

    size: tuple[int, int] | None = None  # width, height
    counts: np.ndarray | None = None  # (257,): pixels by label
    crops: tuple[int, int] = (0, 0)  # without any label, in all
    problems: tuple[Problem, ...] = ()


def has_label_maps(dataset: Mapping) -> bool:
    """Whether a data set of a config is one of label maps: mmseg's name their folder so."""
    prefix = dataset.get("data_prefix")
    return isinstance(prefix, Mapping) and bool(prefix.get("seg_map_path"))


def read_label_maps(dataset: Mapping) -> LabelMaps:
    """The files of a config's data set, paired by mmseg, and its classes.

    Raises:
        AnnotationError: mmseg cannot build it, it has no classes, or finds no pictures.
    """
    root, prefix = dataset.get("data_root") or "", dataset["data_prefix"]
    for path in (prefix.get("img_path"), prefix["seg_map_path"], dataset.get("ann_file")):
        if path and not dataset.get("backend_args") and not os.path.exists(os.path.join(root, path)):
            raise AnnotationError(f"{os.path.join(root, path)}: there is no such file or folder")
    name = (dataset.get("metainfo") or {}).get("classes")
    if isinstance(name, str) and not os.path.isfile(name):
        raise AnnotationError(f"metainfo.classes={name!r}; allowed: a tuple of names, such as ({name!r}, ), or a file "
                              "with a name in each line")
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False, "serialize_data": False})
        infos = [built.get_data_info(i) for i in range(len(built))]
    except Exception as error:  # whatever a data set fails at, it is what the report is for
        raise AnnotationError(f"{dataset.get('type')} cannot be built: {type(error).__name__}: {error}") from error
    classes = tuple(built.metainfo.get("classes") or ())
    if not classes:
        raise AnnotationError(f"{dataset.get('type')}: no classes; set metainfo=dict(classes=(...))")
    if not infos:
        folder = built.data_prefix.get("img_path") or ""
        there = Counter(Path(name).suffix for name in os.listdir(folder)) if os.path.isdir(folder) else {}
        raise AnnotationError(
            f"no pictures *{built.img_suffix} in {folder}; there are "
            f"{', '.join(f'{count} *{suffix}' for suffix, count in there.items()) or 'none at all'} (img_suffix of the "
            "data set): training would wait for ever")
    crop = next((t["crop_size"] for t in dataset.get("pipeline") or () if t.get("type") == "RandomCrop"), None)
    return LabelMaps(
        [(info["img_path"], info["seg_map_path"]) for info in infos], classes,
        _meaning(len(classes), built.reduce_zero_label, built.label_map, built.ignore_index),
        "" if dataset.get("ann_file") else built.data_prefix["seg_map_path"], built.seg_map_suffix,
        (crop, crop) if isinstance(crop, int) else crop)


def check_label_maps(dataset: Mapping, model: Mapping | None) -> None:
    """See, without opening label maps, that a run can use a data set: its classes, its heads, its pairs of files.

    Raises:
        AnnotationError: no pictures, pictures without label maps, or heads with another number of classes.
    """
    found = read_label_maps(dataset)
    refuse([*_heads(model, found), *_partners(found, extra=False)])


def check_labels(name: str, dataset: Mapping, model: Mapping | None, workers: int,
                 advance: Callable[[int], None]) -> DatasetReport:
    """Look at every picture and label map of a data set.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: a config's, with ``data_prefix.seg_map_path``.
        model: the config's, whose heads must have as many classes.
        workers: threads that decode files.
        advance: called after each pair, with how many there are.

    Returns:
        Counts in pixels; problems that break a run or make a metric meaningless, and others.
    """
    source = os.path.join(dataset.get("data_root") or "", dataset["data_prefix"]["seg_map_path"])
    report = DatasetReport(name, source, unit="pixels")
    try:
        found = read_label_maps(dataset)
    except AnnotationError as error:
        report.problems.append(Problem("label maps", source, str(error), True))
        return report
    report.pictures = len(found.pairs)
    report.problems = [*_heads(model, found), *_partners(found)]
    counts = np.zeros(OUTSIDE + 1, np.int64)
    empty_crops = crops = 0
    with ThreadPoolExecutor(workers) as pool:
        for looked in pool.map(lambda pair: _look(*pair, found), found.pairs):
            advance(report.pictures)
            report.problems += looked.problems
            if looked.size:
                report.sizes[looked.size] += 1
            if looked.counts is not None:
                counts += looked.counts
                report.empty += not looked.counts[: len(found.classes)].any()
            empty_crops, crops = empty_crops + looked.crops[0], crops + looked.crops[1]
    report.objects, report.kept = int(counts.sum()), int(counts[: len(found.classes)].sum())
    report.classes = {label: int(count) for label, count in zip(found.classes, counts, strict=False)}
    if not report.kept:
        report.problems.append(Problem(
            "empty", source, f"none of {report.objects} pixels has a label: the loss would be 0 or NaN"
            + (", with reduce_zero_label=True 0 is ignored" if dataset.get("reduce_zero_label") else ""), True))
    elif report.empty:
        report.problems.append(Problem(
            "ignored", source, f"{report.empty} of {report.pictures} label maps have no label at all", False))
    if empty_crops and report.kept:
        report.problems.append(Problem(
            "ignored", source, f"{empty_crops} of {crops} crops of {found.crop[0]} x {found.crop[1]} (height x width) "
            "have no label at all: nothing is learnt from such", False))
    return report


def compare_splits(reports: Sequence[DatasetReport]) -> None:
    """Add to reports of label maps what makes an IoU 0 or NaN: classes that one of the splits lacks."""
    reports = [report for report in reports if report.unit == "pixels" and report.kept]
    learnt: Counter = Counter()
    for report in reports:
        if report.name == "train":
            learnt.update(report.classes)
    for report in reports:
        for label, count in report.classes.items():
            if report.name == "train":
                if not learnt[label]:
                    report.problems.append(Problem("class", report.source, f"no pixel of class {label!r}: its IoU will "
                                                   "be 0, or NaN", True))
            elif not count:
                report.problems.append(Problem("class", report.source, f"no pixel of class {label!r}: its IoU will be "
                                               "NaN, or 0 if anything is taken for it", True))


def _meaning(classes: int, reduce_zero_label: bool, label_map: Mapping | None, ignored: int) -> np.ndarray:
    """What mmseg makes of each value that a byte can have."""
    labels = np.arange(256)
    if reduce_zero_label:
        labels = np.where(labels == 0, IGNORED, labels - 1)
        labels[IGNORED] = IGNORED
    before = labels.copy()
    for old, new in (label_map or {}).items():
        labels[before == old] = new
    return np.where((labels < classes) & (labels != ignored), labels, np.where(labels == ignored, IGNORED, OUTSIDE))


def _heads(model: Mapping | None, found: LabelMaps) -> Iterator[Problem]:
    for name in ("decode_head", "auxiliary_head"):
        head = (model or {}).get(name)
        for part in head if isinstance(head, (list, tuple)) else [head] if head else []:
            if part.get("num_classes") == 1 and part.get("out_channels") is None:
                yield Problem("classes", f"model.{name}", "num_classes=1: with one class there is nothing to tell "
                              "apart, and the loss is 0; name the background too", True)
            if part.get("num_classes") != len(found.classes):
                yield Problem("classes", f"model.{name}", f"num_classes={part.get('num_classes')}; the data set has "
                              f"{len(found.classes)}: {', '.join(map(repr, found.classes))}", True)


def _partners(found: LabelMaps, extra: bool = True) -> Iterator[Problem]:
    """Pictures without a label map, and label maps without a picture."""
    known = set()
    for picture, label_map in found.pairs:
        known.add(os.path.abspath(label_map))
        if not os.path.isfile(label_map):
            yield Problem("partner", picture, f"no label map {label_map}", True)
    alone = [path for path in sorted(Path(found.folder).rglob(f"*{found.suffix}"))
             if os.path.abspath(path) not in known] if extra and found.folder else []
    if alone:
        yield Problem("partner", found.folder, f"{len(alone)} label maps are of no picture of this data set, the first "
                      f"{alone[0].name}", False)


def _look(picture: str, label_map: str, found: LabelMaps) -> _Looked:
    size, reason = picture_size(picture)
    if reason:
        return _Looked(problems=(Problem("picture", picture, reason, True),))
    if not os.path.isfile(label_map):
        return _Looked(size)  # known already
    try:
        with Image.open(label_map) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        return _Looked(size, problems=(Problem("label map", label_map, f"cannot be decoded: {error}", True),))
    if mode not in GREY + DEEP:
        return _Looked(size, problems=(Problem(
            "mode", label_map, f"is of mode {mode!r}; allowed: one value of 8 bits a pixel, modes "
            f"{', '.join(GREY)}", True),))
    if mode in DEEP and (values.min() < 0 or values.max() > IGNORED):
        return _Looked(size, problems=(Problem(
            "depth", label_map, f"has values from {values.min()} to {values.max()} ({mode!r}); allowed: 0 to "
            f"{IGNORED}, as others are cut to 8 bits without a word", True),))
    problems = []
    if values.shape[::-1] != size:
        problems.append(Problem("size", label_map, f"is {values.shape[1]} x {values.shape[0]} (width x height), its "
                                f"picture {size[0]} x {size[1]}", True))
    labels = found.meaning[values.astype(np.uint8)]  # (height, width)
    counts = np.bincount(labels.ravel(), minlength=OUTSIDE + 1)
    if counts[OUTSIDE]:
        wrong = np.unique(values[labels == OUTSIDE])
        problems.append(Problem("value", label_map, f"{counts[OUTSIDE]} pixels of value "
                                f"{', '.join(map(str, wrong[:8]))}{', ...' if len(wrong) > 8 else ''}; allowed: "
                                f"{_ranges(np.flatnonzero(found.meaning != OUTSIDE))}", True))
    return _Looked(size, counts, _crops(labels == IGNORED, found.crop), tuple(problems))


def _crops(ignored: np.ndarray, crop: tuple[int, int] | None) -> tuple[int, int]:
    """How many of the crops side by side, at the picture's own size, are ignored whole; and how many there are."""
    if crop is None:
        return 0, 0
    height, width = (max(1, side // step) for side, step in zip(ignored.shape, crop, strict=True))
    if not ignored.any():
        return 0, height * width
    rows, columns = (np.minimum(np.arange(side) // step, count - 1) for side, step, count in
                     zip(ignored.shape, crop, (height, width), strict=True))
    labelled = np.zeros((height, width), np.int64)
    np.add.at(labelled, (rows[:, None], columns[None, :]), ~ignored)
    return int((labelled == 0).sum()), height * width


def _ranges(values: np.ndarray) -> str:
    """'0 to 3, 255' of 0, 1, 2, 3, 255."""
    parts = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts)
