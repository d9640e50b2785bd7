"""The program that runs, its place among the processes of a run, and commands that a user can type."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mmgcvit.utils.paths import short_path


def is_first_process() -> bool:
    """Whether this is the first process of a launched run, or the only one, also before the processes are connected."""
    return not int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def command_line() -> str:
    """Return the command that has started this program."""
    program, *arguments = sys.argv
    tool = program.endswith(".py") and Path(program).name != "__main__.py"
    return shlex.join([*(["python", program] if tool else ["mmgcvit"]), *arguments])


def runnable(words: Sequence[str]) -> str:
    """Return a command of ``python`` or ``mmgcvit`` as it can be typed, also if its environment is not active.

    Args:
        words: the program and its arguments.
    """
    name, *arguments = words
    program = shutil.which(name)
    if program is None or Path(program).parent != Path(sys.executable).parent:  # of another environment
        module = [] if name == "python" else ["-m", name]
        return shlex.join([short_path(sys.executable), *module, *arguments])
    return shlex.join(words)
