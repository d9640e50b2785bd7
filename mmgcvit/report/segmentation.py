"""What a report says about a segmentor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.registry import type_name
from mmgcvit.report import plots
from mmgcvit.report.base import Model, TaskReport, encode_image, enlarged, infos
from mmgcvit.report.numbers import Calibration, ratio, shown
from mmgcvit.report.page import Figure, Note, Section, Table
from mmgcvit.report.parts import (
    calibration_figure,
    class_counts,
    confusion_items,
    gallery_groups,
    gallery_order,
    ranked,
    size_figure,
)
from mmgcvit.runtime.drawing import Colour, draw
from mmgcvit.runtime.predictions import Segmentation
from mmgcvit.utils.images import bgr_to_display, to_display

MAPS = 200  # label maps of the training data that are counted
KEPT = 2000  # validation images whose predictions are kept for the gallery
STEP = 4  # every how many pixels, in both directions, calibration is computed
BORDER = 2  # pixels on each side of the border between two classes that count as border
UNLABELLED = "not labelled"


class SegmentationReport(TaskReport):
    """IoU per class, confusion matrix of pixels, where errors are, calibration, and the worst images."""

    def __init__(self, classes: Sequence[str], palette: Sequence[Colour], network: Any = None) -> None:
        super().__init__(classes, palette, network)
        count = len(classes)
        # A softmax of the outputs of mmseg's own heads is a probability; models of masks (Mask2Former) add up scores.
        self.has_probabilities = hasattr(getattr(network, "decode_head", None), "cls_seg")
        self.matrix = np.zeros((count, count), np.int64)
        self.calibration = Calibration()
        self.quality: list[float] = []
        self.kept: list[tuple[str, bytes, bytes]] = []  # path of the image; truth and prediction as PNG files
        self.near = np.zeros(2, np.int64)  # wrong pixels and pixels at borders
        self.sizes: list[float] = []
        self.seen = 0

    def add(self, data: dict, outputs: Sequence[Any], dataset: Any) -> None:
        """Count the pixels of a batch."""
        for sample in outputs:
            path = sample.metainfo.get("img_path") or dataset.get_data_info(self.seen)["img_path"]
            self.seen += 1
            if "gt_sem_seg" not in sample:
                continue
            truth = sample.gt_sem_seg.data[0].cpu().numpy()
            found = sample.pred_sem_seg.data[0].cpu().numpy()
            self._compare(path, truth, found)
            logits = sample.get("seg_logits")
            if logits is not None and self.has_probabilities and logits.data.shape[0] == len(self.classes):
                # mmseg returns logits in the size of the image
                confidence = logits.data[:, ::STEP, ::STEP].float().softmax(0).amax(0).cpu().numpy()
                part, right = truth[::STEP, ::STEP], found[::STEP, ::STEP]
                known = part < len(self.classes)
                self.calibration.add(confidence[known], (right == part)[known])

    def _compare(self, path: str, truth: np.ndarray, found: np.ndarray) -> None:
        count = len(self.classes)
        known = truth < count
        matrix = np.bincount(truth[known].astype(np.int64) * count + found[known], minlength=count**2)
        matrix = matrix.reshape(count, count)
        self.matrix += matrix
        self.sizes.append(truth.size**0.5)
        wrong, border = known & (found != truth), borders(truth) & known
        self.near += (wrong & border).sum(), border.sum()
        self.quality.append(float(np.nanmean(iou(matrix))) if matrix.any() else float("nan"))
        if len(self.kept) < KEPT:
            self.kept.append((path, png_of(np.minimum(truth, count)), png_of(found)))

    def sections(self, model: Model) -> list[Section]:
        """Return the results and the gallery."""
        results, errors = Section("results", "Results per class"), Section("errors", "Errors")
        if not self.matrix.any():
            results.add(Note("No pixel of the validation data is labelled: there is nothing to compare with."))
            return [results]
        ious = 100 * iou(self.matrix)
        order, words = ranked(ious)
        content = plots.bars(
            [self.classes[i] for i in order],
            {"IoU": ious[order]},
            "IoU (%)",
            [self.palette[i] for i in order],
            1,
            100.0,
        )
        caption = (
            f"Intersection over union: right pixels, of all that are or were predicted as the class{words}. "
            f"'none': the class occurs neither in label maps nor in predictions. Mean: {np.nanmean(ious):.2f} %."
        )
        results.add(Figure.plot("iou", "IoU of each class", content, caption))
        results.add(self._table(ious))
        errors.add(*confusion_items(self.matrix.astype(float), self.classes, self.classes, "pixels"))
        errors.add(self._places())
        if self.calibration.count.any():
            unit = f"pixels (every {STEP}th in both directions)"
            errors.add(calibration_figure(self.calibration, "pixels with the right class", unit))
        else:
            errors.add(Note("Calibration is not computed: the model's outputs are no probabilities of classes."))
        return [results, errors, self._gallery(model)]

    def _table(self, ious: np.ndarray) -> Table:
        hits, true, found = self.matrix.diagonal(), self.matrix.sum(axis=1), self.matrix.sum(axis=0)
        recall, precision = 100 * ratio(hits, true), 100 * ratio(hits, found)
        f1 = 100 * ratio(2 * hits, true + found)
        rows = [
            (name, f"{100 * true[i] / true.sum():.2f}", *(shown(row[i], 2) for row in (ious, recall, precision, f1)))
            for i, name in enumerate(self.classes)
        ]
        header = ("class", "share of pixels (%)", "IoU (%)", "accuracy (%)", "precision (%)", "F1 (%)")
        return Table(
            "Classes", header, rows,
            "Accuracy is the share of the pixels of a class that get it (recall). There is no score threshold: each "
            "pixel gets its most probable class.",
        )  # fmt: skip

    def _places(self) -> Table:
        total = int(self.matrix.sum())
        wrong = total - int(self.matrix.diagonal().sum())
        at, border = (int(value) for value in self.near)
        rows = []
        for name, errors, pixels in (("at borders", at, border), ("elsewhere", wrong - at, total - border)):
            rows.append((name, f"{100 * pixels / total:.1f}", f"{100 * ratio(errors, pixels):.2f}",
                         f"{100 * errors / wrong:.1f}" if wrong else "-"))  # fmt: skip
        return Table(
            "Where errors are", ("place", "pixels (%)", "wrong (%)", "errors (%)"), rows,
            f"Shares of all pixels, of the pixels there, and of all errors. Borders are pixels at most {BORDER} pixels "
            "from another class. Errors there are inaccurate outlines, errors "
            "elsewhere are regions that were confused or missed.",
        )  # fmt: skip

    def _gallery(self, model: Model) -> Section:
        gallery = Section("gallery", "Images")
        cap = f" Images after the first {KEPT:,} are not considered." if len(self.quality) > KEPT else ""
        groups = gallery_groups(self.quality[:KEPT])
        order = gallery_order(groups, "mean IoU")
        gallery.add(Note(f"{order} Left: ground truth, middle: prediction, right: wrong pixels in red.{cap}"))
        for kind, _, chosen in groups:
            for place, row in enumerate(chosen):
                path, truth, found = self.kept[row]
                image = bgr_to_display(model.predictor.reader.image(Path(path)))
                name = Path(path).name
                maps = labels_of(truth), labels_of(found)
                known = maps[0] < len(self.classes)
                wrong = known & (maps[0] != maps[1])
                views = [self._drawn(image, labels) for labels in maps] + [marked(image, wrong)]
                texts = [f"{name}: {what}" for what in ("ground truth", "prediction", "wrong pixels in red")]
                encoded = [
                    encode_image(f"{kind}_{place}_{i}", view, text)
                    for i, (view, text) in enumerate(zip(views, texts, strict=True))
                ]
                share = float(100 * ratio(wrong.sum(), known.sum()))
                caption = f"Mean IoU {100 * self.quality[row]:.1f} %, {share:.1f} % of the labelled pixels are wrong."
                gallery.add(Figure(f"{kind.capitalize()} {place + 1}: {name}", encoded, caption, wide=True))
        return gallery

    def _drawn(self, image: np.ndarray, labels: np.ndarray) -> Image.Image:
        names, palette = (*self.classes, UNLABELLED), (*self.palette, (0, 0, 0))
        return draw(image, Segmentation("", labels.shape[0], labels.shape[1], names, labels), palette)

    def count(self, section: Section, train: Any) -> None:
        """Add the pixels of each class."""
        counts, count = {}, len(self.classes)
        if train is not None:
            pixels, images = np.zeros(count), 0
            for inner, info in infos(train, MAPS):
                load = next(step for step in inner.pipeline.transforms if type_name(type(step)) == "LoadAnnotations")
                labels = load(dict(info))["gt_seg_map"]
                pixels += np.bincount(labels[labels < count].ravel(), minlength=count)
                images += 1
            counts["training"] = 100 * pixels / max(pixels.sum(), 1)
            total = sum(len(inner) for inner in inner_datasets(train))
            if images < total:
                section.add(
                    Note(f"The classes of the training data are counted in {images:,} of {total:,} label maps.")
                )
        found = self.matrix.sum(axis=1)
        counts["validation"] = 100 * found / max(found.sum(), 1)
        section.add(class_counts(counts, self.classes, "labelled pixels", percent=True))
        label = "side of a square with the area of the image (pixels)"
        section.add(size_figure({"validation": np.array(self.sizes)}, "images", label))

    def draw_sample(self, sample: Any) -> tuple[Image.Image, str]:
        """Draw an image and its label map."""
        labels = sample["data_samples"].gt_sem_seg.data[0].numpy()
        return self._drawn(tensor_image(sample["inputs"]), np.minimum(labels, len(self.classes))), ""


def iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union of each class; NaN for a class that neither occurs nor was predicted."""
    hits = matrix.diagonal()
    return ratio(hits, matrix.sum(axis=0) + matrix.sum(axis=1) - hits)


def borders(labels: np.ndarray) -> np.ndarray:
    """Pixels (H, W), bool, at most :data:`BORDER` pixels from another label."""
    kernel = np.ones((2 * BORDER + 1, 2 * BORDER + 1), np.uint8)
    values = labels.astype(np.float32)
    return cv2.dilate(values, kernel) != cv2.erode(values, kernel)


def tensor_image(inputs: torch.Tensor) -> np.ndarray:
    """Image (H, W, 3) to draw on from the output of a pipeline of mmdet or mmseg (C, H, W), BGR."""
    image = inputs.numpy().transpose(1, 2, 0)
    return to_display(image[..., 2::-1] if image.shape[2] >= 3 else image)


def marked(image: np.ndarray, wrong: np.ndarray) -> Image.Image:
    """Return an image (H, W, 3) in grey with wrong pixels (H, W) in red."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    grey[wrong] = 0.25 * grey[wrong] + 0.75 * np.array((230, 0, 0))
    return enlarged(grey.astype(np.uint8))


def png_of(labels: np.ndarray) -> bytes:
    """Encode labels (H, W) below 65536 as a PNG."""
    return cv2.imencode(".png", labels.astype(np.uint16))[1].tobytes()


def labels_of(content: bytes) -> np.ndarray:
    """Decode the labels of :func:`png_of`."""
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), np.int64)
