"""``mmgcvit params``: list the parameter groups of a config's optimizer."""

from __future__ import annotations

import argparse

from mmgcvit import analysis, apis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("config", help="config file, or e.g. mmgcvit::detection/... for a config of the package")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    with apis.short_output():
        return 0 if analysis.print_parameter_groups(apis.load_config(args.config)) else 1
