"""``mmgcvit data``: show or convert your own data."""

from __future__ import annotations

import argparse

from mmgcvit.commands.finetune import add_data_arguments
from mmgcvit.finetune.command import describe_data, print_counts
from mmgcvit.finetune.data import split_off
from mmgcvit.finetune.formats import read_data
from mmgcvit.finetune.write import convert
from mmgcvit.utils.images import set_max_pixels
from mmgcvit.utils.text import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    add_data_arguments(actions.add_parser("show", help="show what is recognised, and count it"))
    converter = actions.add_parser("convert", help="write annotations in the layout of the template configs")
    add_data_arguments(converter)
    converter.add_argument("out", help="new folder")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    set_max_pixels(args.max_pixels)
    data = read_data(args.data, args.task, args.format)
    describe_data(data, args.task, print)
    if args.action == "convert":
        split_off(data)
        print(shown(f"written: {convert(data, args.out)}"))
    print_counts(data)
    return 0
