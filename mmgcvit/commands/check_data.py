"""``mmgcvit check-data``: check the data sets of a config."""

from __future__ import annotations

import argparse

from mmgcvit import apis
from mmgcvit.datasets.check import check_data
from mmgcvit.datasets.report import print_reports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.epilog = "exit status 1 if a problem would break training"
    apis.add_config_arguments(parser)
    parser.add_argument(
        "--workers", type=int, help="number of processes that decode images (default: the usable processor cores)"
    )
    apis.add_pixels_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    with apis.short_output():
        cfg = apis.load_config(args.config, cfg_options=args.cfg_options)
        reports = check_data(cfg, args.workers, True, args.max_pixels)
    print_reports(reports)
    return int(any(report.broken for report in reports))
