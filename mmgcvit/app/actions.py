"""What the web page does, without the page: predict, draw, list, explain, write the results."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.app.models import AppModel
from mmgcvit.errors import UsageError
from mmgcvit.runtime import Classification, Detections, Prediction, Segmentation
from mmgcvit.runtime.drawing import draw, zoom_of
from mmgcvit.runtime.predictions import Panoptic
from mmgcvit.runtime.results import TOP
from mmgcvit.utils.inputs import Input, check_upload
from mmgcvit.utils.text import counted

SIDE = 1600  # longest side of a drawing on the page, in pixels
ROWS = 200  # most rows of the table


@dataclass
class Result:
    """An image with its prediction.

    Attributes:
        image: the image as the model loads it.
        prediction: its prediction.
        seconds: time that loading and predicting took.
        scale: pixels of the last drawing per pixel of the image.
    """

    image: Any
    prediction: Prediction
    seconds: float
    scale: float = 1.0


def predict(model: AppModel, path: str | Path, tiles: bool = False, tta: bool = False) -> Result:
    """Predict on an uploaded image.

    Raises:
        UsageError: it is too large, or cannot be used. The message does not tell where it is.
    """
    path = Path(path)
    check_upload(path, path.name)
    start = time.perf_counter()
    try:
        image, prediction = model.predict(Input(path, path.name), tiles, tta)
    except UsageError as error:
        raise UsageError(str(error).replace(str(path), path.name)) from error
    return Result(image, prediction, time.perf_counter() - start)


def drawing(model: AppModel, result: Result, score_thr: float) -> Image.Image:
    """Draw a prediction, in a size that suits a page."""
    image = draw(model.display(result.image), result.prediction, model.palette, score_thr)
    width = image.width
    image.thumbnail((SIDE, SIDE))
    result.scale = zoom_of((result.prediction.height, result.prediction.width)) * image.width / width
    return image


def explain(model: AppModel, result: Result, x: float, y: float, method: str) -> Image.Image:
    """Make a figure of what the model sees at a pixel (x, y) of the last :func:`drawing`.

    Raises:
        UsageError: the pixel is outside of the image, in the legend, or there is nothing to show.
    """
    at = x / result.scale, y / result.scale
    if not (0 <= at[0] < result.prediction.width and 0 <= at[1] < result.prediction.height):
        raise UsageError("a click on the legend; allowed: inside the image")
    figure = model.explain(result.image, (int(at[0]), int(at[1])), method)
    figure.thumbnail((SIDE, SIDE))
    return figure


def table(result: Result, score_thr: float) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a table of the prediction: objects, areas of classes, or probable classes."""
    found = result.prediction
    if isinstance(found, Detections):
        shown = found.select(found.scores >= score_thr)
        shown = shown.select(np.argsort(-shown.scores, kind="stable")[:ROWS])
        boxes = [(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in shown.boxes.tolist()]
        return ["class", "score", "x, y, width, height"], [
            [name, f"{score:.2f}", ", ".join(f"{side:.0f}" for side in box)]
            for name, score, box in zip(shown.names, shown.scores, boxes, strict=True)
        ]
    if isinstance(found, Segmentation):
        counts = np.bincount(found.labels.ravel(), minlength=len(found.classes))[: len(found.classes)]
        order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]][:ROWS]
        rows = [[found.classes[i], f"{100 * counts[i] / found.labels.size:.1f}", str(counts[i])] for i in order]
        if isinstance(found, Panoptic):
            pairs = np.unique(np.stack([found.labels.ravel(), found.segments.ravel()]), axis=1)
            rows = [[*row, str((pairs[0] == i).sum())] for row, i in zip(rows, order, strict=True)]
            return ["class", "share (%)", "pixels", "segments"], rows
        return ["class", "share (%)", "pixels"], rows
    assert isinstance(found, Classification)
    return ["class", "probability"], [[name, f"{value:.3f}"] for name, value in found.top(TOP)]


def summary(result: Result, score_thr: float) -> str:
    """Return one line about the prediction."""
    found = result.prediction
    about = f"{found.width} x {found.height} pixels, {result.seconds:.2f} s"
    if not isinstance(found, Detections):
        return about
    scores = found.scores
    count = int((scores >= score_thr).sum())
    return f"{count} of {counted(len(scores), 'object')} with a score of at least {score_thr:.2f}; {about}"


def write_results(model: AppModel, result: Result, folder: Path) -> list[str]:
    """Write the files that ``mmgcvit predict`` writes for this image to a new folder in ``folder``."""
    target = Path(tempfile.mkdtemp(dir=folder))
    results = model.results(target)
    results.add(result.prediction)
    results.write()
    return sorted(str(path) for path in target.rglob("*") if path.is_file())
