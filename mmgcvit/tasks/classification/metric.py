"""Top-k accuracy for the labels of the data set or of ImageNet-ReaL, results by class, and a table of predictions."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from timm.data import RealLabelsImagenet
from torch import Tensor

from mmgcvit.registry import METRICS
from mmgcvit.utils import atomic_path
from mmgcvit.utils.text import counted

MATRIX = 30  # largest number of classes for which the confusion matrix is logged


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Top-k accuracy in percent; every sample counts once, regardless of the number of processes and the batch size.

    mmengine's sampler pads the share of each process with samples from the beginning; results are collected by sample
    index, so that no sample is counted twice.

    Args:
        topk: values of k. Those that are not below the number of classes are left out, as they would always be 100 %.
        real_labels: 'timm' for the ImageNet-ReaL labels shipped with timm, or a file with them (``real.json``). The
            images must be the 50000 of ILSVRC2012's validation set; those without a ReaL label are excluded.
        out_csv: CSV file for the predictions: image, class, and the ``max(topk)`` most probable classes with their
            probabilities (``mmgcvit test --out``). With ``classwise``, a second file with the suffix
            ``_classes.csv`` has recall, precision and the row of the confusion matrix of each class.
        collect_device: as in mmengine.
        prefix: as in mmengine.
        classwise: whether to log recall and precision of each class, to log the confusion matrix of at most
            :data:`MATRIX` classes, and to add ``mean_class``, the mean recall of the classes that have images: the
            accuracy if each class counted equally.

    Raises:
        ValueError: ``topk`` is empty, or has a value below 1.
    """

    default_prefix = "accuracy"

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        real_labels: str | None = None,
        out_csv: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        classwise: bool = False,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not topk or min(topk) < 1:
            raise ValueError(f"topk={topk}; allowed: integers >= 1")
        self.topk, self.real_labels, self.classwise, self.out_csv = tuple(topk), real_labels, classwise, out_csv
        self.num_classes = 0  # of the predictions
        self.dataset: Any = None  # provides the image names; set by the hook or the tools

    def process(self, data_batch: Mapping[str, Any], data_samples: Sequence[Tensor]) -> None:
        """Store the most probable classes of a batch.

        Args:
            data_batch: the batch of the data loader: ``targets`` (B,) and ``sample_idx`` (B,).
            data_samples: B tensors of probabilities (num_classes,).
        """
        scores = torch.stack(list(data_samples)).float()
        self.num_classes = scores.shape[1]
        values, classes = scores.topk(min(max(self.topk), self.num_classes))  # (B, k)
        self.results += zip(
            data_batch["sample_idx"].tolist(),
            data_batch["targets"].tolist(),
            classes.tolist(),
            values.tolist(),
            strict=True,
        )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the accuracies over all samples, in percent.

        Raises:
            RuntimeError: samples are missing.
        """
        by_index = {result[0]: result for result in results}
        ordered = [by_index[index] for index in sorted(by_index)]
        expected = None if self.dataset is None else len(self.dataset)
        if expected is not None and len(ordered) != expected:
            raise RuntimeError(
                f"{counted(len(ordered), 'sample was', 'samples were')} evaluated; the data set has {expected}"
            )
        if self.out_csv is not None:
            self._write(ordered, self.out_csv)
        if self.real_labels is not None:
            return self._real(ordered)
        found = {
            f"top{k}": 100 * sum(label in classes[:k] for _, label, classes, _ in ordered) / len(ordered)
            for k in informative_topk(self.topk, self.num_classes)
        }
        if self.classwise:
            found["mean_class"] = self._by_class(ordered)
        return found

    def _by_class(self, ordered: list) -> float:
        """Log and write the results of each class; returns the mean recall of the classes with images, in percent."""
        labels, guesses = (
            torch.tensor(column) for column in zip(*((row[1], row[2][0]) for row in ordered), strict=True)
        )
        names = self._class_names()
        count = max(len(names), int(labels.max()) + 1, int(guesses.max()) + 1)
        names += [str(label) for label in range(len(names), count)]
        matrix = torch.bincount(labels * count + guesses, minlength=count**2).view(count, count)  # row: true class
        hits, images, predicted = matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)
        recall, precision = 100 * hits / images, 100 * hits / predicted  # NaN without images or predictions
        header = ["class", "images", "predicted", "recall", "precision"]
        rows = [
            [name, *counts, *("" if math.isnan(share) else f"{share:.1f}" for share in shares)]
            for name, counts, shares in zip(
                names,
                zip(images.tolist(), predicted.tolist(), strict=True),
                zip(recall.tolist(), precision.tolist(), strict=True),
                strict=True,
            )
        ]
        log = format_table(header, rows)
        if count <= MATRIX:
            confusion = [[name, *counts] for name, counts in zip(names, matrix.tolist(), strict=True)]
            log += "\nconfusion matrix (row: class of the image, column: prediction)\n" + format_table(
                ["", *names], confusion
            )
        print_log(f"results by class, in percent\n{log}", logger="current")
        if self.out_csv is not None:
            path = Path(self.out_csv)
            table = [[*row, *counts] for row, counts in zip(rows, matrix.tolist(), strict=True)]
            _write_csv(path.with_name(f"{path.stem}_classes.csv"), [*header, *(f"as {name}" for name in names)], table)
        return recall[images > 0].mean().item()

    def _class_names(self) -> list[str]:
        meta = self.dataset_meta or getattr(self.dataset, "metainfo", None) or {}
        return list(meta.get("classes") or ())

    def _real(self, ordered: list) -> dict[str, float]:
        names = [self._name(index) for index, *_ in ordered]
        file = None if self.real_labels == "timm" else self.real_labels
        try:
            real = RealLabelsImagenet(names, real_json=file, topk=self.topk)
            # timm looks up the labels by image name, and expects scores, of which only the order matters
            for _, _, classes, values in ordered:
                scores = torch.zeros(1, 1 + max(classes))
                scores[0, classes] = torch.tensor(values) + 1
                real.add_result(scores)
        except (AssertionError, KeyError) as error:
            raise ValueError(
                f"real_labels: {counted(len(names), 'image')} such as {names[0]}; allowed: the 50000 of "
                "ILSVRC2012's validation set, ILSVRC2012_val_00000001.JPEG and so on"
            ) from error
        return {f"real_top{k}": value for k, value in real.get_accuracy().items()}

    def _name(self, index: int) -> str:
        return str(index) if self.dataset is None else self.dataset.name(index)

    def _write(self, ordered: list, out_csv: str) -> None:
        names = self._class_names()

        def shown(label: int) -> str | int:
            return names[label] if label < len(names) else label

        columns = [f"{kind}{rank}" for rank in range(1, len(ordered[0][2]) + 1) for kind in ("class_", "probability_")]
        rows = []
        for index, label, classes, values in ordered:
            pairs = (item for c, v in zip(classes, values, strict=True) for item in (shown(c), f"{v:.6f}"))
            rows.append([self._name(index), shown(label), *pairs])
        _write_csv(Path(out_csv), ["image", "class", *columns], rows)


def informative_topk(topk: Sequence[int], classes: int) -> list[int]:
    """Return the values of k below the number of classes, as the others are always 100 %; all if there are none."""
    return [k for k in topk if not 1 < classes <= k] or list(topk)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table in plain text: the first column aligned on the left, the others on the right."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in lines
    )
