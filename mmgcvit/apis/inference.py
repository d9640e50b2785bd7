"""Inference on images, folders and videos; writes drawings and predictions."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mmengine.config import Config
from mmengine.logging import print_log

from mmgcvit.apis.config import load_config
from mmgcvit.apis.launch import use_available_cores
from mmgcvit.apis.precision import predict_in
from mmgcvit.apis.tta import use_tta
from mmgcvit.errors import CheckpointError, ClassificationDataError, CorruptImageError, UsageError
from mmgcvit.registry import rename_old_types
from mmgcvit.tasks import Predictor, Task, task_of
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.tasks.detection.tracks import ObjectTracker, require_trackers
from mmgcvit.tasks.sources import Film, Source, frames, read, write_image
from mmgcvit.utils.files import require_file
from mmgcvit.utils.images import set_max_pixels
from mmgcvit.utils.inputs import Input, check_options, list_inputs
from mmgcvit.utils.text import counted, describe, printable

JOURNAL = "results.jsonl"  # the results so far, one line per image; removed when they are all written
SAVE_EVERY = 30.0  # seconds between two writings of the results so far


@dataclass
class Summary:
    """Summary of a call of :func:`predict`."""

    images: int = 0
    frames: int = 0
    objects: int = 0  # for detectors and panoptic segmentors
    unit: str = ""  # what they are: 'detections' or 'segments'
    file: str = ""  # the file with the predictions
    results: list[dict] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        """Former name of ``images``."""
        return self.images


def predict(
    config: str | Path | Config,
    checkpoint: str,
    inputs: Sequence[str | Path],
    out_dir: str,
    device: str | None = None,
    score_thr: float = 0.3,
    batch_size: int = 1,
    tta: bool = False,
    tile: int | None = None,
    overlap: float = 0.25,
    ann_file: str | None = None,
    draw: bool = True,
    max_pixels: int | None = None,
    amp: str | None = None,
    track_objects: bool = False,
) -> Summary:
    """Detect, segment or classify images, folders of images, and videos; write drawings and predictions.

    Images are loaded as the test pipeline of the config does. Drawings are written to ``vis`` in ``out_dir``, videos as
    ``.mp4``. All results name an image by its path relative to the folder that was given. In addition,

    - a detector writes ``predictions.json``, results in COCO format (boxes x, y, width, height in pixels, masks as run
      lengths), and ``images.json``, the images and categories with their ids (a COCO file without annotations;
      pycocotools loads both);
    - a panoptic segmentor writes ``predictions.json`` and PNGs in ``panoptic``, in COCO's panoptic format;
    - a segmentor writes label maps to ``labels``, in the size of the images and with 0 for the first class, and
      ``areas.json``, the number of pixels and the share of each class per image;
    - a classifier writes ``classes.json``, the most probable classes of each image, and the same as ``classes.csv``.

    An input that cannot be read, or on which the model fails, does not stop the others. The results so far are saved
    every half minute, and those of each image are added to ``results.jsonl`` at once: a killed run loses at most the
    last image. This file is removed when all results are written.

    Args:
        config: a config file of a detector, segmentor or classifier, or a config, which is not changed.
        checkpoint: file or URL.
        inputs: images, videos, and folders with images and videos, at any depth.
        out_dir: folder to write to.
        device: 'cpu', 'cuda:0', ...; by default a GPU if there is one.
        score_thr: boxes with a lower score are not drawn; the JSON file contains all of them.
        batch_size: number of images, frames or tiles per batch; a segmentor batches inputs of the same shape.
        tta: test-time augmentation, for detectors of boxes only (:func:`mmgcvit.apis.use_tta`).
        tile: side in pixels of the square tiles that larger images are cut into. For a detector, the original image is
            cut, and boxes of the same class are merged by NMS at an IoU of 0.5; for a segmentor, the image is cut after
            resizing by the test pipeline, and predictions are averaged.
        overlap: overlap of neighbouring tiles, as a fraction of their side, from 0 to below 1.
        ann_file: for a detector, a COCO file that provides the image ids (by file name) and category ids of the
            predictions, for evaluation or submission; by default images are numbered from 1, and category ids are the
            labels plus 1.
        draw: whether to make drawings.
        max_pixels: images with more pixels are not decoded; by default 100 million.
        amp: mixed precision of the backbone, 'fp16' (GPU only) or 'bf16'.
        track_objects: for a detector: number the objects of each video, in drawings and as ``track_id`` in the results
            (:class:`~mmgcvit.tasks.detection.tracks.ObjectTracker`). Tracks begin at ``score_thr``.

    Returns:
        Counts, and the results as written to the file.

    Raises:
        UsageError: the config, the checkpoint or an input does not exist; the checkpoint cannot be read, lacks a part
            of the model, has NaN or infinite values, or has the classes of the config in another order; the task of the
            model is unknown; a folder has no images; two inputs have the same name; a value is not allowed; an image is
            not in ``ann_file``; or, after the others are done, some inputs could not be read.
    """
    set_max_pixels(max_pixels)
    use_available_cores()
    require_file("checkpoint", checkpoint)
    check_options(batch_size, tile, overlap)
    entries, skipped = list_inputs(inputs, out_dir)
    for words in skipped:
        print_log(printable(words), logger="current", level=logging.WARNING)
    if track_objects:
        require_trackers()
        if not any(entry.is_video for entry in entries):
            raise UsageError("--track-objects: no video among the inputs; omit it")
    options = PredictionOptions(device, tta, tile, overlap, batch_size, ann_file)
    task, model = load_predictor(config, checkpoint, options)
    if track_objects and task.name != "detection":
        raise UsageError(f"--track-objects: the model is for {task.name}; allowed: detectors")
    predict_in(amp, model.trained.model, device)
    model.validate_inputs(entries)
    folder = Path(out_dir)
    try:
        (folder / "vis" if draw else folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out_dir={out_dir!r}: cannot be written: {error}") from error
    run = _Run(model, folder, draw, score_thr, track_objects)
    run.summary.unit = task.objects
    try:
        run.images([entry for entry in entries if not entry.is_video])
        for entry in entries:
            if entry.is_video:
                run.video(entry)
    finally:
        run.finish()
    if run.failures:
        done = run.summary.images + run.summary.frames
        more = f"\n{len(run.failures)} of {counted(len(entries), 'input')} failed; " if len(entries) > 1 else "\n"
        more += f"the results of the others are in {run.summary.file}" if done else "there are no results"
        raise UsageError("\n".join(run.failures) + (more if done or len(entries) > 1 else ""))
    return run.summary


def load_predictor(config: str | Path | Config, checkpoint: str, options: PredictionOptions) -> tuple[Task, Predictor]:
    """Build the model of a config with its weights.

    Args:
        config, checkpoint: see :func:`predict`.
        options: those of :func:`predict` with the same names.

    Returns:
        The task, and the model.

    Raises:
        UsageError: the config, the checkpoint or an option cannot be used.
    """
    require_file("checkpoint", checkpoint)
    check_options(options.batch_size, options.tile, options.overlap)
    cfg = rename_old_types(copy.deepcopy(config)) if isinstance(config, Config) else load_config(config)
    task = task_of(cfg)
    if options.tta:
        use_tta(cfg)
    try:
        return task, task.predictor(cfg, checkpoint, options)
    except (CheckpointError, ClassificationDataError) as error:
        raise UsageError(str(error) if checkpoint in str(error) else f"checkpoint {checkpoint!r}: {error}") from error


class _Run:
    """One call of :func:`predict`: predicts, draws, and saves the results so far every :data:`SAVE_EVERY` seconds."""

    def __init__(self, model: Predictor, folder: Path, draw: bool, score_thr: float, track_objects: bool) -> None:
        self.model, self.folder, self.draw, self.score_thr = model, folder, draw, score_thr
        self.track_objects = track_objects
        self.summary = Summary(results=model.results)
        self.failures: list[str] = []
        self.waiting: list[Source] = []  # read, but without a result
        self.journal: TextIO | None = None
        self.due = time.monotonic() + SAVE_EVERY

    def images(self, entries: Sequence[Input]) -> None:
        """Predict on images; those that cannot be decoded become failures."""
        drawings = {entry.name: entry.drawing for entry in entries}
        sources = self._readable(entries)
        while True:
            try:
                self._predict(sources, drawings)
                return
            except UsageError:
                raise
            except Exception:  # the model's libraries raise many types of errors, for images of odd shapes
                if not self.waiting:
                    raise
                self._one_by_one(drawings)

    def _predict(self, sources: Iterator[Source], drawings: Mapping[str, str]) -> None:
        for source, found in self.model(sources):
            self.waiting = [other for other in self.waiting if other is not source]
            self._keep(source, found)
            self.summary.images += 1
            if not self.draw:
                continue
            try:
                drawn = self.model.draw(source, found, self.score_thr)
                write_image(self.folder / "vis" / drawings[source.name], drawn)
            except UsageError:
                raise
            except Exception as error:
                self.failures.append(f"input {source.name!r}: no drawing: {describe(error)}")

    def _one_by_one(self, drawings: Mapping[str, str]) -> None:
        """Predict again on the images of a batch that failed, so that only the one at fault becomes a failure."""
        for source in list(self.waiting):
            try:
                self._predict(iter([source]), drawings)
            except UsageError:
                raise
            except Exception as error:
                size = f"{source.pixels.shape[1]} x {source.pixels.shape[0]}"
                self.failures.append(f"input {source.name!r} ({size}): the model failed on it: {describe(error)}")
        self.waiting.clear()

    def _readable(self, entries: Sequence[Input]) -> Iterator[Source]:
        for entry in entries:
            try:
                source = read(entry, self.model.reader)
            except UsageError as error:
                self.failures.append(str(error))
                continue
            self.waiting.append(source)
            yield source

    def video(self, entry: Input) -> None:
        """Predict on each frame of a video, and write a video with the drawings."""
        import cv2

        capture = cv2.VideoCapture(str(entry.path))
        with ExitStack() as stack:
            stack.callback(capture.release)
            if not capture.isOpened():
                self.failures.append(f"input {str(entry.path)!r}: not a video that OpenCV can read")
                return
            film = None
            rate = capture.get(cv2.CAP_PROP_FPS) or 25
            track = ObjectTracker(rate, self.score_thr) if self.track_objects else None
            if self.draw:
                film = stack.enter_context(Film(self.folder / "vis" / entry.drawing, rate))
            count = 0
            try:
                for source, found in self.model(frames(entry.name, capture, self.model.reader)):
                    if track is not None:
                        found = track(found)
                    self._keep(source, found)
                    count += 1
                    if film is not None:
                        film.write(self.model.draw(source, found, self.score_thr))
            except CorruptImageError as error:
                self.failures.append(f"input {str(entry.path)!r}: {error}")
                return
            self.summary.frames += count
            announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            # Some containers only have an estimate.
            if count == 0 or count + max(2, announced // 50) < announced:
                self.failures.append(
                    f"input {str(entry.path)!r}: ends after {count} of {counted(announced, 'frame')}: cut off or "
                    "damaged"
                )

    def _keep(self, source: Source, found: Any) -> None:
        count = len(self.model.results)
        self.summary.objects += self.model.keep(source, found, self.folder)
        line = {"image": source.name, "frame": source.frame, "results": self.model.results[count:]}
        try:
            if self.journal is None:
                self.journal = (self.folder / JOURNAL).open("w", encoding="utf-8")
            self.journal.write(f"{json.dumps(line)}\n")
            self.journal.flush()
        except OSError as error:
            raise UsageError(f"{str(self.folder / JOURNAL)!r}: cannot be written: {error}") from error
        if time.monotonic() >= self.due:
            self.save()

    def finish(self) -> None:
        """Write all results, which the journal is then not needed for."""
        self.save()
        if self.journal is not None:
            self.journal.close()
            (self.folder / JOURNAL).unlink(missing_ok=True)

    def save(self) -> None:
        """Write the results so far, if there are any."""
        if not self.model.results and not self.summary.images + self.summary.frames:
            return
        start = time.monotonic()
        try:
            self.summary.file = str(self.model.write(self.folder))
        except OSError as error:
            raise UsageError(f"out_dir={str(self.folder)!r}: cannot be written: {error}") from error
        end = time.monotonic()
        self.due = end + max(SAVE_EVERY, 20 * (end - start))  # so that long files take at most 5 % of the time
