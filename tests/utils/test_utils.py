"""Atomic files, hashes, text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mmgcvit.utils import atomic_path, file_sha256, summarize, write_json
from mmgcvit.utils.paths import short_path, short_paths
from mmgcvit.utils.text import PIPE_WIDTH, counted, shown, wide_console


def test_atomic_path_replaces_only_on_success(tmp_path: Path):
    target = tmp_path / "image.png"
    target.write_text("old")

    def fail_halfway() -> None:
        with atomic_path(target) as temporary:
            assert temporary.suffix == ".png"
            temporary.write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert target.read_text() == "old"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_write_json_and_sha256(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"é": [1, 2]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2]}
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1, "image"), "1 image"), ((2, "image"), "2 images"), ((0, "class"), "0 classes"), ((1, "box"), "1 box"),
        ((3, "box"), "3 boxes"), ((1, "image has", "images have"), "1 image has"),
        ((4, "image has", "images have"), "4 images have"), ((2, "category", "categories"), "2 categories"),
    ],
)  # fmt: skip
def test_counted(arguments: tuple, expected: str):
    assert counted(*arguments) == expected


def test_summarize():
    assert summarize(range(3)) == "0, 1, 2"
    assert summarize("abcde", limit=3) == "a, b, c and 2 more"


def test_paths_in_the_current_folder_are_shown_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    here = tmp_path / "a.b c"
    here.mkdir()
    monkeypatch.chdir(here)
    assert short_path(here / "x" / "y.json") == "x/y.json"
    assert short_path("x/y.json") == "x/y.json"
    assert short_path(tmp_path / "z") == f"{tmp_path}/z"
    assert short_paths(f"'{here}/x': see {here}/y:3, {here}2/z, /mnt{here}/w, file://{here}/v and {here}") == (
        f"'x': see y:3, {here}2/z, /mnt{here}/w, file://{here}/v and {here}"
    )
    assert shown(f"{here}/\x1b[2J") == "\\x1b[2J"
    monkeypatch.chdir("/")
    assert short_paths("/etc/passwd") == "/etc/passwd"


def test_tables_on_a_pipe_have_their_full_width(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", "80")
    table = Table()
    names = ["n" * 150, "m" * 150]
    for name in names:
        table.add_column(name)
    wide_console().print(table)
    first, *_ = capsys.readouterr().out.splitlines()
    assert 300 < len(first) < PIPE_WIDTH
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert wide_console().width == 140
