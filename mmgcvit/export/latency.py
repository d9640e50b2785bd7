"""Time that exported files and their model take for an image, from the image file to the prediction."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from rich.table import Table

from mmgcvit.errors import BenchmarkError
from mmgcvit.export.exporter import Exportable, open_model
from mmgcvit.runtime.predictor import Predictor
from mmgcvit.runtime.resize import prepare
from mmgcvit.utils.inputs import list_inputs

#: What is measured: reading, resizing; the model with its post-processing; conversion to the size of the image.
STAGES = ("prepare", "predict", "finish")
Steps = tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]


@dataclass
class Latency:
    """Times of one model.

    Attributes:
        name: the model.
        seconds: time of each stage, by round and image.
    """

    name: str
    seconds: list[tuple[float, float, float]] = field(default_factory=list)

    def medians(self) -> list[float]:
        """Median of each stage, and of their sum, in milliseconds."""
        stages = [statistics.median(times) for times in zip(*self.seconds, strict=True)]
        return [1000 * value for value in [*stages, statistics.median(map(sum, self.seconds))]]


def measure(
    files: Sequence[str | Path],
    images: Sequence[str | Path],
    config: str | None = None,
    checkpoint: str | None = None,
    compiled: bool = False,
    rounds: int = 5,
    threads: int | None = None,
) -> list[Latency]:
    """Measure exported files, one image at a time, in turn with their model in PyTorch.

    Args:
        files: ONNX or OpenVINO files.
        images: images and folders.
        config, checkpoint: the model; without them, only files are measured.
        compiled: whether to measure the model with a compiled backbone, too.
        rounds: how often each image is measured; one more round comes first and does not count.
        threads: number of threads; by default the libraries' choice.

    Raises:
        BenchmarkError: only one of ``config`` and ``checkpoint`` is given.
        UsageError: a file or image cannot be opened.
    """
    if (config is None) != (checkpoint is None):
        raise BenchmarkError(f"config={config}, checkpoint={checkpoint}; allowed: both, or none")
    if threads is not None:
        torch.set_num_threads(threads)
    models: dict[str, Steps] = {}
    if config is not None and checkpoint is not None:
        model = open_model(config, checkpoint)
        models["PyTorch"] = _torch_steps(model)
        if compiled:
            other = open_model(config, checkpoint)
            other.model.backbone.compile(dynamic=True)
            models["PyTorch, backbone compiled"] = _torch_steps(other)
    for file in files:
        models[Path(file).name] = _file_steps(Predictor(file, threads))
    found, _ = list_inputs(images, "", videos=False)
    results = {name: Latency(name) for name in models}
    for turn in range(rounds + 1):
        for entry in found:
            for name, steps in models.items():
                times = _timed(steps, entry)
                if turn:
                    results[name].seconds.append(times)
    return list(results.values())


def _timed(steps: Steps, value: Any) -> tuple[float, float, float]:
    times = []
    for step in steps:
        start = time.perf_counter()
        value = step(value)
        times.append(time.perf_counter() - start)
    return times[0], times[1], times[2]


def _file_steps(predictor: Predictor) -> Steps:
    def read(entry: Any) -> Any:
        image = prepare(predictor.load.file(entry).pixels, predictor.info)
        batch = np.ascontiguousarray(image.pixels.transpose(2, 0, 1)[None])
        return image, np.repeat(batch, predictor.info.shape[0] or 1, axis=0)

    def run(prepared: Any) -> Any:
        image, batch = prepared
        return image, {name: values[0] for name, values in predictor.session(batch).items()}

    return read, run, lambda found: predictor.finish("", *found)


def _torch_steps(model: Exportable) -> Steps:
    """Stages of the model in PyTorch; mmdet and mmseg convert predictions to the size of the image themselves."""
    pipeline = [step for step in model.cfg.test_dataloader.dataset.pipeline if "Annotations" not in step["type"]]
    transform = Compose(pipeline)

    def read(entry: Any) -> Any:
        if model.task == "classification":
            with entry.path.open("rb") as file:
                return pseudo_collate([transform(dict(file=file, img_path=str(entry.path), targets=0, sample_idx=0))])
        return pseudo_collate([transform(dict(img_path=str(entry.path), img_id=0))])

    def run(data: Any) -> Any:
        with torch.no_grad():
            if model.task == "classification":
                data = dict(inputs=torch.stack(data["inputs"]))
            return model.model.test_step(data)

    return read, run, lambda found: found


def table(results: Sequence[Latency]) -> Table:
    """Return the results as a table, with ratios to the first model."""
    found = Table(title="milliseconds per image, median")
    for name in ("model", *STAGES, "total", "ratio"):
        found.add_column(name, justify="left" if name == "model" else "right")
    base = results[0].medians()[-1]
    for result in results:
        medians = result.medians()
        found.add_row(result.name, *(f"{value:.1f}" for value in medians), f"{medians[-1] / base:.2f}")
    return found
