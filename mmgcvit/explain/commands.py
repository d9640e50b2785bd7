"""Figures of what a trained model attends to, as made by ``mmgcvit explain``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from mmengine.config import Config
from PIL import Image
from torch import Tensor

from mmgcvit.apis.inference import load_predictor
from mmgcvit.backbone import GCViT
from mmgcvit.errors import ExportError, UsageError
from mmgcvit.explain.attention import AttentionMap, attention_maps, check_index, find_backbone
from mmgcvit.explain.drawing import Canvas, sheet
from mmgcvit.explain.maps import CAMS, cam, feature_maps, main_stage, pca_colours, stage_with_places
from mmgcvit.runtime.results import write_drawing
from mmgcvit.tasks.base import NetworkInput, PredictionOptions, Predictor, Task
from mmgcvit.tasks.sources import Source, read
from mmgcvit.utils.files import require_file
from mmgcvit.utils.inputs import Input, list_inputs

Point = tuple[float, float]  # x, y in pixels of the original image
ATTENTION_STAGE = 2  # its windows are the largest


@dataclass(frozen=True)
class Scene:
    """An image, and what is asked about it.

    Attributes:
        task: task of the model.
        model: the predictor with the model.
        backbone: its GC ViT.
        place: the image as the network gets it.
        canvas: the image to draw on.
        at: the point that was asked for; None if there was none.
        stage: the stage that was asked for; None for the default of each method.
    """

    task: Task
    model: Predictor
    backbone: GCViT
    place: NetworkInput
    canvas: Canvas
    at: Point | None
    stage: int | None

    def attention(self, is_global: bool) -> AttentionMap:
        """Return the attention of the last local or global block of the stage.

        Raises:
            UsageError: the stage has no such block.
        """
        stage = self.stage
        if stage is None:
            stage = stage_with_places(self.place.image, min(ATTENTION_STAGE, len(self.backbone.stages) - 1))
        depth = len(self.backbone.stages[stage].blocks)
        blocks = [block for block in range(depth) if (block % 2 == 1) == is_global]
        if not blocks:
            deep = [str(i) for i, part in enumerate(self.backbone.stages) if len(part.blocks) > 1]
            raise UsageError(f"stage={stage}: has no global attention; allowed: {', '.join(deep)}")
        return attention_maps(self.backbone, self.place.image, stage, blocks[-1])


def _global(scene: Scene) -> Image.Image:
    """Attention that each token receives from the global query, the mean of all heads."""
    found = scene.attention(is_global=True)
    values = _received(found)
    title = f"global query: stage {found.stage}, block {found.block}, mean of {len(values)} heads"
    title += _to_padding(scene, found, found.received()[0].mean(0))
    return scene.canvas.heat(values.mean(0), found.stride, title, " x uniform")


def _heads(scene: Scene) -> Image.Image:
    """Attention that each token receives from the global query, one figure per head with the same colours."""
    found = scene.attention(is_global=True)
    values = _received(found)
    weights = found.received()[0]
    figures = []
    for head, heat in enumerate(values):
        title = f"global query, head {head}: stage {found.stage}, block {found.block}"
        title += _to_padding(scene, found, weights[head])
        figures.append(scene.canvas.heat(heat, found.stride, title, " x uniform", float(values.max())))
    return sheet(figures, columns=math.ceil(len(figures) ** 0.5))


def _received(found: AttentionMap) -> np.ndarray:
    """Attention received by each token, as a multiple of what it would be if all tokens received the same."""
    return found.received()[0].cpu().numpy() * found.regions[0].window ** 2


def _to_padding(scene: Scene, found: AttentionMap, weights: Tensor) -> str:
    """Line with the share of the attention that goes to padding, which a figure does not show.

    Args:
        scene: the image.
        found: the attention.
        weights: (H, W), attention to each token; a window and its padding sum to 1. Windows without any do not count.

    Returns:
        The mean of all windows, weighted by their tokens of the image, as a text.
    """
    rows, columns = (-(-side // found.stride) for side in scene.place.size)
    window, total, padding = found.regions[0].window, 0, 0.0
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            part = weights[top : min(top + window, rows), left : min(left + window, columns)]
            if part.any():
                total += part.numel()
                padding += part.numel() * (1 - float(part.sum()))
    return f"\n{100 * max(padding, 0.0) / max(total, 1):.0f} % to padding"


def _local(scene: Scene) -> Image.Image:
    """Attention of the token at a point over its window."""
    found = scene.attention(is_global=False)
    height, width = scene.canvas.size
    point = scene.at or ((width - 1) // 2, (height - 1) // 2)
    x, y = scene.place.place_of(point[0] + 0.5, point[1] + 0.5)
    if not (0 <= x < scene.place.image.shape[3] and 0 <= y < scene.place.image.shape[2]):
        raise UsageError(f"x={point[0]:g}, y={point[1]:g}: outside of the part of the image that the network gets")
    row, column = int(y // found.stride), int(x // found.stride)
    values = np.full((found.height, found.width), np.nan, np.float32)
    window = found.window_of(row, column)
    weights = found.of_token(row, column)[0].mean(0)
    values[window] = weights.cpu().numpy()[window] * found.regions[0].window ** 2
    title = f"attention of the marked token: stage {found.stage}, block {found.block}, mean of all heads"
    title += _to_padding(scene, found, weights)
    return scene.canvas.heat(values, found.stride, title, " x uniform", point=point)


def _features(scene: Scene) -> Image.Image:
    """The feature map of each stage, its three principal components as red, green and blue."""
    figures = []
    for stage, features in enumerate(feature_maps(scene.backbone, scene.place.image)):
        if scene.stage in (None, stage):
            stride = 4 * 2**stage
            rows, columns = (-(-side // stride) for side in scene.place.size)
            colours = pca_colours(features[0], rows, columns)
            figures.append(scene.canvas.colours(colours, stride, f"features of stage {stage}, PCA"))
    return figures[0] if len(figures) == 1 else sheet(figures, 2, max(figures[0].size))


def _cam(method: str, name: str) -> Callable[[Scene], Image.Image]:
    def draw(scene: Scene) -> Image.Image:
        trained = scene.model.trained
        target = scene.task.cam_target(trained, scene.place, scene.at)
        stage = main_stage(trained.model, scene.place.image, target) if scene.stage is None else scene.stage
        heat = cam(trained.model, scene.place.image, target, method, stage)
        title = f"{name}: {target.title}, stage {stage}" if method != "eigencam" else f"{name}: stage {stage}"
        box = target.box if method != "eigencam" else None  # EigenCAM does not depend on the box
        return scene.canvas.heat(heat, 1, title, "", 1.0, smooth=True, box=box, point=scene.at)

    draw.__doc__ = f"{name} of the prediction."
    return draw


METHODS: dict[str, Callable[[Scene], Image.Image]] = {
    "global": _global,
    "heads": _heads,
    "local": _local,
    "features": _features,
    **{method: _cam(method, name) for method, name in CAMS.items()},
}


def default_methods(task: Task) -> list[str]:
    """Return the methods that suit a task; class activation maps only if it has scores and grad-cam is installed.

    Grad-CAM for classifiers; HiResCAM for detectors and segmentors, as boxes and pixels depend on a part of the image.
    """
    found = task.has_scores and importlib.util.find_spec("pytorch_grad_cam") is not None
    other = "hirescam" if task.name == "classification" else "gradcam"
    return [name for name in METHODS if name != other and (found or name not in CAMS)]


def make_scene(
    task: Task, model: Predictor, source: Source, at: Point | None = None, stage: int | None = None
) -> Scene:
    """Return what the :data:`METHODS` make a figure of.

    Args:
        task: task of the model.
        model: a predictor of one view, whose model has a GC ViT.
        source: the image.
        at: see :func:`explain`.
        stage: see :func:`explain`.

    Raises:
        UsageError: the point is outside of the image, or the model has no GC ViT.
        ExportError: the test pipeline changes images in a way that cannot be traced back.
    """
    height, width = source.pixels.shape[:2]
    if at is not None and not (0 <= at[0] < width and 0 <= at[1] < height):
        allowed = f"x from 0 to {width - 1}, y from 0 to {height - 1}"
        raise UsageError(f"input {source.name!r}: x={at[0]:g}, y={at[1]:g}; allowed: {allowed}")
    backbone = find_backbone(model.trained.model.eval())
    place = model.network_input(source)
    return Scene(task, model, backbone, place, Canvas(source.display, place), at, stage)


def explain(
    config: str | Path | Config,
    checkpoint: str,
    inputs: Sequence[str | Path],
    out_dir: str | Path,
    methods: Sequence[str] | None = None,
    stage: int | None = None,
    at: Point | None = None,
    device: str | None = None,
) -> list[Path]:
    """Write figures of what a model with a GC ViT attends to: a PNG for each image and method, and a sheet of all.

    Args:
        config: a config file of a detector, segmentor or classifier, or a config, which is not changed.
        checkpoint: file or URL.
        inputs: images, and folders with images.
        out_dir: folder to write to: ``IMAGE_METHOD.png``, and ``sheet.png`` with a row per image.
        methods: keys of :data:`METHODS`; by default :func:`default_methods`.
        stage: index of the stage, from 0. By default attention is that of stage 2, class activation maps are those of
            the map that changes the prediction most, and features are those of all stages; earlier ones for images so
            small that these maps have fewer than 4 x 4 tokens.
        at: x and y in pixels of the image: the token whose local attention is shown, the box of a detector, the class
            of a segmentor. By default the centre of the image, the box with the highest score, the largest class.
        device: 'cpu', 'cuda:0', ...; by default a GPU if there is one.

    Returns:
        The files, the sheet last.

    Raises:
        UsageError: the config, the checkpoint or an input cannot be used; the backbone is no GC ViT; a method or the
            stage does not exist; or, after the others are done, some figures could not be made, because an image cannot
            be decoded, the point is outside of it, or nothing is detected there.
    """
    unknown = [name for name in methods or () if name not in METHODS]
    if unknown:
        raise UsageError(f"method={unknown[0]!r}; allowed: {', '.join(METHODS)}")
    require_file("checkpoint", checkpoint)
    entries, _ = list_inputs(inputs, out_dir, videos=False)
    task, model = load_predictor(config, checkpoint, PredictionOptions(device))
    chosen = list(dict.fromkeys(methods or default_methods(task)))
    backbone = find_backbone(model.trained.model)
    if stage is not None:
        check_index("stage", stage, len(backbone.stages))
    folder, names = Path(out_dir), _file_names(entries)
    files: list[Path] = []
    rows: list[list[Image.Image]] = []
    failures: list[str] = []
    for entry in entries:
        try:
            scene = make_scene(task, model, read(entry, model.reader), at, stage)
        except (UsageError, ExportError) as error:
            failures.append(str(error))
            continue
        rows.append([])
        for name in chosen:
            try:
                figure = METHODS[name](scene)
            except UsageError as error:
                failures.append(f"input {str(entry.path)!r}: {name}: {error}")
                continue
            files.append(folder / f"{names[entry.name]}_{name}.png")
            write_drawing(files[-1], figure)
            rows[-1].append(figure)
    if files:
        width = max(map(len, rows))
        empty = Image.new("RGB", (1, 1))
        cells = [figure for row in rows for figure in [*row, *[empty] * (width - len(row))]]
        files.append(folder / "sheet.png")
        write_drawing(files[-1], sheet(cells, width))
    if failures:
        raise UsageError("\n".join([*failures, *([f"the other figures are in {folder}"] if files else [])]))
    return files


def _file_names(entries: Sequence[Input]) -> dict[str, str]:
    """Relative path of the figures of each image, without its suffix if that is unique."""
    short = {entry.name: str(PurePosixPath(entry.name).with_suffix("")) for entry in entries}
    taken = list(short.values())
    return {name: stem if taken.count(stem) == 1 else name for name, stem in short.items()}
