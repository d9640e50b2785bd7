"""``mmgcvit make-digit-scenes``: generate a small data set."""

from __future__ import annotations

import argparse

from mmgcvit.datasets.digit_scenes import make_digit_scenes
from mmgcvit.errors import UsageError
from mmgcvit.utils.text import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("out", help="folder to create")
    parser.add_argument(
        "--images", type=int, default=1000, help="total number of scenes, one in twenty for validation (default: 1000)"
    )
    parser.add_argument("--size", type=int, default=160, help="side of a scene, in pixels (default: 160)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it contains digit scenes")


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    try:
        out = make_digit_scenes(args.out, args.images, args.size, args.seed, args.force)
    except (ValueError, FileExistsError) as error:
        raise UsageError(str(error)) from error
    print(shown(f"digit scenes: {out} (content: {out / 'README.txt'})"))
    return 0
