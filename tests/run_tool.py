"""Tools run in the process of the tests: starting Python and importing torch and mmdet takes longer than most runs."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.logging import MMLogger
from mmengine.utils import ManagerMixin


def instances() -> Iterator[dict[str, object]]:
    """Yield mmengine's registers of global instances: loggers, visualizers, message hubs, scopes."""
    kinds = [ManagerMixin]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        yield kind._instance_dict


@contextmanager
def no_earlier_runs() -> Iterator[None]:
    """Hide what mmengine keeps of earlier runs, such as loggers, which write to where the output went at that time."""
    kept = [(register, dict(register)) for register in instances()]
    for register, _ in kept:
        register.clear()
    try:
        yield
    finally:
        for logger in MMLogger._instance_dict.values():
            for handler in logger.handlers:
                handler.close()
        for register in instances():
            register.clear()
        for register, before in kept:
            register.update(before)


def run_tool(tool: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a file of tools/ as `python tools/TOOL ARGUMENTS` would, in a folder.

    Returns:
        The exit status, and what it has written.
    """
    command = [str(ROOT / "tools" / tool), *map(str, arguments)]
    out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
    with no_earlier_runs(), pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", command)
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except Exception:
            traceback.print_exc()
            code = 1
    torch.set_num_threads(threads)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
