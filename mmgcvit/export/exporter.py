"""Export of a trained model to a file, with a check that the file predicts what the model predicts."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from mmgcvit.apis.config import load_config
from mmgcvit.datasets.pipelines import loading_arguments
from mmgcvit.datasets.problems import data_sets
from mmgcvit.errors import ExportError, UsageError
from mmgcvit.export import formats
from mmgcvit.export.graph import ExportGraph, Preprocess
from mmgcvit.export.inputs import network_inputs
from mmgcvit.export.rules import InputRule, fit_rule, input_rule
from mmgcvit.registry import rename_old_types, type_name
from mmgcvit.runtime.metadata import ModelInfo
from mmgcvit.tasks import task_of
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.utils.files import require_file
from mmgcvit.version import __version__

MAX_CALIBRATION = 200  # batches that a file is quantized with


@dataclass(frozen=True)
class Exportable:
    """A trained model as a graph, with its description."""

    task: str
    model: Any
    graph: ExportGraph
    info: ModelInfo
    cfg: Config


@dataclass(frozen=True)
class Exported:
    """What :func:`export` has written.

    Attributes:
        file: the file.
        info: its description.
        seconds: time for capturing and writing.
    """

    file: Path
    info: ModelInfo
    seconds: float


def export(
    config: str | Path | Config,
    checkpoint: str,
    out: str | Path,
    shape: tuple[int, int] | None = None,
    dynamic: bool = False,
    batch: int | None = 1,
    half: bool = False,
    int8: Sequence[str | Path] | None = None,
    verify: Any = None,
    cfg_options: dict | None = None,
) -> Exported:
    """Export a detector, segmentor or classifier, from images to predictions, to one file.

    Args:
        config: a config file, or a config, which is not changed.
        checkpoint: file or URL.
        out: the file: ``.onnx``, ``.xml`` (OpenVINO, with a ``.bin`` beside it) or ``.pt2`` (``torch.export.load``).
            It appears only after it has been written and verified.
        shape: height and width of the input.
        dynamic: whether height and width may be any. By default they are if the config's test pipeline gives images of
            different sizes, else the size is that of the pipeline.
        batch: number of images of the input; None for any number.
        half: float16 in the network (``.onnx``), or for the stored weights (``.xml``).
        int8: images to quantize the network to 8 bits with (``.onnx`` and ``.xml``).
        verify: called with the :class:`Exportable` and the file before it appears; raises an ExportError to refuse it.
        cfg_options: values that override the config's, by dotted key.

    Returns:
        The file and its description.

    Raises:
        UsageError: an argument is not allowed.
        ExportError: the model cannot be exported, or does not pass ``verify``.

    Examples:
        >>> export("config.py", "work_dirs/demo/epoch_6.pth", "model.onnx", dynamic=True)
    """
    out = Path(out)
    _validate(out, shape, dynamic, batch, half, int8)
    model = open_model(config, checkpoint, shape, dynamic, batch, cfg_options)
    calibration = None if int8 is None else islice(network_inputs(model.info, int8), MAX_CALIBRATION)
    start = time.perf_counter()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
            target = Path(folder, out.name)
            write(model, target, half, calibration)
            seconds = time.perf_counter() - start
            if verify is not None:
                verify(model, target)
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == out.name):  # the main file last
                os.replace(file, out.parent / file.name)
    except OSError as error:
        raise UsageError(f"output {str(out)!r}: cannot be written: {error}") from error
    return Exported(out, model.info, seconds)


def _validate(
    out: Path, shape: tuple[int, int] | None, dynamic: bool, batch: int | None, half: bool, int8: Any
) -> None:
    if out.suffix not in formats.SUFFIXES:
        raise UsageError(f"output {str(out)!r}: suffix {out.suffix!r}; allowed: {', '.join(formats.SUFFIXES)}")
    if out.is_dir() or (out.parent.exists() and not out.parent.is_dir()):
        raise UsageError(f"output {str(out)!r}: {'is' if out.is_dir() else 'is not in'} a folder; allowed: a file")
    if shape is not None and dynamic:
        raise UsageError(f"--shape {shape[0]} {shape[1]} and --dynamic; allowed: one of them")
    if shape is not None and min(shape) < 32:
        raise UsageError(f"--shape {shape[0]} {shape[1]}; allowed: at least 32 pixels in each direction")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch {batch}; allowed: a number from 1, or 'dynamic'")
    if half and out.suffix == ".pt2":
        raise UsageError("--fp16 with a .pt2 file; allowed: .onnx, .xml")
    if int8 is not None and out.suffix == ".pt2":
        raise UsageError("--int8 with a .pt2 file; allowed: .onnx, .xml")
    if half and int8 is not None:
        raise UsageError("--fp16 and --int8; allowed: one of them")
    needed = [*formats.PACKAGES[out.suffix], *(["onnxruntime"] if half or int8 is not None else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{out.suffix} files need {', '.join(missing)}: pip install 'mmgcvit[export]'")
    if not hasattr(torch.export, "Dim") or not hasattr(torch.export.Dim, "DYNAMIC"):
        raise UsageError(f"torch {torch.__version__} cannot export whole models; allowed: 2.7 or newer")


def open_model(
    config: str | Path | Config,
    checkpoint: str,
    shape: tuple[int, int] | None = None,
    dynamic: bool = False,
    batch: int | None = 1,
    cfg_options: dict | None = None,
) -> Exportable:
    """Load a trained model for export; see :func:`export`.

    Raises:
        ExportError: the model cannot be exported.
    """
    require_file("checkpoint", checkpoint)
    if isinstance(config, Config):
        cfg, name = config.copy(), str(config.filename or "")
        rename_old_types(cfg)
        if cfg_options:
            cfg.merge_from_dict(cfg_options)
    else:
        cfg, name = load_config(config, cfg_options=cfg_options), str(config)
    task = task_of(cfg)
    dataset = next(data_sets((cfg.get("test_dataloader") or {}).get("dataset")), None)
    if dataset is None or not dataset.get("pipeline"):
        raise ExportError(f"config {name!r}: no test_dataloader with a pipeline, which says how images are resized")
    rule = input_rule(dataset["pipeline"])
    loading = loading_arguments(dataset["pipeline"])
    channels = int((cfg.model.get("backbone") or {}).get("in_channels", 3))
    trained = task.predictor(cfg, checkpoint, PredictionOptions("cpu")).trained
    model = trained.model.eval().requires_grad_(False)
    graph = task.export_graph(model, channels).eval()
    if loading.get("imdecode_backend") == "tifffile":  # channels as in the file
        graph.preprocess = Preprocess(model.data_preprocessor, channels, bgr=False)
    rule = fit_rule(rule, shape, dynamic)
    size = shape or (None if dynamic else rule.size)
    if size is not None and graph.unpadded and rule.resize.kind != "fixed":
        raise ExportError(
            f"--shape {size[0]} {size[1]}: images would be padded to this size, and {graph.unpadded}; allowed: "
            "--dynamic, or a test pipeline with Resize(keep_ratio=False)"
        )
    if size is None and graph.any_size:
        raise ExportError(
            f"{type_name(cfg.model)}: any height and width: {graph.any_size}; allowed: --shape HEIGHT WIDTH"
        )
    if batch is None and graph.any_batch:
        raise ExportError(f"{type_name(cfg.model)}: any batch size: {graph.any_batch}; allowed: --batch NUMBER")
    info = ModelInfo(
        task=task.name,
        classes=trained.classes,
        palette=trained.palette,
        channels=channels,
        dtype=_dtype(loading),
        shape=(batch, *(size or (None, None))),
        resize=rule.resize,
        pad=_pad_values(rule, graph, channels),
        exif=not str(loading.get("color_type", "")).endswith("ignore_orientation"),
        value_range=None if (values := loading.get("value_range")) is None else (float(values[0]), float(values[1])),
        masks=graph.masks,
        mask_threshold=graph.mask_threshold,
        model=type_name(cfg.model),
        source=(Path(name).name, Path(checkpoint).name),
        version=__version__,
    )
    info.validate(f"config {name!r}")
    return Exportable(task.name, model, graph, info, cfg)


def _dtype(loading: dict[str, Any]) -> str:
    """Numbers of the input: float32 if images are loaded with all their bits, else uint8."""
    if loading.get("imdecode_backend") == "tifffile":
        return "float32"
    unchanged = str(loading.get("color_type", "color")).startswith(
        "unchanged"
    )  # else the loader reduces them to 8 bits
    return "float32" if loading.get("to_float32") and unchanged else "uint8"


def _pad_values(rule: InputRule, graph: ExportGraph, channels: int) -> tuple[float, ...]:
    if rule.pad is not None:
        return (rule.pad,) * channels
    return tuple(round(value, 3) for value in graph.preprocess.pad_values)


def write(model: Exportable, path: Path, half: bool = False, calibration: Any = None) -> None:
    """Capture a model and write it to a file, in the format of its suffix; see :func:`export`."""
    if path.suffix == ".pt2":
        formats.write_pt2(model.graph, model.info, path)
    elif path.suffix == ".onnx":
        formats.write_onnx(model.graph, model.info, path, half, calibration)
    else:
        onnx_file = path.with_suffix(".onnx")
        formats.write_onnx(model.graph, model.info, onnx_file, calibration=calibration)
        formats.write_openvino(onnx_file, model.info, path, half)
        onnx_file.unlink()
