"""What a report says about a detector or an instance segmentor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.errors import UsageError
from mmgcvit.report import plots
from mmgcvit.report.base import COUNTED, Model, TaskReport, encode_image, infos
from mmgcvit.report.matching import ERRORS, NEAR, RIGHT, Found, Objects, compare, evaluate_objects
from mmgcvit.report.numbers import Calibration, shown
from mmgcvit.report.page import Figure, Note, Section, Table
from mmgcvit.report.parts import (
    FEW,
    OPTIMISTIC,
    calibration_figure,
    class_counts,
    confusion_items,
    gallery_groups,
    gallery_order,
    ranked,
    score_figures,
    size_figure,
)
from mmgcvit.report.segmentation import tensor_image
from mmgcvit.runtime.drawing import Colour, draw
from mmgcvit.runtime.masks import Region
from mmgcvit.runtime.predictions import Detections
from mmgcvit.utils import summarize
from mmgcvit.utils.images import bgr_to_display
from mmgcvit.utils.text import counted

BACKGROUND = "background"
LOWEST = 0.05  # predictions with a lower score do not count for calibration
MEANING = {
    "class": f"IoU of at least {RIGHT} with an object of another class",
    "localisation": f"IoU from {NEAR} to {RIGHT} with an object of its class",
    "class and localisation": f"IoU from {NEAR} to {RIGHT} with an object of another class only",
    "duplicate": f"IoU of at least {RIGHT} with an object of its class that another prediction has found",
    "background": f"IoU below {NEAR} with every object",
    "missed": "an object that was not found, not even with a wrong class or an inaccurate box",
}


class DetectionReport(TaskReport):
    """AP per class, curves, confusion matrix and kinds of errors at the best threshold, calibration, worst images."""

    def __init__(self, classes: Sequence[str], palette: Sequence[Colour], network: Any = None) -> None:
        super().__init__(classes, palette, network)
        self.truth: list[Objects] = []
        self.found: list[Objects] = []
        self.paths: list[str] = []
        self.places: dict[Any, int] | None = None  # index in the data set by path and by id

    def add(self, data: dict, outputs: Sequence[Any], dataset: Any) -> None:
        """Keep the predictions of a batch, with masks as run lengths, and what the annotations say of its images."""
        for sample in outputs:
            if "pred_instances" not in sample:
                raise UsageError("the model predicts no instances (panoptic segmentation)")
            info = dataset.get_data_info(self._index(sample, dataset))
            height, width = sample.ori_shape[:2]
            self.truth.append(true_objects(info, height, width))
            self.found.append(_predicted(sample.pred_instances.cpu(), height, width))
            self.paths.append(info["img_path"])

    def _index(self, sample: Any, dataset: Any) -> int:
        if self.places is None:
            self.places = {}
            for index in range(len(dataset)):
                info = dataset.get_data_info(index)
                self.places |= {info.get("img_id", index): index, info["img_path"]: index}
        meta = sample.metainfo  # ids of several data sets may be equal
        return self.places[meta["img_path"] if meta.get("img_path") in self.places else meta["img_id"]]

    def sections(self, model: Model) -> list[Section]:
        """Return the results and the gallery."""
        results, errors = Section("results", "Results per class"), Section("errors", "Errors")
        count = len(self.classes)
        if not sum(int((~objects.ignored).sum()) for objects in self.truth):
            results.add(Note("The validation data has no objects: there is nothing to compare with."))
            return [results]
        if not any(map(len, self.found)):
            results.add(Note("The model has found nothing on the validation data."))
        boxes = evaluate_objects(self.truth, self.found, count)
        with_masks = all(objects.masks is not None for objects in (*self.truth, *self.found))
        masks = evaluate_objects(self.truth, self.found, count, "segm") if with_masks else None
        self._results(results, boxes, masks)
        threshold = reduce(add, boxes.curves).best[0]
        if np.isnan(threshold):
            threshold = 0.5
        pairs = [compare(truth, found, count, threshold) for truth, found in zip(self.truth, self.found, strict=True)]
        matrix = np.zeros((count + 1, count + 1), np.int64)
        for true, predicted in (pair for image in pairs for pair in image.pairs):
            matrix[true, predicted] += 1
        names = (*self.classes, BACKGROUND)
        errors.add(
            Note(
                f"Counted at the best score threshold for all classes together, {threshold:.2f} ({OPTIMISTIC}), and an "
                f"IoU of {RIGHT}. Row '{BACKGROUND}': predictions without an object; column: objects that were missed."
            )
        )
        errors.add(*confusion_items(matrix, names, names, "objects", background=True))
        errors.add(*_kinds(reduce(add, (image.errors for image in pairs), Counter()), pairs))
        calibration = Calibration()
        counted = boxes.scores >= LOWEST
        calibration.add(boxes.scores[counted], boxes.correct[counted])
        right = f"boxes with an IoU of at least {RIGHT} with an object of their class"
        errors.add(calibration_figure(calibration, right, f"boxes with a score of at least {LOWEST}"))
        return [results, errors, self._gallery(model, pairs, threshold)]

    def _results(self, section: Section, boxes: Found, masks: Found | None) -> None:
        order, words = ranked(boxes.ap)
        series = {"box AP": 100 * boxes.ap[order]} | ({} if masks is None else {"mask AP": 100 * masks.ap[order]})
        names, colours = [self.classes[i] for i in order], [self.palette[i] for i in order]
        content = plots.bars(names, series, "AP (%)", colours, 1, 100.0)
        few = [name for name, curve in zip(self.classes, boxes.curves, strict=True) if 0 < curve.total < FEW]
        note = f" Classes with fewer than {FEW} objects vary a lot: {summarize(few)}." if few else ""
        caption = f"Average precision over IoU 0.5 to 0.95, as COCO defines it{words}. 'none': no objects.{note}"
        section.add(Figure.plot("ap", "AP of each class", content, caption))
        section.add(*score_figures(boxes.curves, self.classes, self.palette, "score"))
        header = ["class", "objects", "box AP (%)", "box AP50 (%)", "best F1", "best threshold"]
        rows = []
        for i, (name, curve) in enumerate(zip(self.classes, boxes.curves, strict=True)):
            best, f1 = curve.best
            row = [name, int(curve.total), shown(100 * boxes.ap[i], 1), shown(100 * boxes.ap50[i], 1), shown(f1)]
            rows.append([*row, shown(best, 2), *([] if masks is None else [shown(100 * masks.ap[i], 1)])])
        header += [] if masks is None else ["mask AP (%)"]
        section.add(
            Table("Classes", header, rows, "The best threshold is the score with the highest F1 of the class, "
                  f"at an IoU of {RIGHT}. Thresholds are {OPTIMISTIC}.")
        )  # fmt: skip

    def _gallery(self, model: Model, images: Sequence[Any], threshold: float) -> Section:
        gallery = Section("gallery", "Images")
        groups = gallery_groups([image.f1 for image in images])
        order = gallery_order(groups, "F1")
        gallery.add(Note(f"{order} Left: ground truth, right: predictions with a score of at least {threshold:.2f}."))
        for kind, _, chosen in groups:
            for place, index in enumerate(chosen):
                path, image = self.paths[index], images[index]
                pixels = bgr_to_display(model.predictor.reader.image(Path(path)))
                name = Path(path).name
                encoded = [
                    encode_image(f"{kind}_{place}_{what}", self._drawn(pixels, objects, threshold), f"{name}: {what}")
                    for what, objects in (("truth", self.truth[index]), ("prediction", self.found[index]))
                ]
                caption = (
                    f"{counted(image.objects, 'object')}, {counted(image.predictions, 'prediction')}, F1 "
                    f"{image.f1:.2f}. "
                )
                listed = ", ".join(f"{n} x {what}" for what, n in image.errors.items() if n)
                caption += f"Errors: {listed}." if listed else "No errors."
                gallery.add(Figure(f"{kind.capitalize()} {place + 1}: {name}", encoded, caption, wide=True))
        return gallery

    def _drawn(self, pixels: np.ndarray, objects: Objects, threshold: float = 0.0) -> Image.Image:
        masks = objects.masks
        regions = None if masks is None else [Region(decode(m, objects.height, objects.width), 0, 0) for m in masks]
        size = objects.height, objects.width
        found = Detections("", *size, self.classes, objects.boxes, objects.scores, objects.labels, regions)
        return draw(pixels, found, self.palette, threshold)

    def count(self, section: Section, train: Any) -> None:
        """Add the objects of each class, their sizes and their number per image."""
        splits: dict[str, Sequence[Objects]] = {}
        if train is not None:
            splits["training"] = [
                true_objects(info, info.get("height", 0), info.get("width", 0)) for _, info in infos(train)
            ]
            total = sum(len(inner) for inner in inner_datasets(train))
            if total > COUNTED:
                section.add(Note(f"Objects of the training data are counted in {COUNTED:,} of {total:,} images."))
        splits["validation"] = self.truth
        counts, sides, numbers = {}, {}, {}
        for name, images in splits.items():
            kept = [objects.labels[~objects.ignored] for objects in images]
            counts[name] = np.bincount(np.concatenate([np.zeros(0, int), *kept]), minlength=len(self.classes))
            boxes = np.concatenate([np.zeros((0, 4)), *(objects.coco_boxes[~objects.ignored] for objects in images)])
            sides[name] = np.sqrt(np.maximum(boxes[:, 2], 0) * np.maximum(boxes[:, 3], 0))
            numbers[name] = np.array([len(labels) for labels in kept])
        section.add(class_counts(counts, self.classes, "objects"))
        section.add(size_figure(sides, "objects", "side of a square with the area of the box (pixels)"))
        if any(row.max(initial=0) for row in numbers.values()):
            most, least = (int(pick([pick(row) for row in numbers.values() if len(row)])) for pick in (max, min))
            bins = np.arange(least - 0.5, most + 1) if most - least <= 40 else 20
            content = plots.histogram(numbers, "objects per image", "images", bins)
            empty = ", ".join(f"{int((row == 0).sum()):,} of {len(row):,} ({name})" for name, row in numbers.items())
            caption = f"Images without objects: {empty}. They teach the model what is no object."
            section.add(Figure.plot("objects_per_image", "Objects per image", content, caption))

    def draw_sample(self, sample: Any) -> tuple[Image.Image, str]:
        """Draw an image with its boxes and masks."""
        pixels, instances = tensor_image(sample["inputs"]), sample["data_samples"].gt_instances
        height, width = pixels.shape[:2]
        boxes = getattr(instances.bboxes, "tensor", instances.bboxes).numpy()
        count = len(boxes)
        regions = None
        if "masks" in instances:
            regions = [Region(mask.astype(bool), 0, 0) for mask in instances.masks.to_ndarray()]
        labels, scores = instances.labels.numpy(), np.full(count, np.nan)
        found = Detections("", height, width, self.classes, boxes, scores, labels, regions)
        return draw(pixels, found, self.palette), ""


def true_objects(info: dict, height: int, width: int) -> Objects:
    """Ground truth of an image from what mmdet's data sets know of it, in pixels of the image file."""
    instances = [instance for instance in info.get("instances", ()) if "bbox" in instance]
    count = len(instances)
    masks = [instance["mask"] for instance in instances if "mask" in instance]
    return Objects(
        np.array([instance["bbox"] for instance in instances], float).reshape(count, 4),
        np.array([instance["bbox_label"] for instance in instances], int),
        np.full(count, np.nan),
        np.array([instance.get("ignore_flag", 0) for instance in instances], bool),
        masks if len(masks) == count else None, height, width,
    )  # fmt: skip


def _predicted(instances: Any, height: int, width: int) -> Objects:
    from pycocotools import mask as coco_mask

    masks = None
    if "masks" in instances:
        masks = [
            m if isinstance(m, dict) else coco_mask.encode(np.asfortranarray(m, np.uint8)) for m in instances.masks
        ]
    boxes, scores = instances.bboxes.numpy().astype(float), instances.scores.numpy().astype(float)
    return Objects(boxes, instances.labels.numpy(), scores, np.zeros(len(boxes), bool), masks, height, width)


def decode(mask: Any, height: int, width: int) -> np.ndarray:
    """Decode polygons or run lengths to a mask (height, width), bool."""
    from pycocotools import mask as coco_mask

    if isinstance(mask, (list, tuple)):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, height, width)) if mask else None
    elif isinstance(mask["counts"], (list, tuple)):
        mask = coco_mask.frPyObjects(mask, height, width)
    return np.zeros((height, width), bool) if mask is None else coco_mask.decode(mask).astype(bool)


def _kinds(errors: Counter[str], images: Sequence[Any]) -> list[Any]:
    objects, hits = sum(image.objects for image in images), sum(image.hits for image in images)
    predictions = sum(image.predictions for image in images)
    words = (
        f"{hits:,} of {objects:,} objects were found; {predictions - hits:,} of {predictions:,} predictions are wrong. "
        "The kinds are those of TIDE (Bolya et al., 2020)."
    )
    if not sum(errors.values()):
        return [Note(f"There are no errors. {words}")]
    content = plots.bars(list(ERRORS), {"errors": [errors[kind] for kind in ERRORS]}, "errors")
    rows = [(kind, MEANING[kind], errors[kind]) for kind in ERRORS]
    return [
        Figure.plot("errors", "Kinds of errors", content, words),
        Table("What the kinds mean", ("kind", "meaning", "errors"), rows, words=2),
    ]
