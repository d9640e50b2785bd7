"""``mmgcvit report``: write the report of a run."""

from __future__ import annotations

import argparse

from mmgcvit import apis
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.report.make import make_report
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.paths import short_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("work_dir", help="folder of a run of `mmgcvit train`, also of an unfinished one")
    parser.add_argument("--checkpoint", help="checkpoint to evaluate (default: the best one, else the last one)")
    parser.add_argument("--out", help="file to write (default: report.html in the folder of the run)")
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    with apis.short_output(), trust_checkpoints(args.trust_checkpoint):
        file = make_report(args.work_dir, args.checkpoint, args.out, args.device)
    print(short_path(file))
    return 0
