"""``mmgcvit explain``: show what a model attends to."""

from __future__ import annotations

import argparse

from mmgcvit import apis
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.explain import CAMS, METHODS, explain
from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.paths import short_path
from mmgcvit.utils.text import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("inputs", nargs="+", help="images, or folders with images at any depth")
    parser.add_argument("config", help="config file, or e.g. mmgcvit::detection/... for a config of the package")
    parser.add_argument("checkpoint", help="checkpoint file or URL")
    parser.add_argument("--out-dir", default="outputs/explain", help="folder for the PNGs (default: outputs/explain)")
    parser.add_argument(
        "--method",
        nargs="+",
        choices=METHODS,
        help="attention of the global query (mean, or by heads), local attention of a point, features of the stages, "
        "class activation maps (default: those that suit the task; CAMs need mmgcvit[explain])",
    )
    parser.add_argument(
        "--stage",
        type=int,
        help="stage, from 0 (default: 2 for attention, for CAMs the one that changes the prediction most)",
    )
    parser.add_argument(
        "--at",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        help="pixel whose attention, box or class is shown (default: the centre, the best box, the largest class)",
    )
    parser.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU if there is one)")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    at = None if args.at is None else (args.at[0], args.at[1])
    with apis.short_output(), trust_checkpoints(args.trust_checkpoint):
        files = explain(
            args.config, args.checkpoint, args.inputs, args.out_dir, args.method, args.stage, at, args.device
        )
    if args.method is None and not any(file.stem.endswith(tuple(CAMS)) for file in files):
        print("without class activation maps: they need pip install 'mmgcvit[explain]'")
    print(f"{counted(len(files) - 1, 'figure')}; all of them: {short_path(files[-1])}")
    return 0
