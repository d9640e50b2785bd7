"""Inference on images, folders and videos; writes drawings and predictions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from mmgcvit.apis.config import load_config
from mmgcvit.apis.tta import use_tta
from mmgcvit.errors import CheckpointError, ClassificationDataError, UsageError
from mmgcvit.registry import rename_old_types
from mmgcvit.tasks import Predictor, task_of
from mmgcvit.tasks.sources import VIDEOS, frames, list_inputs, read, write_image
from mmgcvit.utils import atomic_path
from mmgcvit.utils.files import require_file


@dataclass
class Summary:
    """Summary of a call of :func:`predict`."""

    images: int = 0
    frames: int = 0
    objects: int = 0  # for detectors
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
) -> Summary:
    """Detect, segment or classify images, folders of images, and videos; write drawings and predictions.

    Drawings are written to ``vis`` in ``out_dir``, videos as ``.mp4``. In addition,

    - a detector writes ``predictions.json``, results in COCO format (boxes x, y, width, height in pixels, masks as run
      lengths), and ``images.json``, the images and categories with their ids (a COCO file without annotations;
      pycocotools loads both);
    - a segmentor writes label maps to ``labels``, in the size of the images and with 0 for the first class, and
      ``areas.json``, the number of pixels and the share of each class per image;
    - a classifier writes ``classes.json``, the most probable classes of each image.

    Args:
        config: a config file of a detector, segmentor or classifier, or a config, which is not changed.
        checkpoint: file or URL.
        inputs: images, folders of images, videos.
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

    Returns:
        Counts, and the results as written to the file.

    Raises:
        UsageError: the config, the checkpoint or an input does not exist; the checkpoint cannot be read, lacks a part
            of the model, has NaN or infinite values, or has the classes of the config in another order; the task of the
            model is unknown; a folder has no images; two inputs have the same name; a value is not allowed; or an image
            cannot be read or is not in ``ann_file``.
    """
    require_file("checkpoint", checkpoint)
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}; allowed: at least 1")
    if tile is not None and tile < 32:
        raise UsageError(f"tile={tile}; allowed: at least 32 pixels")
    if not 0 <= overlap < 1:
        raise UsageError(f"overlap={overlap}; allowed: from 0 to below 1")
    paths = _distinct([path for source in inputs for path in list_inputs(source)])
    images = [path for path in paths if path.suffix.lower() not in VIDEOS]
    cfg = rename_old_types(copy.deepcopy(config)) if isinstance(config, Config) else load_config(config)
    task = task_of(cfg)
    if tta:
        use_tta(cfg)
    options = dict(device=device, tta=tta, tile=tile, overlap=overlap, batch_size=batch_size, ann_file=ann_file)
    try:
        model = task.predictor(cfg, checkpoint, **options)
    except (CheckpointError, ClassificationDataError) as error:
        raise UsageError(str(error) if checkpoint in str(error) else f"checkpoint {checkpoint!r}: {error}") from error
    model.validate_inputs(images)
    folder = Path(out_dir)
    (folder / "vis" if draw else folder).mkdir(parents=True, exist_ok=True)
    summary = Summary(results=model.results)
    for source, found in model(read(path) for path in images):
        summary.objects += model.keep(source, found, folder)
        summary.images += 1
        if draw:
            write_image(folder / "vis" / source.name, model.draw(source, found, score_thr))
    for path in paths:
        if path.suffix.lower() in VIDEOS:
            _predict_video(path, folder, draw, model, summary, score_thr)
    summary.file = str(model.write(folder))
    return summary


def _predict_video(path: Path, folder: Path, draw: bool, model: Predictor, summary: Summary, score_thr: float) -> None:
    """Predict on each frame of a video, and write a video with the drawings."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    target = folder / "vis" / f"{path.stem}.mp4"
    with ExitStack() as stack:
        stack.callback(capture.release)
        if not capture.isOpened():
            raise UsageError(f"input {str(path)!r}: not a video that OpenCV can read")
        writer = None
        for source, found in model(frames(path.name, capture)):
            summary.objects += model.keep(source, found, folder)
            summary.frames += 1
            if not draw:
                continue
            if writer is None:
                height, width = source.pixels.shape[:2]
                rate = capture.get(cv2.CAP_PROP_FPS) or 25
                temporary = stack.enter_context(atomic_path(target))
                fourcc = cv2.VideoWriter.fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(temporary), fourcc, rate, (width, height))
                stack.callback(writer.release)  # before the temporary file is renamed
                if not writer.isOpened():
                    raise UsageError(f"{str(target)!r}: this OpenCV cannot write MP4; --no-draw skips it")
            writer.write(model.draw(source, found, score_thr)[..., ::-1])


def _distinct(paths: list[Path]) -> list[Path]:
    first: dict[str, Path] = {}
    for path in paths:
        name = f"{path.stem}.mp4" if path.suffix.lower() in VIDEOS else path.name
        if name in first:
            raise UsageError(
                f"inputs: the drawings of {str(path)!r} and {str(first[name])!r} would be written to the same file, "
                f"{name}; pass them in two calls with different --out-dir"
            )
        first[name] = path
    return paths
