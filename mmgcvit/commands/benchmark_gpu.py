"""``mmgcvit benchmark-gpu``: measure on a GPU within a time limit. It needs torch, timm and mmengine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmgcvit.gpu_benchmark.cases import plan, quick_plan
from mmgcvit.gpu_benchmark.measure import Effort
from mmgcvit.gpu_benchmark.run import read
from mmgcvit.gpu_benchmark.run import run as run_cases
from mmgcvit.gpu_benchmark.table import markdown


def positive(text: str) -> float:
    """Parse a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number above 0")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.epilog = "each result is written at once, and --resume measures what was left out; prints Markdown"
    parser.add_argument(
        "--out", type=Path, default=Path("work_dirs/bench/gpu.json"), metavar="FILE.json",
        help="file for the results (default: work_dirs/bench/gpu.json)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=positive, default=9.0, help="time limit (default: 9)")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--resume", action="store_true", help="keep what FILE.json has, and measure the rest")
    parser.add_argument("--quick", action="store_true", help="small cases that run once, to try it, e.g. on a CPU")
    parser.add_argument("--print", type=Path, metavar="FILE.json", help="only print a file as Markdown")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if args.print:
        data = read(args.print)
    else:
        cases, effort = (quick_plan(), Effort(2, 0)) if args.quick else (plan(), Effort())
        data = run_cases(cases, args.out, args.device, args.minutes, effort, args.resume, progress)
    print(markdown(data))
    return 0
