"""``mmgcvit flops``: count multiply-adds and parameters, with published figures."""

from __future__ import annotations

import argparse

from mmgcvit import analysis, apis
from mmgcvit.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    apis.add_config_arguments(parser)
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        required=True,
        metavar=("H", "W"),
        help="height and width of the image, e.g. 800 1344 (COCO), 512 2048 (ADE20K)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if min(args.shape) < 1:
        raise UsageError(f"--shape {args.shape[0]} {args.shape[1]}; allowed: integers of at least 1")
    with apis.short_output():
        model = analysis.build_model(apis.load_config(args.config, cfg_options=args.cfg_options))
        flops = analysis.count_flops(model, tuple(args.shape))
    # other overridden values make it a different model
    beside = None if args.cfg_options else analysis.published(args.config, tuple(args.shape))
    analysis.print_flops(flops, beside)
    return 0
