"""``mmgcvit weights``: published weights."""

from __future__ import annotations

import argparse

from mmgcvit.checkpoint import commands, trust_checkpoints
from mmgcvit.checkpoint.weights import fetch
from mmgcvit.errors import UsageError
from mmgcvit.utils.arguments import add_trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list the published weights")
    action = actions.add_parser(
        "fetch", help="download weights into the cache, verify them, and print the path of the file"
    )
    action.add_argument("name", help="a name from the list, or a URL")
    action = actions.add_parser("inspect", help="show the contents of a checkpoint, and which tensors would be loaded")
    action.add_argument("file", help="file, URL, or a name from the list")
    add_trust_argument(action)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    if args.action == "list":
        commands.print_weights()
        return 0
    try:
        with trust_checkpoints(args.action == "inspect" and args.trust_checkpoint):
            said = str(fetch(args.name)) if args.action == "fetch" else commands.inspect(args.file)
    except OSError as error:
        raise UsageError(str(error)) from error
    print(said)
    return 0
