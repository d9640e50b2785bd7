"""``mmgcvit count-kernels``: count GPU kernels and memory traffic, without a GPU."""

from __future__ import annotations

import argparse
from functools import partial

from mmgcvit import benchmark
from mmgcvit.engine.progress import short_output
from mmgcvit.errors import BenchmarkError
from mmgcvit.kernel_count import count_kernels, print_kernel_counts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("--models", nargs="+", default=["gcvit-tiny"], metavar="MODEL", help=benchmark.ALLOWED)
    parser.add_argument(
        "--shape", nargs=4, type=int, default=(128, 3, 224, 224), metavar=("B", "C", "H", "W"),
        help="shape of the input (default: 128 3 224 224)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype",
        choices=tuple(benchmark.DTYPES),
        default="bfloat16",
        help="of parameters and input (default: bfloat16)",
    )
    parser.add_argument("--top", type=int, default=5, help="number of operations to list, by bytes moved (default: 5)")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if min(args.shape) < 1:
        raise BenchmarkError(f"--shape {' '.join(map(str, args.shape))}; allowed: integers of at least 1")
    with short_output():
        dtype = benchmark.DTYPES[args.dtype]
        rows = [
            (
                name,
                args.shape,
                *(count_kernels(partial(benchmark.build, name), args.shape, train, dtype) for train in (False, True)),
            )
            for name in args.models
        ]
    print_kernel_counts(rows, args.top)
    return 0
