"""``mmgcvit test``: evaluate a checkpoint."""

from __future__ import annotations

import argparse

from mmgcvit import apis
from mmgcvit.apis.precision import AMP
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.utils.arguments import add_trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    apis.add_runner_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file of any publisher, URL, or name from `mmgcvit weights list`")
    parser.add_argument("--show-dir", help="folder for images: ground truth on the left, prediction on the right")
    parser.add_argument("--tta", action="store_true", help="merge predictions of several scales and mirrored images")
    parser.add_argument("--out", metavar="FILE.csv", help="write a table of a classifier's predictions")
    parser.add_argument("--amp", choices=tuple(AMP), help="mixed precision of the backbone: fp16 (on a GPU) or bf16")
    parser.add_argument("--verbose", action="store_true", help="show everything that is written to the log file")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    with apis.short_output(args.verbose), trust_checkpoints(args.trust_checkpoint):
        apis.test(apis.config_from_arguments(args), args.checkpoint, args.show_dir, args.tta, args.out, args.amp)
    return 0
