"""``mmgcvit COMMAND``: the table of commands, the tools that run them, and how they end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from conftest import ROOT
from mmengine.config import Config
from run_tool import run_tool

from mmgcvit import commands
from mmgcvit.__main__ import main
from mmgcvit.commands import COMMANDS, train
from mmgcvit.errors import RunStopped, UsageError

NAMES = {"image_demo": "predict", "get_flops": "flops"}  # of tools that are called otherwise
TOOLS = sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "early_settings")


def test_help_has_a_line_for_each_command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^    {name}\s+{re.escape(command.help)}$", shown, re.MULTILINE), name


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_help_page(name: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mmgcvit {name} ")


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_runs_a_command(tool: str):
    text = (ROOT / f"tools/{tool}.py").read_text(encoding="utf-8")
    assert f'sys.exit(run_tool("{NAMES.get(tool, tool.replace("_", "-"))}"))' in text
    assert len(text.splitlines()) < 15


@pytest.mark.parametrize(
    ("arguments", "status"), [([], 2), (["no-such"], 2), (["--version"], 0), (["--", "params"], 2)]
)
def test_without_a_command(arguments: list[str], status: int, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == status


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (UsageError("size=0; allowed: 1"), 1, "params: size=0; allowed: 1\n"),
        (RunStopped("stopped", 15), 143, "params: stopped\n"),
        (KeyboardInterrupt(), 130, ""),
        (PermissionError(13, "Permission denied", "/out"), 1, "params: '/out': Permission denied\n"),
    ],
)
def test_how_commands_end(raised, status, said, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    module = SimpleNamespace(add_arguments=lambda parser: None, run=Mock(side_effect=raised))
    monkeypatch.setattr(commands, "_load", lambda name, said: module)
    assert main(["params"]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("raised", [FileNotFoundError(2, "No such file", "a"), PermissionError(1, "Not permitted")])
def test_errors_of_the_program_have_a_traceback(raised: OSError, monkeypatch: pytest.MonkeyPatch):
    module = SimpleNamespace(add_arguments=lambda parser: None, run=Mock(side_effect=raised))
    monkeypatch.setattr(commands, "_load", lambda name, said: module)
    with pytest.raises(OSError, match=r"No such|Not permitted"):
        main(["params"])


def test_only_the_first_process_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """The report ends the process group, and after that each process is the first one of its own."""
    grouped = [True]
    monkeypatch.setattr(train, "is_main_process", lambda: not grouped)
    monkeypatch.setattr(train, "report_after_training", lambda work_dir: grouped.clear())
    monkeypatch.setattr(train.apis, "config_from_arguments", lambda args: Config(dict(work_dir="run")))
    monkeypatch.setattr(train.apis, "train", lambda *arguments: None)
    monkeypatch.setattr(train.apis, "end_of_run", lambda *arguments: "how to go on")
    assert main(["train", "a.py"]) == 0
    assert not grouped
    assert capsys.readouterr().out == ""
    assert main(["train", "a.py"]) == 0
    assert capsys.readouterr().out == "how to go on\n"


def test_errors_name_the_command_or_the_tool(tmp_path, capsys: pytest.CaptureFixture):
    assert main(["flops", "no.py", "--shape", "0", "5"]) == 1
    assert capsys.readouterr().err == "flops: --shape 0 5; allowed: integers of at least 1\n"
    done = run_tool("get_flops.py", "no.py", "--shape", "0", "5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "get_flops: --shape 0 5; allowed: integers of at least 1\n")


@pytest.mark.parametrize(
    "command", [["-m", "mmgcvit", "finetune"], [str(ROOT / "tools/check_data.py")]], ids=["command", "tool"]
)
def test_a_closed_pipe_ends_a_command_quietly(command: list[str]):
    """``mmgcvit finetune --help | head -0``"""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open(writer, "wb") as stream:
        done = subprocess.run(
            [sys.executable, *command, "--help"], stdout=stream, stderr=subprocess.PIPE, cwd=ROOT, env=environment
        )
    assert (done.returncode, done.stderr) == (1, b"")
