"""What a report says about a panoptic segmentor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.errors import UsageError
from mmgcvit.report import plots
from mmgcvit.report.base import COUNTED, GALLERY, Model, TaskReport, encode_image, infos
from mmgcvit.report.numbers import ratio, shown
from mmgcvit.report.page import Figure, Note, Section, Table
from mmgcvit.report.parts import class_counts, ranked, size_figure
from mmgcvit.report.segmentation import KEPT, labels_of, marked, png_of, tensor_image
from mmgcvit.runtime.drawing import Colour, draw
from mmgcvit.runtime.predictions import Panoptic
from mmgcvit.tasks.panoptic.metric import GroundTruth, compare, qualities
from mmgcvit.tasks.visualizer import panoptic
from mmgcvit.utils.images import bgr_to_display
from mmgcvit.utils.text import counted

KINDS = ("things", "stuff")


class PanopticReport(TaskReport):
    """Panoptic quality per class, things and stuff apart, and the worst and best images."""

    def __init__(self, classes: Sequence[str], palette: Sequence[Colour], network: Any = None) -> None:
        super().__init__(classes, palette, network)
        self.sums = np.zeros((len(classes), 4))  # of tasks.panoptic.metric.compare
        self.quality: list[float] = []
        self.found: list[np.ndarray] = []  # matched, wrong and missed segments of each image
        self.wrong: list[float] = []  # share of the pixels of each image with a wrong class, in percent
        # Path of the image; truth and prediction as PNG files, and which pixels are wrong.
        self.kept: list[tuple[str, list[bytes], list[bytes], bytes]] = []
        self.sizes: list[float] = []
        self.seen = 0
        self.truth: GroundTruth | None = None

    def add(self, data: dict, outputs: Sequence[Any], dataset: Any) -> None:
        """Match the segments of a batch with the ground truth."""
        if self.truth is None:
            inner = list(inner_datasets(dataset))
            if len(inner) != 1:
                raise UsageError(f"val_dataloader: {len(inner)} panoptic data sets; allowed for a report: 1")
            prefix = inner[0].data_prefix["seg"]
            self.truth = GroundTruth(inner[0].ann_file, prefix, getattr(inner[0], "backend_args", None))
        for sample in outputs:
            info = sample.metainfo
            if not {"img_id", "img_path"} <= info.keys():
                info = dataset.get_data_info(self.seen)
            self.seen += 1
            found = sample.pred_panoptic_seg.sem_seg[0].cpu().numpy()
            ids, known = self.truth.segments(info["img_id"], self.classes, found.shape)
            sums = compare(ids, known, found, len(self.classes))
            self.sums += sums
            overlap, *counts = sums.sum(axis=0)
            right, wrong, missed = counts
            self.quality.append(float(ratio(100 * overlap, right + wrong / 2 + missed / 2)))
            self.found.append(np.array(counts, int))
            self.sizes.append(ids.size**0.5)
            if len(self.kept) < KEPT:
                true, predicted = labelled(self.classes, ids, known), panoptic("", self.classes, found)
                counted = counted_pixels(ids, known)
                wrong = counted & (true.labels != predicted.labels)
                self.wrong.append(float(ratio(100 * wrong.sum(), counted.sum())))
                self.kept.append((info["img_path"], _packed(true), _packed(predicted), png_of(wrong)))

    def sections(self, model: Model) -> list[Section]:
        """Return the results and the gallery."""
        results = Section("results", "Results per class")
        table, there = qualities(self.sums)
        if not there.any():
            results.add(Note("The validation data has no segments, and none were predicted."))
            return [results]
        for kind, chosen in self._kinds():
            results.add(*self._of_kind(kind, chosen, table, there))
        return [results, self._gallery(model)]

    def _kinds(self) -> list[tuple[str, np.ndarray]]:
        """Return the labels of the things, and of the stuff."""
        things = self.truth.things if self.truth is not None else ()
        is_thing = np.array([name in things for name in self.classes], bool)
        return [(kind, np.flatnonzero(chosen)) for kind, chosen in zip(KINDS, (is_thing, ~is_thing), strict=True)]

    def _of_kind(self, kind: str, labels: np.ndarray, table: np.ndarray, there: np.ndarray) -> list[Any]:
        """Return bar plot and table of the things, or of the stuff."""
        if not there[labels].any():
            return [Note(f"There are no {kind} in the validation data, and none were predicted.")]
        values = np.where(there[:, None], table, np.nan)[labels]
        order, words = ranked(values[:, 0])
        names, colours = [self.classes[labels[i]] for i in order], [self.palette[labels[i]] for i in order]
        content = plots.bars(names, {"PQ": values[order, 0]}, "PQ (%)", colours, 1, 100.0)
        means = np.nanmean(values, axis=0)
        caption = (
            f"Panoptic quality of {kind}{words}. 'none': the class occurs neither in the data nor in predictions. "
            f"Mean: PQ {means[0]:.2f} %, SQ {means[1]:.2f} %, RQ {means[2]:.2f} %."
        )
        rows = []
        for label, row in zip(labels, values, strict=True):
            right, wrong, missed = (int(count) for count in self.sums[label, 1:])
            pq, sq, rq = (shown(value, 2) for value in row)
            counts = (f"{number:,}" for number in (right, wrong, missed))
            rows.append((self.classes[label], pq, sq if right else "-", rq, *counts))
        header = ("class", "PQ (%)", "SQ (%)", "RQ (%)", "matched", "wrong", "missed")
        words = (
            "PQ = SQ x RQ. SQ is the mean IoU of matched segments, those with an IoU above 0.5. RQ is the F1 of "
            "finding segments. A wrong segment matches no true one, a missed one was not found. Crowds do not count."
        )
        return [
            Figure.plot(f"pq_{kind}", f"PQ of each class: {kind}", content, caption),
            Table(kind.capitalize(), header, rows, words),
        ]

    def _gallery(self, model: Model) -> Section:
        gallery = Section("gallery", "Images")
        quality = np.array(self.quality[:KEPT])
        order = [int(i) for i in np.argsort(quality, kind="stable") if not np.isnan(quality[i])]
        groups = [("worst", order[:GALLERY]), ("best", order[GALLERY:][: -GALLERY - 1 : -1])]
        if not groups[1][1]:
            groups = [("image", order)]
        words = (
            "The images by ascending PQ." if len(groups) == 1 else "First the images with the lowest PQ, then the best."
        )
        cap = f" Images after the first {KEPT:,} are not considered." if len(self.quality) > KEPT else ""
        gallery.add(Note(
            f"{words} Left: ground truth, middle: prediction, right: pixels of a wrong class in red. White lines are "
            "borders of segments. The PQ of an image is computed over its segments of all classes. As in the PQ, "
            f"pixels of crowds and those without a class do not count.{cap}"
        ))  # fmt: skip
        for kind, chosen in groups:
            for place, row in enumerate(chosen):
                gallery.add(self._figure(model, kind, place, row))
        return gallery

    def _figure(self, model: Model, kind: str, place: int, row: int) -> Figure:
        """Draw an image with its ground truth, its prediction, and what differs."""
        path, *packed, wrong = self.kept[row]
        image, name = bgr_to_display(model.predictor.reader.image(Path(path))), Path(path).name
        views = [draw(image, self._unpacked(content), self.palette) for content in packed]
        views.append(marked(image, labels_of(wrong).astype(bool)))
        texts = [f"{name}: {what}" for what in ("ground truth", "prediction", "pixels of a wrong class in red")]
        encoded = [
            encode_image(f"{kind}_{place}_{i}", view, text)
            for i, (view, text) in enumerate(zip(views, texts, strict=True))
        ]
        right, false, missed = self.found[row]
        caption = (
            f"PQ {self.quality[row]:.1f} %: {counted(right, 'segment')} matched, {false} wrong, {missed} missed. "
            f"{shown(self.wrong[row], 1)} % of the pixels have a wrong class."
        )
        return Figure(f"{kind.capitalize()} {place + 1}: {name}", encoded, caption, wide=True)

    def _unpacked(self, content: Sequence[bytes]) -> Panoptic:
        labels, segments = (labels_of(part) for part in content)
        height, width = labels.shape
        return Panoptic("", height, width, self.classes, labels, segments)

    def count(self, section: Section, train: Any) -> None:
        """Add the segments of each class, without crowds."""
        counts, count = {}, len(self.classes)
        if train is not None:
            found: Counter[int] = Counter()
            images = 0
            for inner, info in infos(train):
                things = inner.metainfo["thing_classes"]
                for segment in info["segments_info"]:
                    label = segment["category"]
                    if bool(segment["is_thing"]) == (self.classes[label] in things):  # mmdet: a crowd is not a thing
                        found[label] += 1
                images += 1
            counts["training"] = np.array([found[label] for label in range(count)])
            if images == COUNTED:
                section.add(Note(f"The segments of the training data are counted in {images:,} images."))
        counts["validation"] = (self.sums[:, 1] + self.sums[:, 3]).astype(int)
        section.add(class_counts(counts, self.classes, "segments"))
        label = "side of a square with the area of the image (pixels)"
        section.add(size_figure({"validation": np.array(self.sizes)}, "images", label))

    def draw_sample(self, sample: Any) -> tuple[Image.Image, str]:
        """Draw an image with its classes, and the borders of its things."""
        truth = sample["data_samples"]
        labels = np.minimum(np.asarray(truth.gt_sem_seg.sem_seg[0]), len(self.classes)).astype(np.int32)
        segments = labels + 1
        if "masks" in truth.gt_instances:
            for number, mask in enumerate(truth.gt_instances.masks.to_ndarray().astype(bool)):
                segments[mask] = len(self.classes) + 2 + number
        height, width = labels.shape
        found = Panoptic("", height, width, self.classes, labels, segments)
        return draw(tensor_image(sample["inputs"]), found, self.palette), ""


def labelled(classes: Sequence[str], ids: np.ndarray, segments: dict[int, tuple[int, bool]]) -> Panoptic:
    """Convert the ground truth of an image: ids (H, W), and the label of each and whether it is a crowd."""
    values, at = np.unique(ids, return_inverse=True)
    labels = np.array([segments.get(int(key), (len(classes), False))[0] for key in values], np.int32)
    at = at.reshape(ids.shape)
    height, width = ids.shape
    return Panoptic("", height, width, tuple(classes), labels[at], np.where(labels[at] < len(classes), at + 1, 0))


def counted_pixels(ids: np.ndarray, segments: dict[int, tuple[int, bool]]) -> np.ndarray:
    """Which pixels (H, W) have a class, and are not of a crowd; for arguments see :func:`labelled`."""
    return np.isin(ids, [key for key, (_, is_crowd) in segments.items() if not is_crowd])


def _packed(found: Panoptic) -> list[bytes]:
    """Labels and segments as PNG files; segments get consecutive numbers."""
    segments = np.unique(found.segments, return_inverse=True)[1].reshape(found.segments.shape)
    return [png_of(found.labels), png_of(segments)]
