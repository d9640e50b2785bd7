"""Detection on pictures, folders and videos: drawings, and predictions as COCO has them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import MODELS

from mmgcvit.apis.config import UsageError, existing, load_config
from mmgcvit.datasets.annotations import AnnotationError, picture_name, read_lists

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


@dataclass
class Summary:
    """What a call of :func:`predict` made."""

    pictures: int = 0
    frames: int = 0
    objects: int = 0
    out_dir: str = ""
    results: list[dict] = field(default_factory=list)


@dataclass
class _Source:
    """A picture or a frame on its way to the detector."""

    name: str
    pixels: np.ndarray  # (H, W, 3), BGR
    frame: int | None = None


def predict(config: str | Config, checkpoint: str, inputs: Sequence[str | Path], out_dir: str,
            device: str | None = None, score_thr: float = 0.3, batch_size: int = 1, tta: bool = False,
            tile: int | None = None, overlap: float = 0.25, ann_file: str | None = None, draw: bool = True) -> Summary:
    """Detect on pictures, on every picture of folders, on videos; write drawings and predictions.

    ``out_dir`` gets ``predictions.json``, results in COCO's format (boxes x, y, width, height in pixels, masks
    as run lengths), ``images.json``, the images and categories that its ids mean (a COCO file without annotations: both
    load with pycocotools), and drawings in ``vis``, videos as ``.mp4``.

    Args:
        config: a config file of a detector, or a config.
        checkpoint: file or URL.
        inputs: pictures, folders of pictures, videos.
        out_dir: folder to write to.
        device: 'cpu', 'cuda:0', ...; by default a GPU where there is one.
        score_thr: boxes under this score are not drawn; the JSON has all of them.
        batch_size: pictures, frames or tiles at a time.
        tta: test-time augmentation, boxes alone (:func:`mmgcvit.apis.runs.use_tta`).
        tile: side in pixels of the square tiles that a larger picture is cut into; boxes of the same class are merged
            by NMS at an IoU of 0.5.
        overlap: how much of a tile's side its neighbour covers, 0 to below 1.
        ann_file: a COCO file whose image ids (by file name) and category ids the predictions get, to be evaluated or
            submitted; otherwise images are numbered from 1, categories are the labels counted from 1.
        draw: whether to make drawings.

    Returns:
        Counts, and the COCO results.

    Raises:
        UsageError: config, checkpoint or inputs are not there, a folder without pictures, two inputs of one name, a
            value that is not allowed, a picture that cannot be read or that ``ann_file`` lacks.
    """
    existing("checkpoint", checkpoint)
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}; allowed: at least 1")
    if tile is not None and tile < 32:
        raise UsageError(f"tile={tile}; allowed: at least 32 pixels")
    if not 0 <= overlap < 1:
        raise UsageError(f"overlap={overlap}; allowed: from 0 to below 1")
    paths = _distinct([path for source in inputs for path in list_inputs(source)])
    ids = _Ids(ann_file)
    cfg = config if isinstance(config, Config) else load_config(config)
    detector = Detector(cfg, checkpoint, device, tta, tile, overlap, batch_size)
    ids.name_categories(detector.classes)
    ids.check(path for path in paths if path.suffix.lower() not in VIDEOS)
    summary = Summary(out_dir=str(out_dir))
    folder = Path(out_dir)
    (folder / "vis" if draw else folder).mkdir(parents=True, exist_ok=True)
    pictures = [path for path in paths if path.suffix.lower() not in VIDEOS]
    for source, instances in detector(_read(path) for path in pictures):
        summary.results += ids.results(source, instances)
        summary.pictures += 1
        if draw:
            _write_picture(folder / "vis" / source.name, detector.draw(source, instances, score_thr))
    for path in paths:
        if path.suffix.lower() in VIDEOS:
            summary.frames += _video(path, folder / "vis" if draw else None, detector, ids, summary, score_thr)
    summary.objects = len(summary.results)
    _write_json(folder / "predictions.json", summary.results)
    _write_json(folder / "images.json", dict(images=ids.images, annotations=[], categories=ids.categories))
    return summary


def list_inputs(source: str | Path) -> list[Path]:
    """The picture or video, or the pictures and videos of a folder, by name.

    Raises:
        UsageError: it is not there, or a folder without any.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"input {str(source)!r}: there is no such picture, video or folder")
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURES + VIDEOS)
    if not found:
        raise UsageError(f"input {str(source)!r}: no pictures in this folder; allowed: {', '.join(PICTURES + VIDEOS)}")
    return found


class Detector:
    """mmdet's inferencer, for whole pictures or tiles, one view or several.

    Args: those of :func:`predict`.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None = None, tta: bool = False,
                 tile: int | None = None, overlap: float = 0.25, batch_size: int = 1) -> None:
        from mmdet.apis import DetInferencer

        from mmgcvit.apis.runs import use_tta

        cfg = copy.deepcopy(cfg)
        if tta:
            use_tta(cfg)
        self.inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
        self.classes = tuple(self.inferencer.model.dataset_meta["classes"])
        if tta:
            self.inferencer.model = MODELS.build({**cfg.tta_model, "module": self.inferencer.model})
        self.tile, self.step, self.batch_size = tile, tile and max(1, round(tile * (1 - overlap))), batch_size

    def __call__(self, sources: Iterator[_Source]) -> Iterator[tuple[_Source, Any]]:
        """Instances of each source: bboxes x1, y1, x2, y2 in pixels, scores, labels, masks as run lengths."""
        while chunk := list(islice(sources, 1 if self.tile else self.batch_size)):
            if self.tile:
                yield chunk[0], self._tiled(chunk[0].pixels)
                continue
            found = self._detect([source.pixels for source in chunk])
            for source, instances in zip(chunk, found, strict=True):
                if "masks" in instances:
                    instances.masks = [_run_lengths(mask, (0, 0), mask.shape) for mask in instances.masks.numpy()]
                yield source, instances

    def _detect(self, pictures: list[np.ndarray]) -> list[Any]:
        found = self.inferencer(pictures, batch_size=self.batch_size, return_datasamples=True, no_save_vis=True)
        return [sample.pred_instances.cpu() for sample in found["predictions"]]

    def _tiled(self, picture: np.ndarray) -> Any:
        """Detect on overlapping tiles, move what was found to its place, merge by NMS, as mmdet's merge_results_by_nms.

        (That one needs one more package for the moving, and leaves masks where they are.)
        """
        from mmcv.ops import batched_nms
        from mmengine.structures import InstanceData
        from pycocotools import mask as coco_mask

        height, width = picture.shape[:2]
        corners = [(y, x) for y in _starts(height, self.tile, self.step) for x in _starts(width, self.tile, self.step)]
        parts = []
        for i in range(0, len(corners), self.batch_size):
            batch = corners[i : i + self.batch_size]
            found = self._detect([picture[y : y + self.tile, x : x + self.tile] for y, x in batch])
            for (y, x), part in zip(batch, found, strict=True):
                part.bboxes = part.bboxes + part.bboxes.new_tensor([x, y, x, y])
                if "masks" in part:  # as small as they are, until it is known which remain
                    part.masks = [(_run_lengths(mask, (0, 0), mask.shape), (y, x)) for mask in part.masks.numpy()]
                parts.append(part)
        merged = InstanceData.cat(parts)
        if not len(merged):
            return merged
        _, kept = batched_nms(merged.bboxes, merged.scores, merged.labels, dict(type="nms", iou_threshold=0.5))
        merged = merged[kept]
        if "masks" in merged:
            merged.masks = [_run_lengths(coco_mask.decode(mask), corner, (height, width))
                            for mask, corner in merged.masks]
        return merged

    def draw(self, source: _Source, instances: Any, score_thr: float) -> np.ndarray:
        """The picture (RGB) with what was found of at least this score."""
        from mmdet.structures import DetDataSample
        from pycocotools import mask as coco_mask

        shown = instances[instances.scores >= score_thr]
        if "masks" in shown:
            masks = [coco_mask.decode(mask) for mask in shown.masks]
            height, width = source.pixels.shape[:2]
            shown.masks = np.stack(masks).astype(bool) if masks else np.zeros((0, height, width), bool)
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample(source.name, source.pixels[..., ::-1].copy(), DetDataSample(pred_instances=shown),
                                  draw_gt=False, pred_score_thr=score_thr)
        return visualizer.get_image()


class _Ids:
    """Image and category ids of the predictions."""

    def __init__(self, ann_file: str | None) -> None:
        self.file = ann_file
        self.images: list[dict] = []
        self.categories: list[dict] = []
        self.known: dict[str, Any] = {}
        self.next = 1
        if ann_file is not None:
            try:
                content = read_lists(existing("annotation file", ann_file), test_mode=True)
            except AnnotationError as error:
                raise UsageError(str(error)) from error
            for image in content["images"]:
                name = Path(picture_name(image)).name
                if name in self.known:
                    raise UsageError(f"{ann_file}: two images of file name {name!r}: which one is meant cannot be told")
                self.known[name] = image["id"]
            self.categories = content["categories"]
            self.next = max((i for i in self.known.values() if isinstance(i, int)), default=0) + 1

    def name_categories(self, classes: Sequence[str]) -> None:
        if self.file is None:
            self.categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
        by_name = {category["name"]: category["id"] for category in self.categories}
        missing = [name for name in classes if name not in by_name]
        if missing:
            raise UsageError(f"{self.file}: has no category {', '.join(map(repr, missing))} of the model's classes; it "
                             f"has {', '.join(map(repr, by_name))}")
        self.category_ids = [by_name[name] for name in classes]

    def check(self, pictures: Iterator[Path]) -> None:
        missing = [path.name for path in pictures if path.name not in self.known] if self.file else []
        if missing:
            raise UsageError(f"{self.file}: has no image of file name {missing[0]!r}"
                             + (f", nor of {len(missing) - 1} others" if missing[1:] else ""))

    def results(self, source: _Source, instances: Any) -> list[dict]:
        """COCO results of one picture, which gets its id here."""
        height, width = source.pixels.shape[:2]
        known = self.known.get(source.name) if source.frame is None else None
        image = dict(id=self.next if known is None else known, file_name=source.name, width=width, height=height)
        self.next += known is None
        if source.frame is not None:
            image["frame"] = source.frame
        self.images.append(image)
        found = []
        boxes, scores, labels = instances.bboxes.tolist(), instances.scores.tolist(), instances.labels.tolist()
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            result = dict(image_id=image["id"], category_id=self.category_ids[labels[i]],
                          bbox=[round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)], score=round(scores[i], 5))
            if "masks" in instances:
                mask = instances.masks[i]
                result["segmentation"] = dict(size=list(mask["size"]), counts=mask["counts"].decode())
            found.append(result)
        return found


def _video(path: Path, folder: Path | None, detector: Detector, ids: _Ids, summary: Summary, score_thr: float) -> int:
    """Detect on a video's frames and write it again with drawings; returns how many frames there were."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise UsageError(f"input {str(path)!r}: no video that OpenCV can read")
    target = folder and folder / f"{path.stem}.mp4"
    partial = target and target.with_name(f".{target.name}.part.mp4")
    writer, count = None, 0
    try:
        for source, instances in detector(_frames(path.name, capture)):
            summary.results += ids.results(source, instances)
            count += 1
            if target is None:
                continue
            if writer is None:
                height, width = source.pixels.shape[:2]
                rate = capture.get(cv2.CAP_PROP_FPS) or 25
                writer = cv2.VideoWriter(str(partial), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
                if not writer.isOpened():
                    raise UsageError(f"{str(target)!r}: this OpenCV cannot write MP4; --no-draw leaves it out")
            writer.write(detector.draw(source, instances, score_thr)[..., ::-1])
    except BaseException:
        if writer is not None:
            writer.release()
            partial.unlink(missing_ok=True)
        raise
    finally:
        capture.release()
    if writer is not None:
        writer.release()
        os.replace(partial, target)
    return count


def _frames(name: str, capture: Any) -> Iterator[_Source]:
    index = 0
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield _Source(name, frame, index)
        index += 1


def _read(path: Path) -> _Source:
    import mmcv

    try:
        pixels = mmcv.imread(str(path))
    except Exception as error:  # OpenCV's own, of an empty file
        raise UsageError(f"input {str(path)!r}: no picture that can be decoded: {error}") from error
    if pixels is None:
        raise UsageError(f"input {str(path)!r}: no picture that can be decoded")
    return _Source(path.name, pixels)


def _distinct(paths: list[Path]) -> list[Path]:
    first: dict[str, Path] = {}
    for path in paths:
        name = f"{path.stem}.mp4" if path.suffix.lower() in VIDEOS else path.name
        if name in first:
            raise UsageError(f"inputs: the drawings of {str(path)!r} and {str(first[name])!r} would go into one file, "
                             f"{name}; give them in two calls with two --out-dir")
        first[name] = path
    return paths


def _starts(length: int, tile: int, step: int) -> list[int]:
    """Where tiles begin along a side, the last one flush with the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, step), length - tile]


def _run_lengths(mask: np.ndarray, corner: tuple[int, int], shape: tuple[int, int]) -> dict:
    """COCO's compressed run lengths of a mask that lies at a corner (y, x) of a picture."""
    from pycocotools import mask as coco_mask

    whole = np.zeros(shape, np.uint8, order="F")
    y, x = corner
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return coco_mask.encode(whole)


def _write_picture(path: Path, picture: np.ndarray) -> None:
    import mmcv

    partial = path.with_name(f".part-{path.name}")
    mmcv.imwrite(np.ascontiguousarray(picture[..., ::-1]), str(partial))
    os.replace(partial, path)


def _write_json(path: Path, content: Any) -> None:
    partial = path.with_name(f".part-{path.name}")
    partial.write_text(json.dumps(content))
    os.replace(partial, path)
