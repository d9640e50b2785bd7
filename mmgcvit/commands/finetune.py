"""``mmgcvit finetune``: train on your own data in one command."""

from __future__ import annotations

import argparse

from mmgcvit import apis
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.finetune import command
from mmgcvit.finetune.data import TASKS
from mmgcvit.finetune.formats import FORMATS
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.images import set_max_pixels

AUTO = "auto"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say what the data is."""
    parser.add_argument("data", help="folder with images and annotations, or one annotation file")
    parser.add_argument("--task", choices=tuple(TASKS), help="default: what the annotations are for")
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: recognised by the files")
    apis.add_pixels_argument(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_data_arguments(parser)
    parser.add_argument("--arch", help=f"nano, xxtiny, xtiny, tiny, small, base, ... (default: {command.ARCH})")
    parser.add_argument(
        "--weights", metavar="NAME|FILE|none", help="weights to start from (default: ImageNet weights of the arch)"
    )
    parser.add_argument("--epochs", type=int, help="passes over the training images")
    parser.add_argument(
        "--batch", type=_batch, metavar="N|auto", help="images per step (default: auto, the largest that fits)"
    )
    parser.add_argument("--size", type=int, metavar="S", help="short side of the images in pixels")
    parser.add_argument(
        "--teacher", metavar="NAME|FILE",
        help="for classify: also learn from a model of timm, from published GC ViT weights, or from a larger "
        "classifier with the same classes",
    )  # fmt: skip
    parser.add_argument("--work-dir", metavar="DIR", help="new folder for everything that is written")
    parser.add_argument("--dry-run", action="store_true", help="show the config and the counts, and write nothing")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the work directory")
    add_trust_argument(parser)


def _batch(text: str) -> int | None:
    if text == AUTO:
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a number, or {AUTO!r}") from None


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    options = command.Options(
        args.task, args.format, args.arch, args.weights, args.epochs, args.batch, args.size, args.work_dir,
        args.dry_run, args.resume, args.teacher,
    )  # fmt: skip
    set_max_pixels(args.max_pixels)
    with apis.short_output(), trust_checkpoints(args.trust_checkpoint):
        command.finetune(args.data, options)
    return 0
