"""``mmgcvit export``: export a trained model to one file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import DictAction
from rich.console import Console
from rich.table import Table

from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.engine.progress import UNKNOWN, short_output
from mmgcvit.errors import UsageError
from mmgcvit.export.exporter import Exportable, export
from mmgcvit.export.formats import SUFFIXES
from mmgcvit.runtime.metadata import ModelInfo
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.paths import short_path
from mmgcvit.utils.text import counted, wide_console

DATA_IMAGES = 4  # images of the test data that a file is compared on, unless others are given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="config file, or e.g. mmgcvit::detection/... for a config of the package")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    parser.add_argument("out", help=f"file to write: {', '.join(SUFFIXES)} (ONNX, OpenVINO, torch.export)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--shape", type=int, nargs=2, metavar=("H", "W"), help="height and width of the input")
    size.add_argument(
        "--dynamic",
        action="store_true",
        help="any height and width (default: if the test pipeline gives images of different sizes)",
    )
    parser.add_argument(
        "--batch", type=_batch, default=1, metavar="N", help="images per batch, or 'dynamic' for any (default: 1)"
    )
    parser.add_argument(
        "--fp16", action="store_true", help="float16: in the network (.onnx), or for the stored weights (.xml)"
    )
    parser.add_argument(
        "--int8",
        nargs="+",
        metavar="IMAGES",
        help="quantize to 8 bits (.onnx, .xml), calibrated on these images or folders",
    )
    parser.add_argument(
        "--verify",
        nargs="+",
        metavar="IMAGES",
        help="images or folders that the file is compared with the model on; or 'val' to compute the metrics of both "
        f"on the validation data, too (default: {DATA_IMAGES} images of the test data, else made-up images)",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, default={}, help="override values of the config: key=value"
    )
    add_trust_argument(parser)


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number, or 'dynamic'") from None


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    console = wide_console()
    with short_output(), trust_checkpoints(args.trust_checkpoint):
        verification = Verification(args.verify, args.fp16, bool(args.int8), console)
        verification.validate(Path(args.out))
        done = export(
            args.config,
            args.checkpoint,
            args.out,
            tuple(args.shape) if args.shape else None,
            args.dynamic,
            args.batch,
            args.fp16,
            args.int8,
            verification,
            args.cfg_options,
        )
    size = done.file.stat().st_size
    if done.file.suffix == ".xml":
        size += done.file.with_suffix(".bin").stat().st_size
    console.print(
        f"{short_path(done.file)}: {size / 1e6:.1f} MB, {describe(done.info)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if done.file.suffix != ".pt2":
        console.print(
            f"Predict without PyTorch: python -m mmgcvit.runtime {short_path(done.file)} IMAGES",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return 0


def describe(info: ModelInfo) -> str:
    """Describe input and outputs of a file in one line."""
    batch, height, width = ("any" if size is None else str(size) for size in info.shape)
    size = "any size" if height == width == "any" else f"{height} x {width}"
    names = ", ".join(info.outputs)
    return f"{info.model}: batch {batch}, {counted(info.channels, 'channel')}, {size}, {info.dtype} -> {names}"


class Verification:
    """Compares a file with its model, prints the differences, and refuses a file that differs too much.

    Args:
        images: images or folders, or 'val'; None: images of the test data, else made-up ones.
        half, quantized: whether the file has less precision than the model.
        console: where the table is printed.
    """

    def __init__(self, images: Sequence[str] | None, half: bool, quantized: bool, console: Console) -> None:
        self.with_metrics = bool(images) and "val" in (images or ())
        self.images = [image for image in images or () if image != "val"]
        self.half, self.quantized, self.console = half, quantized, console

    def validate(self, out: Path) -> None:
        """Raise a UsageError if what is asked for is not possible, before the export."""
        if self.with_metrics and out.suffix == ".pt2":
            raise UsageError("--verify val with a .pt2 file; allowed: .onnx, .xml")
        for image in self.images:
            if not Path(image).exists():
                raise UsageError(f"--verify {image}: no such image or folder")

    def __call__(self, model: Exportable, file: Path) -> None:
        """Verify a file.

        Raises:
            ExportError: it differs from the model by more than is tolerated.
        """
        from mmgcvit.export import verify
        from mmgcvit.export.evaluate import evaluate

        batches, source = self._batches(model)
        allowed = verify.QUANTIZED if self.quantized else verify.HALF if self.half else verify.Tolerance()
        found = verify.compare(model, verify.open_file(file), batches, allowed)
        sizes = ", ".join(f"{height} x {width}" for height, width in dict.fromkeys(found.sizes))
        self.console.print(
            f"{file.name} against the model, {counted(found.images, 'input')} from {source}, {sizes}:",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        table = Table()
        for name in ("difference", "found", "allowed"):
            table.add_column(name)
        for name, value, key in found.rows(model.task, bool(model.info.masks)):
            table.add_row(name, value, "" if self.quantized else allowed.text(key))
        self.console.print(table)
        if model.task == "detection" and not found.detections:
            self.console.print(
                "Nothing was detected, so nothing was compared: --verify with images that have objects.", soft_wrap=True
            )
        verify.require_equal(found, allowed, file.name)
        if self.with_metrics:
            ours, files = evaluate(model, file)
            self._print_metrics(ours, files)
            if not self.quantized:
                verify.require_metrics(ours, files, file.name)
        elif self.quantized:
            self.console.print("--verify val states the loss in the metrics of the validation data.", soft_wrap=True)

    def _batches(self, model: Exportable) -> tuple[Sequence[np.ndarray] | Iterator[np.ndarray], str]:
        from mmgcvit.export.inputs import made_up_images, network_inputs

        if self.images:
            return network_inputs(model.info, self.images), "the given images"
        paths = list(islice(data_images(model.cfg), DATA_IMAGES))
        if paths:
            return network_inputs(model.info, paths), "images of the test data"
        return made_up_images(model.info), "made-up images (--verify IMAGES for real ones)"

    def _print_metrics(self, ours: dict[str, float], file: dict[str, float]) -> None:
        self.console.print("Validation data:")
        table = Table()
        for name in ("metric", "model", "file", "difference"):
            table.add_column(name)
        for name, value in ours.items():
            if value == UNKNOWN == file[name]:
                continue
            table.add_row(name, f"{value:.4f}", f"{file[name]:.4f}", f"{file[name] - value:+.4f}")
        self.console.print(table)


def data_images(cfg: Any) -> Iterator[Path]:
    """Yield the image files of a config's test data; none if the data is not there."""
    from mmengine.registry import DATASETS, init_default_scope

    from mmgcvit.engine.evaluation import image_paths

    init_default_scope(cfg.get("default_scope", "mmengine"))
    try:
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        yield from filter(Path.is_file, image_paths(dataset))
    except Exception:  # data sets raise many types of errors if their files are missing
        return
