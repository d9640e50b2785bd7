"""Comparison of an exported file with the model that it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmgcvit.errors import ExportError
from mmgcvit.export.exporter import Exportable
from mmgcvit.export.program import ProgramSession
from mmgcvit.export.reference import predict
from mmgcvit.runtime.masks import paste
from mmgcvit.runtime.metadata import ModelInfo
from mmgcvit.runtime.session import Session, open_session
from mmgcvit.utils.text import counted

Outputs = dict[str, np.ndarray]  # by name, with the batch as the first dimension


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed differences between a file and its model.

    Attributes:
        box: pixels.
        score: of scores and probabilities.
        mask: 1 - IoU of a mask.
        labels: share of the pixels of a label map.
        unmatched: share of the detections without a counterpart.
        min_score: detections with a lower score are not compared. If it is above 0, a counterpart that differs by more
            than is allowed is none.
    """

    box: float = 0.01
    score: float = 1e-4
    mask: float = 0.01
    labels: float = 1e-4
    unmatched: float = 0.01
    min_score: float = 0.0

    def text(self, name: str) -> str:
        """The limit of a field as in the table of :meth:`Differences.rows`; '' for ''."""
        if not name:
            return ""
        value = getattr(self, name)
        if name in ("unmatched", "labels"):
            return f"{100 * value:g} %"
        return f"{1 - value:g}" if name == "mask" else f"{value:g} pixels" if name == "box" else f"{value:g}"


#: For float16. Of nearly equal proposals another one may remain after NMS, so single detections may change.
HALF = Tolerance(box=1.0, score=0.05, mask=0.1, labels=0.01, unmatched=0.05, min_score=0.3)
#: For 8 bits. Differences are stated; only files that predict nothing right, or NaN, are refused.
QUANTIZED = Tolerance(box=1e6, score=1.0, mask=1.0, labels=0.9, unmatched=0.95)
#: Largest loss of a metric on the validation data, as a share of its value.
METRIC_LOSS = 0.02


@dataclass
class Differences:
    """Differences of all images so far: the largest, or for ``labels`` the share of pixels.

    Attributes:
        images: number of images.
        allowed: the largest allowed differences.
        detections: number of detections of the model, with ``unmatched`` without a counterpart in either direction.
    """

    images: int = 0
    allowed: Tolerance = Tolerance()
    detections: int = 0
    unmatched: int = 0
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0
    pixels: int = 0
    wrong_pixels: int = 0
    top1: int = 0  # images with the same most probable class
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def labels(self) -> float:
        """Share of the pixels with another label."""
        return self.wrong_pixels / max(self.pixels, 1)

    def rows(self, task: str, masks: bool) -> list[tuple[str, str, str]]:
        """Return names, values and names of the fields of :class:`Tolerance`, for a table."""
        if task == "classification":
            return [
                ("largest difference of a probability", f"{self.score:.2g}", "score"),
                ("same most probable class", f"{self.top1} of {counted(self.images, 'image')}", ""),
            ]
        if task == "segmentation":
            return [("pixels with another label", f"{100 * self.labels:.4f} %", "labels")]
        share = 100 * self.unmatched / max(self.detections, 1)
        return [
            ("detections without a counterpart", f"{self.unmatched} of {self.detections} ({share:.2f} %)", "unmatched"),
            ("largest difference of a box", f"{self.box:.2g} pixels", "box"),
            ("largest difference of a score", f"{self.score:.2g}", "score"),
            *([("smallest IoU of masks", f"{1 - self.mask:.4f}", "mask")] if masks else []),
        ]

    def exceeded(self, allowed: Tolerance) -> list[str]:
        """Return the differences that are larger than allowed, in words."""
        share = self.unmatched / max(self.detections, 1)
        found = {"box": self.box, "score": self.score, "mask": self.mask, "labels": self.labels, "unmatched": share}
        return [f"{name} {value:.3g} (allowed: {getattr(allowed, name):g})" for name, value in found.items()
                if not value <= getattr(allowed, name)]  # fmt: skip


def open_file(file: Path) -> Session:
    """Open an exported file as a function of images (B, C, H, W)."""
    return ProgramSession(file) if file.suffix == ".pt2" else open_session(file)


def compare(
    model: Exportable,
    run: Callable[[np.ndarray], Outputs],
    batches: Iterable[np.ndarray],
    allowed: Tolerance = Tolerance(),
) -> Differences:
    """Compare the predictions of a file with those of OpenMMLab's own code for the model.

    Args:
        model: the model.
        run: the file, see :func:`open_file`.
        batches: images (B, C, H, W) as the file takes them.
        allowed: the largest allowed differences.
    """
    total = Differences(allowed=allowed)
    for images in batches:
        expected, found = predict(model, images), run(images)
        total.images += len(images)
        total.sizes.append((images.shape[2], images.shape[3]))
        for index, reference in enumerate(expected):
            ours = {name: values[index] for name, values in found.items()}
            _COMPARE[model.task](reference, ours, model.info, total)
    return total


def _classes(reference: Outputs, found: Outputs, info: ModelInfo, total: Differences) -> None:
    a, b = reference["probabilities"], found["probabilities"]
    total.score = max(total.score, _largest(a - b))
    total.top1 += int(a.argmax() == b.argmax())


def _label_maps(reference: Outputs, found: Outputs, info: ModelInfo, total: Differences) -> None:
    a, b = reference["labels"], found["labels"]
    total.pixels += a.size
    total.wrong_pixels += int((a != b).sum()) if a.shape == b.shape else a.size


def _detections(reference: Outputs, found: Outputs, info: ModelInfo, total: Differences) -> None:
    there = found["labels"] >= 0
    ours = {name: values[there] for name, values in found.items()}
    smallest = total.allowed.min_score
    pairs = match(reference, ours)
    counted = [int((found["scores"] >= smallest).sum()) for found in (reference, ours)]
    total.detections += counted[0]
    total.unmatched += sum(counted)
    for i, j in pairs:
        box = _largest(reference["boxes"][i] - ours["boxes"][j])
        score = _largest(reference["scores"][i] - ours["scores"][j])
        mask = 1 - _mask_iou(reference["masks"][i], ours, j, info) if info.masks else 0.0
        near = box <= total.allowed.box and score <= total.allowed.score and mask <= total.allowed.mask
        if smallest > 0 and (reference["scores"][i] < smallest or not near):
            total.unmatched -= int(near and ours["scores"][j] >= smallest)
            continue
        if info.masks == "image" and box > total.allowed.box:
            continue  # a box around a mask, which a single pixel can change: it counts as without a counterpart
        total.unmatched -= 1 + int(ours["scores"][j] >= smallest)
        total.box, total.score, total.mask = max(total.box, box), max(total.score, score), max(total.mask, mask)


def _mask_iou(reference: np.ndarray, found: Outputs, index: int, info: ModelInfo) -> float:
    """Intersection over union of a mask (H, W) of the model and one of the file; 1 for masks of a few pixels."""
    height, width = reference.shape
    if info.masks == "box":
        mask = paste(found["masks"][index], found["boxes"][index], height, width, info.mask_threshold).full(
            height, width
        )
    else:
        mask = found["masks"][index] >= info.mask_threshold
    union = int((reference | mask).sum())
    return float((reference & mask).sum() / union) if union > 16 else 1.0


_COMPARE = {"classification": _classes, "segmentation": _label_maps, "detection": _detections}


def match(a: Outputs, b: Outputs) -> list[tuple[int, int]]:
    """Pair detections of the same class, best overlap first; pairs overlap by half at least.

    Args:
        a, b: ``boxes`` (N, 4) and ``labels`` (N,).
    """
    if not len(a["labels"]) or not len(b["labels"]):
        return []
    overlaps = iou(a["boxes"], b["boxes"])
    # Of equal overlaps, the pair with the closer scores comes first.
    closeness = overlaps.astype(np.float64) - 1e-3 * np.abs(a["scores"][:, None] - b["scores"][None])
    allowed = (overlaps >= 0.5) & (a["labels"][:, None] == b["labels"][None])
    pairs: list[tuple[int, int]] = []
    free_a, free_b = np.ones(len(a["labels"]), bool), np.ones(len(b["labels"]), bool)
    rows, columns = np.nonzero(allowed)
    for place in np.argsort(-closeness[rows, columns], kind="stable"):
        i, j = int(rows[place]), int(columns[place])
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
            pairs.append((i, j))
    return pairs


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) and (M, 4), (N, M); equal boxes without an area count as 1."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - both
    same = np.abs(a[:, None] - b[None]).max(-1) < 0.1
    return np.where(union > 0, both / np.maximum(union, 1e-9), same)


def _largest(difference: np.ndarray) -> float:
    """Largest absolute value; infinite if there is a NaN."""
    value = float(np.abs(difference).max(initial=0))
    return value if value == value else float("inf")


def require_equal(found: Differences, allowed: Tolerance, file: str) -> None:
    """Raise an ExportError if a difference is larger than allowed."""
    if problems := found.exceeded(allowed):
        raise ExportError(f"{file}: differs from the model: {'; '.join(problems)}. The file was not kept")


def require_metrics(model: dict[str, float], file: dict[str, float], name: str) -> None:
    """Raise an ExportError if a metric of the file is lower than that of the model by more than :data:`METRIC_LOSS`."""
    lost = [key for key, value in model.items() if not file[key] >= value - METRIC_LOSS * abs(value) - 1e-3]
    if lost:
        words = "; ".join(f"{key} {file[key]:.4f} (model: {model[key]:.4f})" for key in lost)
        raise ExportError(f"{name}: loses on the validation data: {words}. The file was not kept")
