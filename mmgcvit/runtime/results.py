"""Files with the predictions of a detector, segmentor or classifier, also those of ``mmgcvit predict``."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.errors import UsageError
from mmgcvit.runtime.predictions import Classification, Detections, Panoptic, Segmentation
from mmgcvit.utils import atomic_path, write_json
from mmgcvit.utils.inputs import Input

TOP = 5  # number of classes per image in the results of a classifier


class Results(ABC):
    """Predictions so far, and the files that they are written to.

    Args:
        classes: class names.
        folder: folder for the files.

    Attributes:
        objects: number of objects so far, of a detector.
    """

    def __init__(self, classes: Sequence[str], folder: Path) -> None:
        self.classes, self.folder = classes, folder
        self.items: list[dict] = []
        self.objects = 0

    @abstractmethod
    def add(self, prediction: Any) -> None:
        """Add the prediction on one image."""

    @abstractmethod
    def write(self) -> Path:
        """Write the predictions so far; returns the file."""


class DetectionResults(Results):
    """``predictions.json``, results in COCO format, and ``images.json``, the images and categories with their ids."""

    def __init__(self, classes: Sequence[str], folder: Path) -> None:
        super().__init__(classes, folder)
        self.images: list[dict] = []

    def add(self, prediction: Detections) -> None:
        """Add the objects of an image, with ids from 1."""
        height, width = prediction.height, prediction.width
        image = dict(id=len(self.images) + 1, file_name=prediction.name, width=width, height=height)
        self.images.append(image)
        for i, box in enumerate(prediction.boxes.tolist()):
            label, score = int(prediction.labels[i]), float(prediction.scores[i])
            result = coco_result(image["id"], label + 1, box, score)
            if prediction.regions is not None:
                result["segmentation"] = prediction.regions[i].run_lengths(height, width)
            self.items.append(result)
        self.objects += len(prediction)

    def write(self) -> Path:
        """Write both files."""
        categories = numbered_categories(self.classes)
        return write_coco(self.folder, self.items, self.images, categories)


class SegmentationResults(Results):
    """``labels``, a label map of each image, and ``areas.json``, the pixels and the share of each class."""

    def add(self, prediction: Segmentation) -> None:
        """Write the label map of an image."""
        name = label_map_name(prediction.name)
        labels = prediction.labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)
        write_drawing(self.folder / name, Image.fromarray(labels))
        self.items.append(areas_of(prediction.name, name, labels, self.classes))

    def write(self) -> Path:
        """Write the areas."""
        return write_areas(self.folder, self.items, self.classes)


class ClassificationResults(Results):
    """``classes.json``, the most probable classes of each image, and the same as ``classes.csv``."""

    def add(self, prediction: Classification) -> None:
        """Add the most probable classes of an image."""
        self.items.append(class_result(prediction.name, prediction.top(TOP)))

    def write(self) -> Path:
        """Write both files."""
        return write_classes(self.folder, self.items)


class PanopticResults(Results):
    """``predictions.json`` in COCO's panoptic format, and ``panoptic``, the PNGs with the ids of the segments.

    Args:
        classes: class names.
        folder: folder for the files.
        palette: RGB colour of each class.
        things: number of classes that are things; they are the first ones.
    """

    def __init__(
        self, classes: Sequence[str], folder: Path, palette: Sequence[tuple[int, int, int]], things: int
    ) -> None:
        super().__init__(classes, folder)
        self.palette, self.things = palette, things
        self.images: list[dict] = []

    def add(self, prediction: Panoptic) -> None:
        """Write the PNG of an image, and add its segments, with ids from 1."""
        name = label_map_name(prediction.name).replace("labels", "panoptic", 1)
        ids = range(1, len(self.classes) + 1)
        png, segments = coded_segments(prediction, self.palette, ids)
        write_drawing(self.folder / name, Image.fromarray(png))
        image = dict(id=len(self.images) + 1, file_name=prediction.name)
        self.images.append(dict(image, width=prediction.width, height=prediction.height))
        name = name.removeprefix("panoptic/")
        self.items.append(dict(image_id=image["id"], file_name=name, segments_info=segments))
        self.objects += len(segments)

    def write(self) -> Path:
        """Write the segments of all images."""
        categories = [dict(c, isthing=int(i < self.things)) for i, c in enumerate(numbered_categories(self.classes))]
        content = dict(images=self.images, annotations=self.items, categories=categories)
        write_json(self.folder / "predictions.json", content)
        return self.folder / "predictions.json"


#: Results of exported models, by task.
RESULTS: Mapping[str, type[Results]] = {
    "detection": DetectionResults,
    "segmentation": SegmentationResults,
    "classification": ClassificationResults,
}


def coco_result(image_id: Any, category_id: Any, box: Sequence[float], score: float) -> dict[str, Any]:
    """Return an object in COCO's format; ``box`` is x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    return dict(
        image_id=image_id,
        category_id=category_id,
        bbox=[round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
        score=round(score, 5),
    )


def numbered_categories(classes: Sequence[str]) -> list[dict]:
    """Return COCO categories with the labels plus 1 as ids."""
    return [dict(id=i + 1, name=name) for i, name in enumerate(classes)]


def write_coco(folder: Path, results: list[dict], images: list[dict], categories: list[dict]) -> Path:
    """Write the results of a detector, and the images and categories with their ids."""
    write_json(folder / "images.json", dict(images=images, annotations=[], categories=categories))
    write_json(folder / "predictions.json", results)
    return folder / "predictions.json"


def coded_segments(
    found: Panoptic, palette: Sequence[tuple[int, int, int]], category_ids: Sequence[Any]
) -> tuple[np.ndarray, list[dict]]:
    """Return the segments of an image in COCO's panoptic format.

    Args:
        found: the segments.
        palette: RGB colour of each class.
        category_ids: id of the category of each class.

    Returns:
        The PNG (H, W, 3), RGB, in which the colours are ids close to those of the classes; and its segments.
    """
    png, segments = np.zeros((found.height, found.width, 3), np.uint8), []
    used: set[int] = {0}
    for number in np.unique(found.segments[found.segments > 0]).tolist():
        own = found.segments == number
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        label = int(found.labels[own][0])
        red, green, blue = palette[label]
        key = red + 256 * green + 65536 * blue
        while key in used:
            key = (key + 5 * (1 + 256 + 65536)) % 256**3
        used.add(key)
        png[own] = key % 256, key // 256 % 256, key // 65536
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        segments.append(dict(id=key, category_id=category_ids[label], area=int(own.sum()), bbox=box, iscrowd=0))
    return png, segments


def label_map_name(name: str, frame: int | None = None) -> str:
    """Relative path of the label map of an image, or of a frame of a video."""
    target = PurePosixPath("labels", name).with_suffix("")
    return f"{target}.png" if frame is None else f"{target}/{frame:06d}.png"


def check_label_map_names(inputs: Sequence[Input]) -> None:
    """Check that each image, and each frame of a video, gets a label map file of its own.

    Raises:
        UsageError: two file names differ only in the suffix, or a video and a folder have the same name.
    """
    first: dict[str, Input] = {}
    for entry in inputs:
        target = label_map_name(entry.name, 0 if entry.is_video else None)
        if target in first:
            raise UsageError(
                f"inputs: the label maps of {str(entry.path)!r} and {str(first[target].path)!r} would be written "
                f"to the same file, {target.removeprefix('labels/')}; pass them in two calls with different "
                "--out-dir"
            )
        first[target] = entry


def areas_of(name: str, label_map: str, labels: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return the pixels and the share of each class in a label map (H, W)."""
    height, width = labels.shape
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    areas = {
        label: dict(pixels=int(count), share=round(count / labels.size, 5))
        for label, count in zip(classes, counts, strict=True)
        if count
    }
    return dict(file_name=name, width=width, height=height, label_map=label_map, areas=areas)


def write_areas(folder: Path, results: list[dict], classes: Sequence[str]) -> Path:
    """Write the class of each label value, and the areas."""
    write_json(folder / "areas.json", dict(values=dict(enumerate(classes)), images=results))
    return folder / "areas.json"


def class_result(name: str, found: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Return the most probable classes of an image."""
    return dict(file_name=name, classes=[dict(name=label, probability=round(value, 6)) for label, value in found])


def write_classes(folder: Path, results: list[dict]) -> Path:
    """Write the classes of all images, as JSON and as a table."""
    count = max((len(result["classes"]) for result in results), default=0)
    ranks = [f"{kind}{rank}" for rank in range(1, count + 1) for kind in ("class_", "probability_")]
    with atomic_path(folder / "classes.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "frame", *ranks])
        for result in results:
            pairs = [value for c in result["classes"] for value in (c["name"], c["probability"])]
            writer.writerow([result["file_name"], result.get("frame", ""), *pairs])
    write_json(folder / "classes.json", dict(images=results))
    return folder / "classes.json"


def write_drawing(path: Path, image: Image.Image) -> None:
    """Write an image in the format of its suffix, atomically.

    Raises:
        UsageError: the file cannot be written.
    """
    content = io.BytesIO()
    options: dict[str, Any] = dict(quality=95) if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    try:
        image.save(content, Image.registered_extensions()[path.suffix.lower()], **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content.getvalue())
    except (OSError, KeyError) as error:
        raise UsageError(f"{str(path)!r}: cannot be written: {error}") from error
