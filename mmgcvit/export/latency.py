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

from mmgcvit.backbone.gcvit import GCViT
from mmgcvit.datasets.images import unreadable
from mmgcvit.errors import BenchmarkError
from mmgcvit.export.exporter import Exportable, open_model
from mmgcvit.export.program import ProgramSession
from mmgcvit.registry import type_name
from mmgcvit.runtime.predictor import Predictor
from mmgcvit.runtime.resize import prepare
from mmgcvit.utils.inputs import Input, list_inputs
from mmgcvit.utils.text import counted

STAGES = ("prepare", "network", "post-processing")
CAPTION = (
    "prepare: reading and resizing. Of a file, network is the whole graph, with heads and NMS, and post-processing is "
    "the conversion to pixels of the image. Of a detector or segmentor in PyTorch, network is normalization, backbone "
    "and neck, and post-processing the rest: heads, NMS, and the conversion. Compare their totals."
)
Times = tuple[float, float, float]  # seconds of each stage
Run = Callable[[Input], Times]  # predicts on an image


@dataclass
class Latency:
    """Times of one model.

    Attributes:
        name: the model.
        seconds: time of each stage, by round and image.
        first: seconds that the very first image took, with compilation and other preparations; it does not count.
    """

    name: str
    seconds: list[Times] = field(default_factory=list)
    first: float = 0.0

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
        files: ONNX or OpenVINO files; or ``.pt2`` files, which are programs.
        images: images and folders.
        config, checkpoint: the model; without them, only files are measured.
        compiled: whether to measure the model with compiled blocks of the backbone, too.
        rounds: how often each image is measured; one more round comes first and does not count.
        threads: number of threads; by default the libraries' choice.

    Raises:
        BenchmarkError: only one of ``config`` and ``checkpoint`` is given, or a file takes several images at once only.
        UsageError: a file or image cannot be opened.
    """
    if (config is None) != (checkpoint is None):
        raise BenchmarkError(f"config={config}, checkpoint={checkpoint}; allowed: both, or none")
    if threads is not None:
        torch.set_num_threads(threads)
    models: dict[str, Run] = {}
    if config is not None and checkpoint is not None:
        model = open_model(config, checkpoint)
        models["PyTorch"] = _torch_run(model)
        if compiled:
            other = open_model(config, checkpoint)
            _compile(other.model.backbone)
            models["PyTorch, compiled blocks"] = _torch_run(other)
    for file in files:
        path = Path(file)
        opened = ProgramSession(path) if path.suffix == ".pt2" and path.is_file() else file
        models[path.name] = _file_run(Predictor(opened, threads))
    found, _ = list_inputs(images, None, videos=False)
    for entry in found:
        if reason := unreadable(entry.path.read_bytes()):
            raise BenchmarkError(f"image {str(entry.path)!r}: {reason}; remove it, or name other images")
    results = {name: Latency(name) for name in models}
    for turn in range(rounds + 1):
        for entry in found:
            for name, run in models.items():
                times = run(entry)
                if turn:
                    results[name].seconds.append(times)
                elif not results[name].first:
                    results[name].first = sum(times)
    return list(results.values())


def _compile(backbone: torch.nn.Module) -> None:
    """Compile the blocks of a GC ViT, which is many times faster than compiling all of it; else the whole backbone."""
    blocks = (
        [block for stage in backbone.stages for block in stage.blocks] if isinstance(backbone, GCViT) else [backbone]
    )
    for block in blocks:
        block.compile(dynamic=True)


def _file_run(predictor: Predictor) -> Run:
    if (batch := predictor.info.shape[0] or 1) > 1:
        raise BenchmarkError(
            f"{predictor.session.file}: takes batches of {counted(batch, 'image')} only; allowed: files exported with "
            "--batch 1 or --batch dynamic, as images are measured one by one"
        )

    def run(entry: Input) -> Times:
        start = time.perf_counter()
        image = prepare(predictor.load.file(entry).pixels, predictor.info)
        pixels = np.ascontiguousarray(image.pixels.transpose(2, 0, 1)[None])
        ready = time.perf_counter()
        outputs = predictor.session(pixels)
        done = time.perf_counter()
        predictor.finish(entry.name, image, {name: values[0] for name, values in outputs.items()})
        return ready - start, done - ready, time.perf_counter() - done

    return run


def _torch_run(model: Exportable) -> Run:
    pipeline = model.cfg.test_dataloader.dataset.pipeline
    transform = Compose([step for step in pipeline if "Annotations" not in type_name(step)])
    network = _Stopwatch()
    if model.task == "classification":  # its head is one linear layer, and nothing follows
        model.model.test_step = network.timed(model.model.test_step)
    else:
        model.model.data_preprocessor.forward = network.timed(model.model.data_preprocessor.forward)
        model.model.extract_feat = network.timed(model.model.extract_feat)

    def read(entry: Input) -> Any:
        if model.task == "classification":
            with entry.path.open("rb") as file:
                sample = transform(dict(file=file, img_path=str(entry.path), targets=0, sample_idx=0))
            return dict(inputs=sample["inputs"][None])
        return pseudo_collate([transform(dict(img_path=str(entry.path), img_id=0))])

    def run(entry: Input) -> Times:
        start = time.perf_counter()
        data = read(entry)
        ready, network.seconds = time.perf_counter(), 0.0
        with torch.no_grad():
            model.model.test_step(data)
        return ready - start, network.seconds, time.perf_counter() - ready - network.seconds

    return run


class _Stopwatch:
    """Adds up the time that functions take.

    Attributes:
        seconds: the time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable) -> Callable:
        """Return the function, with its time added at each call."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return call


def table(results: Sequence[Latency]) -> Table:
    """Return the results as a table, with ratios to the first model."""
    found = Table(title="milliseconds per image, median", caption=CAPTION)
    for name in ("model", *STAGES, "total", "ratio", "first image"):
        found.add_column(name, justify="left" if name == "model" else "right")
    base = results[0].medians()[-1]
    for result in results:
        medians = result.medians()
        found.add_row(result.name, *(f"{value:.1f}" for value in medians), f"{medians[-1] / base:.2f}",
                      f"{1000 * result.first:.0f}")  # fmt: skip
    return found
