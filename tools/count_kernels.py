"""Count the GPU kernels and memory traffic of backbones, without a GPU.

python tools/count_kernels.py --models gcvit-tiny timm-gcvit-tiny --shape 128 3 224 224
"""

import argparse
import sys
from functools import partial

from mmgcvit import benchmark
from mmgcvit.engine.progress import short_output
from mmgcvit.errors import BenchmarkError
from mmgcvit.kernel_count import count_kernels, print_kernel_counts
from mmgcvit.utils.text import shown


def main() -> None:
    """Parse the command line, count, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gcvit-tiny"], metavar="MODEL", help=benchmark.ALLOWED)
    parser.add_argument("--shape", nargs=4, type=int, default=(128, 3, 224, 224), metavar=("B", "C", "H", "W"))
    parser.add_argument(
        "--dtype",
        choices=tuple(benchmark.DTYPES),
        default="bfloat16",
        help="of parameters and input (default: bfloat16)",
    )
    parser.add_argument("--top", type=int, default=5, help="number of operations to list, by bytes moved (default: 5)")
    args = parser.parse_args()
    if min(args.shape) < 1:
        sys.exit(f"count_kernels: --shape {' '.join(map(str, args.shape))}; allowed: integers of at least 1")
    try:
        with short_output():
            dtype = benchmark.DTYPES[args.dtype]
            rows = [
                (
                    name,
                    args.shape,
                    *(
                        count_kernels(partial(benchmark.build, name), args.shape, train, dtype)
                        for train in (False, True)
                    ),
                )
                for name in args.models
            ]
    except BenchmarkError as error:
        sys.exit(shown(f"count_kernels: {error}"))
    print_kernel_counts(rows, args.top)


if __name__ == "__main__":
    main()
