"""What a report says about a classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.report import plots
from mmgcvit.report.base import Model, TaskReport, encode_image, enlarged, infos
from mmgcvit.report.numbers import Calibration, ScoreCurves, ratio, shown
from mmgcvit.report.page import Figure, Note, Section, Table
from mmgcvit.report.parts import (
    OPTIMISTIC,
    calibration_figure,
    class_counts,
    confusion_items,
    gallery_groups,
    ranked,
    score_figures,
    size_figure,
)
from mmgcvit.runtime.drawing import Colour
from mmgcvit.utils.images import to_display

MAX_CURVES = 1000  # classes for which curves are computed


class ClassificationReport(TaskReport):
    """Accuracy per class, confusion matrix, curves over the score threshold, calibration, and the worst images."""

    def __init__(self, classes: Sequence[str], palette: Sequence[Colour], network: Any = None) -> None:
        super().__init__(classes, palette, network)
        self.rows: list[np.ndarray] = []
        self.labels: list[int] = []
        self.indices: list[int] = []
        self.dataset: Any = None  # the validation images

    def add(self, data: dict, outputs: Sequence[Any], dataset: Any) -> None:
        """Keep the probabilities of a batch, as 16-bit numbers."""
        scores = torch.stack(list(outputs)).float().cpu().numpy()
        self.rows += list(scores.astype(np.float16))
        self.labels += data["targets"].tolist()
        self.indices += data["sample_idx"].tolist()
        self.dataset = dataset

    def sections(self, model: Model) -> list[Section]:
        """Return the results and the gallery."""
        results, errors = Section("results", "Results per class"), Section("errors", "Errors")
        scores, labels = np.array(self.rows, np.float32), np.array(self.labels)
        known = labels >= 0
        if not known.any():
            results.add(Note("No validation image has a label: there is nothing to compare with."))
            return [results]
        scores, labels, indices = scores[known], labels[known], np.array(self.indices)[known]
        found = scores.argmax(axis=1)
        count = len(self.classes)
        matrix = confusion(labels, found, count)
        self._results(results, matrix, scores, labels)
        errors.add(*confusion_items(matrix, self.classes, self.classes, "images"))
        calibration = Calibration()
        calibration.add(scores.max(axis=1), found == labels)
        errors.add(calibration_figure(calibration, "images whose most probable class is right", "images"))
        right = scores[np.arange(len(labels)), labels]
        gallery = Section("gallery", "Images")
        about = {
            "worst": "Images with the lowest probability of the true class: look for wrong labels.",
            "typical": "Images next to the median of the probability of the true class.",
            "image": "The lowest probability of the true class is the first: look for wrong labels.",
        }
        for kind, title, chosen in gallery_groups(right):
            encoded = []
            for place, row in enumerate(chosen):
                index = int(indices[row])
                true, predicted = self.classes[labels[row]], self.classes[found[row]]
                text = f"true: {true} ({right[row]:.2f})\npredicted: {predicted} ({scores[row].max():.2f})"
                name = model.dataset.name(index)
                encoded.append(encode_image(f"{kind}_{place}", self._read(model, index), name, f"{text}\n{name}"))
            gallery.add(Figure(title, encoded, f"{about[kind]} In brackets: probabilities.", wide=True))
        return [results, errors, gallery]

    def _results(self, section: Section, matrix: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> None:
        images, predicted, hits = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
        recall, precision = 100 * ratio(hits, images), 100 * ratio(hits, predicted)
        curves = []
        for label in range(len(self.classes) if len(self.classes) <= MAX_CURVES else 0):
            curves.append(ScoreCurves.of(scores[:, label], labels == label, float(images[label])))
        best = [curve.best for curve in curves] or [(float("nan"), float("nan"))] * len(self.classes)
        order, words = ranked(recall)
        content = plots.bars(
            [self.classes[i] for i in order], {"accuracy": recall[order]}, "images that are classified correctly (%)",
            [self.palette[i] for i in order], 1, 100.0,
        )  # fmt: skip
        caption = f"Share of the images of a class that get this class (recall){words}. 'none': there are no images."
        section.add(Figure.plot("accuracy", "Accuracy of each class", content, caption))
        section.add(*score_figures(curves, self.classes, self.palette, "probability of the class"))
        rows = [
            (name, int(images[i]), int(predicted[i]), shown(recall[i], 1), shown(precision[i], 1), shown(best[i][1]),
             shown(best[i][0], 2))
            for i, name in enumerate(self.classes)
        ]  # fmt: skip
        section.add(
            Table(
                "Classes",
                ("class", "images", "predicted", "accuracy (%)", "precision (%)", "best F1", "best threshold"),
                rows,
                "Accuracy (recall) and precision are those of the most probable class. The best threshold is the "
                "probability from which on the class has its highest F1 if it is accepted on its own. Thresholds are "
                f"{OPTIMISTIC}.",
            )
        )

    def _read(self, model: Model, index: int) -> Image.Image:
        file, _ = model.dataset.open(index)
        with file:
            decoded = model.predictor.reader.loader.decode(file)
        return enlarged(to_display(np.asarray(decoded)))

    def count(self, section: Section, train: Any) -> None:
        """Add the images of each class."""
        counts = {}
        sizes: dict[str, np.ndarray] = {}
        if train is not None:
            inside = list(inner_datasets(train))
            counts["training"] = _counts([y for inner in inside for y in inner.labels], len(self.classes))
            sizes["training"] = _image_sizes(inside[0])
        counts["validation"] = _counts(self.labels, len(self.classes))
        if self.dataset is not None:
            sizes["validation"] = _image_sizes(next(iter(inner_datasets(self.dataset))))
        section.add(class_counts(counts, self.classes, "images"))
        section.add(size_figure(sizes, "images", "side of a square with the area of the image (pixels)"))

    def draw_sample(self, sample: Any) -> tuple[Image.Image, str]:
        """Return an image and its class."""
        pixels = sample["inputs"]
        array = pixels.numpy() if isinstance(pixels, torch.Tensor) else np.asarray(pixels)
        return enlarged(to_display(array.transpose(1, 2, 0))), self.classes[int(sample["targets"])]


def confusion(labels: np.ndarray, found: np.ndarray, count: int) -> np.ndarray:
    """Confusion matrix (count, count) of integers: rows are true classes."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, found, labels=np.arange(count))


def _counts(labels: Sequence[int], count: int) -> np.ndarray:
    found = Counter(labels)
    return np.array([found[label] for label in range(count)])


def _image_sizes(dataset: Any) -> np.ndarray:
    sizes = []
    for inner, info in infos(dataset, 300):
        file, _ = inner.open(info["sample_idx"])
        try:
            with file, Image.open(file) as image:
                sizes.append((image.width * image.height) ** 0.5)
        except Exception:  # Pillow's decoders raise many types of errors; ``mmgcvit check-data`` reports them
            continue
    return np.array(sizes)
