"""Atomic files, hashes, text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mmgcvit.utils import atomic_path, file_sha256, summarize, write_json


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


def test_summarize():
    assert summarize(range(3)) == "0, 1, 2"
    assert summarize("abcde", limit=3) == "a, b, c and 2 more"
