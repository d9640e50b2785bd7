"""Time and memory of the backbone beside others: tools/benchmark.py --models gcvit-tiny swin-t --shapes 800x1344"""

import argparse
import sys
from pathlib import Path

from mmgcvit import benchmark


def shape(text: str) -> tuple[int, int]:
    """'800x1344' -> (800, 1344), 'HxW' with both at least 1."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(s.isdigit() and int(s) for s in sides):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: HEIGHTxWIDTH, as 800x1344")
    return int(sides[0]), int(sides[1])


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number of at least 1")
    return int(text)


def main() -> None:
    """Read the arguments, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["gcvit-tiny", "swin-t"], metavar="MODEL", help=benchmark.ALLOWED
    )
    parser.add_argument("--baseline", help="the model that the others' times are divided by; the last if not given")
    parser.add_argument("--modes", nargs="+", default=["forward"], choices=benchmark.MODES)
    parser.add_argument("--shapes", nargs="+", type=shape, default=[(800, 1344)], metavar="HxW")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument(
        "--dtype", choices=benchmark.DTYPES, default="float32", help="float32, or what autocast computes in"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--rounds", type=positive, default=5, help="turns of each model")
    parser.add_argument("--warmup", type=positive, default=1, help="runs that do not count")
    parser.add_argument("--isolate", action="store_true", help="each turn in a fresh process, with its peak of memory")
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    baseline = args.baseline or args.models[-1]
    if baseline not in args.models:
        sys.exit(f"benchmark: --baseline {baseline}; allowed: one of --models, {', '.join(args.models)}")
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

    try:
        results = benchmark.measure(args.models, args.modes, args.shapes, settings, progress)
    except benchmark.BenchmarkError as error:
        sys.exit(f"benchmark: {error}")
    benchmark.print_results(results, settings, baseline if len(args.models) > 1 else None)
    if args.out:
        benchmark.write_json(args.out, results, settings)


if __name__ == "__main__":
    main()
