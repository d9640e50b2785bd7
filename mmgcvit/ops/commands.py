"""``mmgcvit ops``: which operators mmcv uses, and the file that supplies torchvision's to every program."""

from __future__ import annotations

import argparse
import importlib
from importlib.machinery import PathFinder
from pathlib import Path

from mmgcvit.errors import UsageError
from mmgcvit.ops.standin import EXTENSION, in_use
from mmgcvit.utils.files import atomic_path
from mmgcvit.utils.text import shown

FILE = '''"""mmcv's operators, computed by torchvision.

`mmgcvit ops install` wrote this file, `mmgcvit ops remove` deletes it. A compiled extension beside it takes precedence.
"""

from mmgcvit.ops.operators import __getattr__  # noqa: F401
'''


def _folder() -> Path:
    """Folder of the installed mmcv, which is not imported.

    Raises:
        UsageError: mmcv is not installed.
    """
    spec = PathFinder.find_spec("mmcv")
    if spec is None or spec.origin is None:
        raise UsageError("mmcv is not installed, so there is nothing to add operators to; `mmgcvit doctor` says more")
    return Path(spec.origin).parent


def write_file() -> Path:
    """Write ``mmcv/_ext.py``; returns its path. pip removes it together with mmcv.

    Raises:
        UsageError: mmcv is not installed, or the file cannot be written.
    """
    file = _folder() / "_ext.py"
    try:
        _write(file, FILE.encode())
        _record(file, True)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error}") from error
    return file


def remove_file() -> Path | None:
    """Delete ``mmcv/_ext.py``; returns its path, None if there was none.

    Raises:
        UsageError: mmcv is not installed, or the file cannot be deleted.
    """
    file = _folder() / "_ext.py"
    try:
        if not file.exists():
            return None
        file.unlink()
        _record(file, False)
    except OSError as error:
        raise UsageError(f"{file} cannot be deleted: {error}") from error
    return file


def _record(file: Path, there: bool) -> None:
    """Add the file to, or remove it from, the list of mmcv's files that pip deletes when it uninstalls mmcv."""
    entry = f"mmcv/{file.name},,".encode()
    for record in file.parents[1].glob("*.dist-info/RECORD"):
        lines = record.read_bytes().splitlines(keepends=True)
        if any(line.startswith(b"mmcv/__init__.py,") for line in lines):
            lines = [line for line in lines if line.rstrip() != entry]
            _write(record, b"".join([*lines, *[entry + b"\n"] * there]))


def _write(file: Path, content: bytes) -> None:
    with atomic_path(file) as temporary:
        temporary.write_bytes(content)


def describe(short: bool = False) -> str:
    """Return which operators mmcv uses, and which programs of this environment find them.

    Args:
        short: leave out the path of the file.

    Raises:
        UsageError: mmcv is not installed, or its operators cannot be imported.
    """
    importlib.invalidate_caches()  # the file may be new
    try:
        kind = in_use()
    except ImportError as error:
        raise UsageError(f"mmcv's operators cannot be imported: {error}; `mmgcvit doctor` says more") from error
    file = getattr(importlib.import_module(EXTENSION), "__file__", None)
    if file is None:
        return f"{kind}, in programs that import mmgcvit first"
    return kind if short else f"{kind}, {file}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "action",
        choices=("status", "install", "remove"),
        help="status: print which are in use; install: write mmcv/_ext.py, so that every program finds torchvision's "
        "operators where there are no compiled ones; remove: delete that file",
    )


def run(args: argparse.Namespace) -> int:
    """Print which operators are in use, after writing or deleting the file if asked to; returns the exit status."""
    if args.action == "install":
        print(shown(f"written: {write_file()}"))
    elif args.action == "remove":
        print(f"deleted: {remove_file() or 'nothing, there was no file'}")
    print(f"mmcv's operators: {describe()}")
    return 0
