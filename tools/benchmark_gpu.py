"""Measure backbones and window attention on a GPU within a time limit: tools/benchmark_gpu.py --out gpu.json

Needs torch, timm and mmengine. Each result is written at once; --resume measures what was left out. Prints Markdown.
"""

import early_settings  # noqa: F401

# isort: split
import argparse
import sys
from pathlib import Path

from mmgcvit.errors import BenchmarkError
from mmgcvit.gpu_benchmark.cases import plan, quick_plan
from mmgcvit.gpu_benchmark.measure import Effort
from mmgcvit.gpu_benchmark.run import read, run
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


def main() -> None:
    """Parse the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/bench/gpu.json"), metavar="FILE.json")
    parser.add_argument("--minutes", type=positive, default=9.0, help="time limit (default: 9)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--resume", action="store_true", help="keep what FILE.json has, and measure the rest")
    parser.add_argument("--quick", action="store_true", help="small cases that run once, to try it, e.g. on a CPU")
    parser.add_argument("--print", type=Path, metavar="FILE.json", help="only print a file as Markdown")
    args = parser.parse_args()

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        if args.print:
            data = read(args.print)
        else:
            cases, effort = (quick_plan(), Effort(2, 0)) if args.quick else (plan(), Effort())
            data = run(cases, args.out, args.device, args.minutes, effort, args.resume, progress)
    except BenchmarkError as error:
        sys.exit(f"benchmark_gpu: {error}")
    print(markdown(data))


if __name__ == "__main__":
    main()
