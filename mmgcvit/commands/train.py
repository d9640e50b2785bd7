"""``mmgcvit train``: train the model of a config."""

from __future__ import annotations

import argparse

from mmengine.dist import is_main_process

from mmgcvit import apis
from mmgcvit.apis.precision import AMP
from mmgcvit.apis.tracking import TRACKERS
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.report.make import report_after_training
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.images import set_max_pixels
from mmgcvit.utils.program import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    apis.add_runner_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="resume from this checkpoint; without a value, from the newest one in the work directory",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="fp16",
        default=False,
        choices=tuple(AMP),
        help="mixed precision: fp16 (on a GPU; the default without a value) or bf16",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the ratio of the global batch size to the config's base_batch_size (with one "
        "process this is the default if the batch is smaller; --cfg-options auto_scale_lr.enable=False prevents it)",
    )
    parser.add_argument(
        "--corrupt",
        choices=("stop", "skip"),
        help="stop at an image that cannot be decoded, or skip and count it (default: the config's setting, or stop)",
    )
    apis.add_pixels_argument(parser)
    parser.add_argument("--track", choices=tuple(TRACKERS), help="send the logged values to an experiment tracker, too")
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end of the run")
    parser.add_argument("--verbose", action="store_true", help="show everything that is written to the log file")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    scale = args.auto_scale_lr or None  # None: scale only with one process
    set_max_pixels(args.max_pixels)
    with apis.short_output(args.verbose), trust_checkpoints(args.trust_checkpoint):
        cfg = apis.config_from_arguments(args)
        cfg.command = command_line()  # for the report, and to go on with the run
        apis.train(cfg, args.resume, args.amp, scale, args.corrupt, args.track)
        first = is_main_process()  # the report ends the process group
        if not args.no_report:
            report_after_training(cfg.work_dir)
    if first:
        print(apis.end_of_run(cfg.work_dir, args.config, cfg))
    return 0
