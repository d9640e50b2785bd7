"""The commands ``mmgcvit NAME``, most of which are also files of ``tools/``.

Each is a module with ``add_arguments(parser)`` and ``run(args)``, which returns the exit status. It is imported when it
is run, so that ``mmgcvit doctor`` works where torch or mmengine is missing.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from mmgcvit.errors import MMGCViTError, RunStopped
from mmgcvit.utils.pipes import run_program
from mmgcvit.utils.text import describe, shown
from mmgcvit.version import __version__

#: Numbers of errors of the system about files that are no errors of the program: permissions, and a full disk.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        help: what it does, in one line.
        module: its module, by default that of this package with the name of the command.
        extras: extras of the package with what the module imports.
    """

    help: str
    module: str = ""
    extras: str = "backbone"


COMMANDS = {
    "finetune": Command("train on your own data, from any common format", extras="backbone,finetune"),
    "data": Command("your own data: show what is recognised, or convert it", extras="backbone,finetune"),
    "train": Command("train the model of a config"),
    "test": Command("evaluate a checkpoint on the test data of its config"),
    "predict": Command("predict on images, folders and videos"),
    "report": Command("write the report of a run, a page for the browser", extras="backbone,report"),
    "app": Command("serve a web page to try a model", "mmgcvit.app.commands", "app"),
    "explain": Command("show what a model attends to"),
    "export": Command(
        "export a trained model: ONNX, OpenVINO, torch.export", "mmgcvit.export.commands", "backbone,export"
    ),
    "check-data": Command("check the data sets of a config before training"),
    "prepare-data": Command("link a downloaded data set where the configs expect it"),
    "make-digit-scenes": Command("generate a small data set for all tasks", extras="digits"),
    "weights": Command("published weights: list, fetch, inspect"),
    "convert-checkpoint": Command("convert a checkpoint to the layout of another publisher"),
    "params": Command("list the parameter groups of a config's optimizer"),
    "flops": Command("count parameters and multiply-adds of a config's model"),
    "benchmark": Command("measure time and memory of backbones and exported files"),
    "benchmark-gpu": Command("measure backbones on a GPU within a time limit"),
    "count-kernels": Command("count GPU kernels and memory traffic, without a GPU"),
    "ops": Command("mmcv's operators: compiled, or computed by torchvision", "mmgcvit.ops.commands"),
    "doctor": Command("check the installation; status 1 if it is incomplete"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmgcvit`` with these arguments (default: those of the process), and return the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="mmgcvit", description="GC ViT for OpenMMLab")
    parser.add_argument("--version", action="version", version=f"mmgcvit {__version__}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    parsers = {name: choices.add_parser(name, help=one.help, description=one.help) for name, one in COMMANDS.items()}
    # Without a command at the beginning, parse_args() exits, but for `-- NAME` in newer versions of Python.
    name = argv[0] if argv and argv[0] in COMMANDS else parser.parse_args(argv).command
    module = _load(name, name)
    module.add_arguments(parsers[name])
    return _run(name, module, parser.parse_args(argv))


def run_tool(name: str) -> int:
    """Run a command as a file of ``tools/``, and return the exit status."""
    tool = Path(sys.argv[0]).stem

    def run() -> int:
        module = _load(name, tool)
        parser = argparse.ArgumentParser(description=COMMANDS[name].help)
        module.add_arguments(parser)
        return _run(tool, module, parser.parse_args())

    return run_program(run)


def _load(name: str, said: str) -> ModuleType:
    """Import the module of a command; exit with a message of one line if torch, mmengine or another package is missing.

    Args:
        name: name of the command.
        said: what the user has called it.
    """
    command = COMMANDS[name]
    module = command.module or f"{__name__}.{name.replace('-', '_')}"
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a package without its libraries
        print(
            f"{said}: {module} cannot be imported: {describe(error)}; pip install 'mmgcvit[{command.extras}]', next to "
            "mmengine. `python -m mmgcvit doctor` lists everything that is missing",
            file=sys.stderr,
        )
        sys.exit(1)


def _run(said: str, module: ModuleType, args: argparse.Namespace) -> int:
    """Run a command; print errors of the user without a traceback."""
    try:
        status: int = module.run(args)
    except MMGCViTError as error:
        if not isinstance(error, RunStopped):
            print(shown(f"{said}: {error}"), file=sys.stderr)
            return 1
        from mmengine.dist import is_main_process

        if is_main_process():  # all processes of a run stop together
            print(shown(f"{said}: {error}"), file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if error.filename is None or error.errno not in REFUSED:
            raise
        print(shown(f"{said}: {str(error.filename)!r}: {error.strerror}"), file=sys.stderr)
        return 1
    return status
