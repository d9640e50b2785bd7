"""The command that has started a program, and commands that a user can type."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mmgcvit.utils.program import command_line, runnable


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["tools/train.py", "my config.py"], "python tools/train.py 'my config.py'"),
        (["/env/bin/mmgcvit", "train", "a.py"], "mmgcvit train a.py"),
        (["/packages/mmgcvit/__main__.py", "train", "a.py"], "mmgcvit train a.py"),
    ],
)
def test_command_line(argv: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == wanted


@pytest.mark.parametrize(
    ("words", "active", "inactive"),
    [
        (["mmgcvit", "predict", "a b"], "mmgcvit predict 'a b'", "env/bin/python -m mmgcvit predict 'a b'"),
        (["python", "tools/train.py"], "python tools/train.py", "env/bin/python tools/train.py"),
    ],
)
def test_runnable(words: list[str], active: str, inactive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As it is in the active environment, otherwise with the path of its Python."""
    folder = tmp_path / "env/bin"
    folder.mkdir(parents=True)
    for name in ("python", "mmgcvit"):
        (folder / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))
    assert runnable(words) == active
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runnable(words) == inactive
