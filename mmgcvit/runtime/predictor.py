"""Prediction with an exported model: images in, predictions in pixels of these images out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmgcvit.errors import UsageError
from mmgcvit.runtime.drawing import draw
from mmgcvit.runtime.images import Loader, Source
from mmgcvit.runtime.masks import Region, enlarge, paste
from mmgcvit.runtime.predictions import Classification, Detections, Prediction, Segmentation, merge_tiles
from mmgcvit.runtime.resize import NetworkImage, pad, prepare, resize
from mmgcvit.runtime.session import Session, open_session
from mmgcvit.utils.inputs import check_options, tile_starts, tile_step
from mmgcvit.utils.text import counted

Outputs = dict[str, np.ndarray]  # of one image, by name


class Predictor:
    """An exported detector, segmentor or classifier, from image files to predictions.

    Args:
        file: file written by ``mmgcvit export``: ONNX (.onnx) or OpenVINO (.xml); or an opened file.
        threads: number of threads; by default the library's choice.
        batch_size: number of images or tiles that are run together, if they have the same size after resizing.
        tile: side in pixels of the square tiles that larger images are cut into. For a detector, the original image is
            cut, and boxes of the same class are merged by NMS at an IoU of 0.5. For a segmentor, the resized image is
            cut, and each pixel gets its class from the tile in which it is farthest from the border.
        overlap: overlap of neighbouring tiles, as a fraction of their side, from 0 to below 1.

    Attributes:
        info: description of the model.

    Raises:
        UsageError: the file cannot be opened, or a value is not allowed.

    Examples:
        >>> predictor = Predictor("detector.onnx")
        >>> for found in predictor("images"):
        ...     print(found.name, found.boxes, found.scores, found.names)
    """

    def __init__(
        self,
        file: str | Path | Session,
        threads: int | None = None,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = 0.25,
    ) -> None:
        check_options(batch_size, tile, overlap)
        self.session = file if isinstance(file, Session) else open_session(file, threads)
        self.file = file = self.session.file
        self.info = info = self.session.info
        fixed = info.shape[0]
        if fixed is not None and batch_size > fixed:
            raise UsageError(f"batch_size={batch_size}; allowed by {file}: {fixed}, which it was exported with")
        self.batch_size = fixed or batch_size
        self.load = Loader(info)
        self.use_tiles(tile, overlap)

    def use_tiles(self, tile: int | None, overlap: float = 0.25) -> None:
        """Cut larger images into tiles from now on; None for whole images.

        Args:
            tile: side of the tiles, in pixels; None for whole images.
            overlap: overlap of neighbouring tiles, as a share of their side.

        Raises:
            UsageError: the model cannot be run on these tiles.
        """
        check_options(self.batch_size, tile, overlap)
        info, file, sides = self.info, self.file, self.info.shape[1:]
        if tile is not None and info.task == "classification":
            raise UsageError(f"tile={tile}: not supported for classifiers; omit it")
        cut = info.task == "segmentation" or info.resize.kind == "none"  # tiles are not resized
        if tile is not None and cut and any(side and tile > side for side in sides):
            raise UsageError(f"tile={tile}; allowed by {file}: at most {min(side for side in sides if side)} pixels")
        self.tile, self.step = tile, tile_step(tile, overlap) if tile else 0

    def __call__(self, images: Any) -> list[Any]:
        """Predict on images.

        Args:
            images: the path of an image, a folder with images at any depth, a Pillow image, an array (H, W, 3) in RGB,
                or an iterable of these.

        Returns:
            For each image in order, :class:`Detections`, a :class:`Segmentation` or a :class:`Classification`.

        Raises:
            UsageError: an image cannot be decoded, or does not suit the model.
        """
        return list(self.stream(images))

    def stream(self, images: Any) -> Iterator[Any]:
        """Yield the predictions one by one; for many images, of which not all predictions fit the memory."""
        for _, found in self.run(self.load.sources(images)):
            yield found

    def draw(self, image: Any, prediction: Prediction, score_thr: float = 0.3) -> Image.Image:
        """Draw a prediction on its image.

        Args:
            image: the path of the image, a Pillow image or an array.
            prediction: its prediction.
            score_thr: boxes with a lower score are not drawn.
        """
        images = [source.pixels for source in islice(self.load.sources(image), 2)]
        if [pixels.shape[:2] for pixels in images] != [(prediction.height, prediction.width)]:
            sizes = " and ".join(f"{pixels.shape[1]} x {pixels.shape[0]}" for pixels in images)
            raise UsageError(
                f"image: of {sizes} pixels; allowed: one image of {prediction.width} x {prediction.height}, as the "
                "prediction"
            )
        return draw(images[0], prediction, self.info.palette, score_thr)

    def run(
        self, sources: Iterable[Source], failed: Callable[[UsageError], None] | None = None
    ) -> Iterator[tuple[Source, Prediction]]:
        """Yield each image with its prediction; images that are run together are read before the first is yielded.

        Args:
            sources: the images.
            failed: called with the error for an image that does not suit the model, which is then left out; by default
                the error is raised.
        """

        def refuse(source: Source, error: UsageError) -> None:
            named = UsageError(f"image {source.name!r}: {error}")
            if failed is None:
                raise named from error
            failed(named)

        if self.tile is not None:
            tiled: Callable[[Source, int], Prediction]
            tiled = self._detect_tiles if self.info.task == "detection" else self._segment_tiles
            for source in sources:
                try:
                    found = tiled(source, self.tile)
                except UsageError as error:
                    refuse(source, error)
                else:
                    yield source, found
            return
        waiting: deque[Source] = deque()

        def prepared() -> Iterator[NetworkImage]:
            for source in sources:
                try:
                    image = prepare(source.pixels, self.info)
                except UsageError as error:
                    refuse(source, error)
                else:
                    waiting.append(source)
                    yield image

        for image, outputs in self._forward(prepared()):
            source = waiting.popleft()
            yield source, self.finish(source.name, image, outputs)

    def finish(self, name: str, image: NetworkImage, outputs: Outputs) -> Prediction:
        """Convert the outputs for one image to a prediction in pixels of the original image."""
        if self.info.task == "detection":
            return self._detections(name, image, outputs)
        if self.info.task == "segmentation":
            return self._segmentation(name, image, outputs)
        return self._classification(name, image, outputs)

    def _forward(self, images: Iterable[NetworkImage]) -> Iterator[tuple[NetworkImage, Outputs]]:
        """Yield each image with its outputs; images of the same size are run together."""
        images = iter(images)
        while chunk := list(islice(images, self.batch_size)):
            results: dict[int, Outputs] = {}
            for shape in dict.fromkeys(image.pixels.shape for image in chunk):
                same = [i for i, image in enumerate(chunk) if image.pixels.shape == shape]
                pixels = [chunk[i].pixels.transpose(2, 0, 1) for i in same]
                pixels += pixels[-1:] * ((self.info.shape[0] or len(same)) - len(same))  # fills a fixed batch
                found = self.session(np.ascontiguousarray(np.stack(pixels)))
                for place, i in enumerate(same):
                    results[i] = {name: values[place] for name, values in found.items()}
            for i, image in enumerate(chunk):
                yield image, results.pop(i)

    def _detections(self, name: str, image: NetworkImage, outputs: Outputs) -> Detections:
        height, width = image.original
        (across, down), classes = image.scale, self.info.classes
        boxes: np.ndarray = outputs["boxes"].astype(np.float32)
        labels = outputs["labels"].astype(np.int64)
        if len(labels) and labels.max() >= len(classes):
            raise UsageError(
                f"{self.session.file}: predicts class {labels.max()}; it names only {counted(len(classes), 'class')}"
            )
        scores = outputs["scores"].astype(np.float32)
        self._require_finite(boxes, scores)
        # Places with label -1 are unused. Objects may be found in the padding.
        there = (labels >= 0) & (boxes[:, 0] < image.width) & (boxes[:, 1] < image.height)
        boxes = boxes[there] / np.array([across, down, across, down], np.float32)
        regions: list[Region] | None = None
        if self.info.masks:  # a mask covers its whole box, also the part in the padding
            regions = [self._region(mask, boxes[i], image) for i, mask in enumerate(outputs["masks"][there])]
        np.clip(boxes, 0, np.array([width, height, width, height], np.float32), out=boxes)
        if regions is not None:
            for i, region in enumerate(regions):
                if not (boxes[i, 2:] > boxes[i, :2]).all():  # of a detector without boxes, such as SOLO
                    boxes[i] = region.box()
        return Detections(name, height, width, classes, boxes, scores[there], labels[there], regions)

    def _require_finite(self, *values: np.ndarray) -> None:
        if not all(np.isfinite(part).all() for part in values):
            raise UsageError(f"{self.session.file}: predicts NaN or infinite values; was it exported with NaN weights?")

    def _region(self, mask: np.ndarray, box: np.ndarray, image: NetworkImage) -> Region:
        height, width = image.original
        if self.info.masks == "box":
            return paste(mask, box, height, width, self.info.mask_threshold)
        part = image.height / image.pixels.shape[0], image.width / image.pixels.shape[1]
        return enlarge(mask, part, height, width, self.info.mask_threshold)

    def _segmentation(self, name: str, image: NetworkImage, outputs: Outputs) -> Segmentation:
        labels = outputs["labels"][: image.height, : image.width]
        return self._label_map(name, labels, image.original)

    def _label_map(self, name: str, labels: np.ndarray, original: tuple[int, int]) -> Segmentation:
        """Resize labels to the original image: each pixel takes the label at its centre."""
        if int(labels.max()) >= len(self.info.classes):
            raise UsageError(
                f"{self.session.file}: predicts class {labels.max()}; it names only "
                f"{counted(len(self.info.classes), 'class')}"
            )
        if labels.shape != original:
            rows, columns = (
                ((np.arange(size) * 2 + 1) * there) // (2 * size)
                for size, there in zip(original, labels.shape, strict=True)
            )
            labels = labels[rows][:, columns]
        return Segmentation(name, *original, self.info.classes, labels)

    def _classification(self, name: str, image: NetworkImage, outputs: Outputs) -> Classification:
        values = outputs["probabilities"].astype(np.float32)
        if values.shape != (len(self.info.classes),):
            raise UsageError(
                f"{self.session.file}: predicts {counted(values.size, 'probability', 'probabilities')}; it names "
                f"{counted(len(self.info.classes), 'class')}"
            )
        self._require_finite(values)
        return Classification(name, *image.original, self.info.classes, values)

    def _detect_tiles(self, source: Source, tile: int) -> Detections:
        """Detect on tiles of the original image."""
        height, width = source.pixels.shape[:2]
        corners = [(y, x) for y in tile_starts(height, tile, self.step) for x in tile_starts(width, tile, self.step)]
        images = (prepare(source.pixels[y : y + tile, x : x + tile], self.info) for y, x in corners)
        parts = []
        for (y, x), (image, outputs) in zip(corners, self._forward(images), strict=True):
            part = self._detections(source.name, image, outputs)
            part.boxes = part.boxes + np.array([x, y, x, y], np.float32)
            part.height, part.width = height, width
            if part.regions is not None:
                part.regions = [region.shifted(x, y) for region in part.regions]
            parts.append(part)
        return merge_tiles(parts)

    def _segment_tiles(self, source: Source, tile: int) -> Segmentation:
        """Segment tiles of the resized image; borders between tiles are in the middle of their overlaps."""
        whole = resize(source.pixels, self.info.resize)
        height, width = whole.shape[:2]
        rows, columns = _cells(height, tile, self.step), _cells(width, tile, self.step)
        cells = [(row, column) for row in rows for column in columns]
        crops = (whole[y : y + tile, x : x + tile] for (y, *_), (x, *_) in cells)
        images = (pad(crop, crop.shape[:2], self.info) for crop in crops)
        labels: np.ndarray | None = None
        for ((y, top, bottom), (x, left, right)), (_, outputs) in zip(cells, self._forward(images), strict=True):
            part = outputs["labels"]
            labels = np.empty((height, width), part.dtype) if labels is None else labels
            labels[top:bottom, left:right] = part[top - y : bottom - y, left - x : right - x]
        assert labels is not None  # an image has at least one tile
        return self._label_map(source.name, labels, (source.pixels.shape[0], source.pixels.shape[1]))


def _cells(length: int, tile: int, step: int) -> list[tuple[int, int, int]]:
    """Start of each tile along a side, and the range of pixels that are taken from it."""
    starts = tile_starts(length, tile, step)
    borders = [0, *((low + high + tile) // 2 for low, high in pairwise(starts)), length]
    return [(start, low, high) for start, (low, high) in zip(starts, pairwise(borders), strict=True)]
