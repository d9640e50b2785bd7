"""``mmgcvit benchmark``: measure time and memory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmgcvit import benchmark
from mmgcvit.engine.progress import short_output
from mmgcvit.errors import BenchmarkError
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.text import wide_console


def shape(text: str) -> tuple[int, int]:
    """Parse 'HxW' with both at least 1: '800x1344' -> (800, 1344)."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(s.isdigit() and int(s) for s in sides):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: HEIGHTxWIDTH, e.g. 800x1344")
    return int(sides[0]), int(sides[1])


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: an integer of at least 1")
    return int(text)


def measure_files(args: argparse.Namespace) -> None:
    """Measure exported files and print a table."""
    from mmgcvit.checkpoint import trust_checkpoints
    from mmgcvit.export import latency

    if not args.images:
        raise BenchmarkError("--export without --images; allowed: with images or folders")
    with short_output(), trust_checkpoints(args.trust_checkpoint):
        results = latency.measure(
            args.export, args.images, args.config, args.checkpoint, args.compile, args.rounds, args.threads
        )
    wide_console().print(latency.table(results))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--models", nargs="+", default=["gcvit-tiny", "swin-t"], metavar="MODEL", help=benchmark.ALLOWED
    )
    parser.add_argument(
        "--baseline", help="model to compare the others with (default: the last; with --ablate the first)"
    )
    parser.add_argument("--ablate", action="store_true", help="also measure each GC ViT with each kernel disabled")
    parser.add_argument(
        "--modes", nargs="+", default=["forward"], choices=benchmark.MODES,
        help="forward passes, training steps, or both (default: forward)",
    )  # fmt: skip
    parser.add_argument(
        "--shapes", nargs="+", type=shape, default=[(800, 1344)], metavar="HxW",
        help="heights and widths of the images (default: 800x1344)",
    )  # fmt: skip
    parser.add_argument("--batch", type=positive, default=1, help="images per batch (default: 1)")
    parser.add_argument(
        "--dtype", choices=benchmark.DTYPES, default="float32", help="float32, or the dtype for autocast"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda:0, ... (default: cpu)")
    parser.add_argument("--compile", action="store_true", help="use torch.compile")
    parser.add_argument("--channels-last", action="store_true", help="images in the memory format channels_last")
    parser.add_argument("--rounds", type=positive, default=5, help="number of measurements per model (default: 5)")
    parser.add_argument(
        "--warmup", type=positive, default=1, help="number of runs before the first measurement (default: 1)"
    )
    parser.add_argument(
        "--isolate", action="store_true", help="run each measurement in a new process, and report its peak memory"
    )
    parser.add_argument("--threads", type=positive, help="number of threads (default: the library's choice)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the results to this file, too")
    files = parser.add_argument_group("exported files (in place of --models)")
    files.add_argument("--export", nargs="+", metavar="FILE", help="measure files of `mmgcvit export`, image by image")
    files.add_argument("--images", nargs="+", help="images or folders")
    files.add_argument("--config", help="config of their model, to measure it in PyTorch, too")
    files.add_argument("--checkpoint", help="its checkpoint")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if args.export:
        measure_files(args)
        return 0
    baseline = args.baseline or (args.models[0] if args.ablate else args.models[-1])
    if baseline not in args.models:
        raise BenchmarkError(f"--baseline {baseline}; allowed: one of --models, {', '.join(args.models)}")
    models = benchmark.ablations(args.models) if args.ablate else args.models
    settings = benchmark.Settings(
        args.batch,
        args.dtype,
        args.device,
        args.compile,
        args.channels_last,
        args.rounds,
        args.warmup,
        args.isolate,
        args.threads,
    )

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with short_output():
        results = benchmark.measure(models, args.modes, args.shapes, settings, progress)
    benchmark.print_results(results, settings, baseline if len(models) > 1 else None)
    if args.out:
        benchmark.write_json(args.out, results, settings)
    return 0
