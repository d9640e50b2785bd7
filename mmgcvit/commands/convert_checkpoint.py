"""``mmgcvit convert-checkpoint``: convert a checkpoint to another layout."""

from __future__ import annotations

import argparse

from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.checkpoint.commands import TARGETS, convert_file
from mmgcvit.errors import UsageError
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.text import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.epilog = "a DINO of NVIDIA TAO is converted whole to mmdet's, with its config beside the new file"
    parser.add_argument("source", help="file, URL, or a name from `mmgcvit weights list`")
    parser.add_argument("target", help=".pth or .safetensors file to write")
    parser.add_argument(
        "--to",
        choices=TARGETS,
        help="layout to write (default: mmdet-dino for NVIDIA TAO's DINO, otherwise mmgcvit)",
    )
    parser.add_argument("--ema", action="store_true", help="convert the averaged (EMA) weights")
    parser.add_argument("--hash", action="store_true", help="append the first 8 digits of the SHA-256 to the file name")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    tao = parser.add_argument_group("detectors of NVIDIA TAO")
    classes = tao.add_mutually_exclusive_group()
    classes.add_argument(
        "--categories", metavar="JSON", help="COCO annotation file with the ids and names of the classes to keep"
    )
    classes.add_argument("--keep-background", action="store_true", help="keep all classes: each label is TAO's class")
    tao.add_argument("--spec", metavar="YAML", help="TAO's experiment file, for settings that the checkpoint lacks")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    try:
        with trust_checkpoints(args.trust_checkpoint):
            path, report = convert_file(
                args.source, args.target, args.to, args.ema, args.hash, args.force, args.categories,
                args.keep_background, args.spec,
            )  # fmt: skip
    except OSError as error:
        raise UsageError(str(error)) from error
    print(report)
    print(shown(f"written: {path} (layout {report.target})"))
    return 0
