"""The command line ``mmgcvit`` (``python -m mmgcvit``): all commands except training and testing."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from mmgcvit.utils.arguments import add_trust_argument
from mmgcvit.utils.text import describe, shown
from mmgcvit.version import __version__


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = argparse.ArgumentParser(prog="mmgcvit", description="GC ViT for OpenMMLab")
    parser.add_argument("--version", action="version", version=f"mmgcvit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="check the software stack; exit status 1 if a requirement is missing")
    weights = commands.add_parser("weights", help="published weights: list, fetch, inspect")
    actions = weights.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list the published weights")
    fetch = actions.add_parser(
        "fetch", help="download weights into the cache, verify them, and print the path of the file"
    )
    fetch.add_argument("name", help="a name from the list, or a URL")
    inspect = actions.add_parser("inspect", help="show the contents of a checkpoint, and which tensors would be loaded")
    inspect.add_argument("file", help="file, URL, or a name from the list")
    add_trust_argument(inspect)
    params = commands.add_parser("params", help="list the parameter groups of a config's optimizer")
    params.add_argument("config", help="config file, or e.g. mmgcvit::detection/... for a config of the package")
    operators = commands.add_parser("ops", help="mmcv's operators: compiled, or computed by torchvision")
    operators.add_argument(
        "action",
        choices=("status", "install", "remove"),
        help="status: print which are in use; install: write mmcv/_ext.py, so that every program finds torchvision's "
        "operators where there are no compiled ones; remove: delete that file",
    )
    exporter = commands.add_parser("export", help="export a trained model to ONNX, OpenVINO or torch.export")
    app = commands.add_parser("app", help="serve a web page to try a model")
    tuning = commands.add_parser("finetune", help="train on your own data in one command, from any common format")
    data = commands.add_parser("data", help="your own data: show what is recognised, or convert it")
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["export"]:  # its arguments need mmengine
        with _imports("export", "mmgcvit.export", "backbone,export"):
            from mmgcvit.export.commands import add_arguments, run

        add_arguments(exporter)
        return run(parser.parse_args(argv))
    if argv[:1] == ["app"]:  # its arguments need numpy and Pillow
        with _imports("app", "mmgcvit.app", "app"):
            from mmgcvit.app.commands import add_arguments, run

        add_arguments(app)
        return run(parser.parse_args(argv))
    if argv[:1] in (["finetune"], ["data"]):  # their arguments need mmengine
        with _imports(argv[0], "mmgcvit.finetune", "backbone,finetune"):
            from mmgcvit.finetune import command as own_data

        own_data.add_finetune_arguments(tuning)
        own_data.add_data_arguments(data)
        args = parser.parse_args(argv)
        return own_data.run_finetune(args) if args.command == "finetune" else own_data.run_data(args)
    args = parser.parse_args(argv)

    if args.command == "doctor":
        from mmgcvit import doctor

        return doctor.main()
    if args.command == "ops":
        from mmgcvit.ops import commands as ops

        return ops.run(args.action)
    return _params(args) if args.command == "params" else _weights(args)


@contextlib.contextmanager
def _imports(command: str, module: str, extras: str) -> Iterator[None]:
    """Exit with a message of one line if the imports inside the block fail, as torch or mmengine is missing."""
    try:
        yield
    except (ImportError, OSError) as error:  # OSError: a package without its libraries
        print(
            f"{command}: {module} cannot be imported: {describe(error)}; pip install 'mmgcvit[{extras}]', next to "
            "mmengine. `python -m mmgcvit doctor` lists everything that is missing",
            file=sys.stderr,
        )
        sys.exit(1)


def _params(args: argparse.Namespace) -> int:
    with _imports("params", "mmgcvit.analysis", "backbone"):
        from mmgcvit import analysis, apis

    try:
        with apis.short_output():
            cfg = apis.load_config(args.config)
            return 0 if analysis.print_parameter_groups(cfg) else 1
    except apis.UsageError as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        return 1


def _weights(args: argparse.Namespace) -> int:
    from mmgcvit.errors import CheckpointError

    with _imports("weights", "mmgcvit.checkpoint", "backbone"):
        from mmgcvit.checkpoint import commands, trust_checkpoints
        from mmgcvit.checkpoint.weights import fetch

    try:
        if args.action == "list":
            commands.print_weights()
        else:
            with trust_checkpoints(args.action == "inspect" and args.trust_checkpoint):
                print(fetch(args.name) if args.action == "fetch" else commands.inspect(args.file))
    except (CheckpointError, OSError) as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
