"""Panoptic quality, computed without the package panopticapi."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine import fileio
from mmengine.evaluator import BaseMetric

from mmgcvit.errors import AnnotationError
from mmgcvit.registry import METRICS
from mmgcvit.tasks.detection.coco import read_lists
from mmgcvit.tasks.panoptic.annotations import ids_of, png_size_problem
from mmgcvit.tasks.visualizer import OFFSET

UNKNOWN = -1.0  # quality without any segment, as in COCO's metrics
NAMES = ("PQ", "SQ", "RQ")


class GroundTruth:
    """Ground truth of a COCO panoptic file, whose PNGs are read when they are asked for.

    Args:
        ann_file: the file.
        seg_prefix: folder with its PNGs.
        backend_args: of the file client, for the PNGs.

    Attributes:
        things: names of the categories that are things.

    Raises:
        AnnotationError: the file cannot be read.
    """

    def __init__(self, ann_file: str, seg_prefix: str, backend_args: dict | None = None) -> None:
        self.seg_prefix, self.backend_args = seg_prefix, backend_args
        content = read_lists(ann_file)
        names = {image["id"]: image["file_name"].replace(".jpg", ".png") for image in content["images"]}
        self._images: dict[Any, tuple[str, list[dict]]] = {key: (name, []) for key, name in names.items()}
        for annotation in content["annotations"]:
            name = annotation.get("file_name") or names[annotation["image_id"]]
            self._images[annotation["image_id"]] = name, annotation["segments_info"]
        self._categories = {category["id"]: category["name"] for category in content["categories"]}
        self.things = {category["name"] for category in content["categories"] if category["isthing"]}

    def segments(
        self, image_id: Any, classes: Sequence[str], size: tuple[int, ...]
    ) -> tuple[np.ndarray, dict[int, tuple[int, bool]]]:
        """Return the ids (H, W) of an image, and the label of each segment and whether it is a crowd.

        Args:
            image_id: its id.
            classes: class names, in the order of the labels.
            size: height and width that the PNG has to have.

        Raises:
            AnnotationError: the PNG cannot be read, or has another size.
        """
        name, segments = self._images[image_id]
        path = os.path.join(self.seg_prefix, name)
        try:
            ids = ids_of(fileio.get(path, backend_args=self.backend_args))
        except (OSError, AnnotationError) as error:
            raise AnnotationError(f"segments {path}: cannot be read: {error}") from error
        height, width = size
        if ids.shape != (height, width):
            raise AnnotationError(str(png_size_problem(path, ids.shape[::-1], (width, height))))
        labels = {key: classes.index(name) for key, name in self._categories.items() if name in classes}
        return ids, {s["id"]: (labels[s["category_id"]], bool(s.get("iscrowd"))) for s in segments}


@METRICS.register_module()
class PanopticMetric(BaseMetric):
    """Panoptic quality as COCO defines it: PQ, SQ and RQ in percent, of all classes, things (th) and stuff (st).

    A predicted segment matches a true one of its class at an IoU above 0.5. Pixels without a class do not count.
    Predictions of which more than half lie on such pixels, or on a crowd of their class, are no errors.

    Args:
        ann_file: COCO panoptic file with the ground truth.
        seg_prefix: folder with its PNGs.
        classwise: whether to add the PQ of each class, as ``cat_PQ``.
        backend_args: of the file client, for the PNGs.
        collect_device, prefix: of every metric.

    Raises:
        AnnotationError: a file cannot be read.
    """

    default_prefix = "coco_panoptic"

    def __init__(
        self,
        ann_file: str,
        seg_prefix: str,
        classwise: bool = False,
        backend_args: dict | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ann_file, self.seg_prefix, self.classwise, self.backend_args = (
            ann_file,
            seg_prefix,
            classwise,
            backend_args,
        )
        self._truth: GroundTruth | None = None

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Compare the predictions of a batch with the ground truth."""
        if self._truth is None:
            self._truth = GroundTruth(self.ann_file, self.seg_prefix, self.backend_args)
        assert self.dataset_meta is not None
        classes = self.dataset_meta["classes"]
        for sample in data_samples:
            prediction = sample["pred_panoptic_seg"]["sem_seg"].cpu().numpy()[0]
            ids, known = self._truth.segments(sample["img_id"], classes, prediction.shape)
            self.results.append(compare(ids, known, prediction, len(classes)))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Compute the qualities from the sums over all images."""
        assert self.dataset_meta is not None
        classes = self.dataset_meta["classes"]
        table, there = qualities(np.sum(results, axis=0))
        things = self._truth.things if self._truth is not None else ()
        is_thing = np.array([name in things for name in classes])
        found: dict[str, float] = {}
        for suffix, chosen in (("", there), ("_th", there & is_thing), ("_st", there & ~is_thing)):
            means = table[chosen].mean(axis=0) if chosen.any() else [UNKNOWN] * len(NAMES)
            found |= {f"{name}{suffix}": float(value) for name, value in zip(NAMES, means, strict=True)}
        if self.classwise:
            found |= {f"{name}_PQ": float(table[i, 0]) if there[i] else UNKNOWN for i, name in enumerate(classes)}
        return found


def compare(
    truth: np.ndarray, segments: Mapping[int, tuple[int, bool]], prediction: np.ndarray, classes: int
) -> np.ndarray:
    """Match the segments of an image.

    Args:
        truth: (H, W) ids; those that are not in ``segments`` have no class.
        segments: label of each id, and whether it is a crowd.
        prediction: (H, W) mmdet's prediction: class + 1000 x number of the object; the class ``classes`` means none.
        classes: number of classes.

    Returns:
        (classes, 4) sum of the IoU of the matches, true positives, false positives, false negatives.
    """
    true_ids, at = np.unique(truth, return_inverse=True)
    found_ids, found_at = np.unique(prediction, return_inverse=True)
    common = np.bincount(at.ravel() * len(found_ids) + found_at.ravel(), minlength=len(true_ids) * len(found_ids))
    common = common.reshape(len(true_ids), len(found_ids))
    known = [segments.get(int(key), (-1, False)) for key in true_ids]
    true_labels, crowd = np.array([label for label, _ in known]), np.array([is_crowd for _, is_crowd in known])
    found_labels = found_ids % OFFSET
    is_found = found_labels < classes
    void = common[true_labels < 0].sum(axis=0)  # pixels of each prediction without a true class
    areas = common.sum(axis=0)
    union = common.sum(axis=1)[:, None] + areas - common - void
    same = (true_labels[:, None] == found_labels) & is_found
    matches = same & ~crowd[:, None] & (2 * common > union)
    sums = np.zeros((classes, 4))
    rows, columns = np.nonzero(matches)
    np.add.at(sums[:, 0], true_labels[rows], common[rows, columns] / union[rows, columns])
    np.add.at(sums[:, 1], true_labels[rows], 1)
    ignored = void + np.where(same & crowd[:, None], common, 0).sum(axis=0)
    wrong = is_found & ~matches.any(axis=0) & (2 * ignored <= areas)
    np.add.at(sums[:, 2], found_labels[wrong], 1)
    missed = (true_labels >= 0) & ~crowd & ~matches.any(axis=1)
    np.add.at(sums[:, 3], true_labels[missed], 1)
    absent = [label for key, (label, is_crowd) in segments.items() if not is_crowd and key not in true_ids]
    np.add.at(sums[:, 3], np.array(absent, int), 1)
    return sums


def qualities(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return PQ, SQ and RQ (classes, 3) in percent from the sums of :func:`compare`, and which classes are there."""
    overlap, right, false, missed = sums.T
    there = right + false + missed > 0
    recognition = right / np.maximum(right + false / 2 + missed / 2, 0.5)
    segmentation = overlap / np.maximum(right, 1)
    return 100 * np.stack([segmentation * recognition, segmentation, recognition], axis=1), there
