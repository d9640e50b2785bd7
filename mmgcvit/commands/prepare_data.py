"""``mmgcvit prepare-data``: check and link a downloaded data set."""

from __future__ import annotations

import argparse

from mmgcvit.datasets.prepare import DATASETS, prepare, print_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.epilog = "exit status 1 if something is missing or wrong"
    parser.add_argument("name", choices=DATASETS, help="data set")
    parser.add_argument("folder", help="folder of the downloaded data set")
    parser.add_argument("--data", default="data", help="folder of the configs' data roots (default: data)")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    report = prepare(args.name, args.folder, args.data)
    print_report(report)
    return int(bool(report.problems))
