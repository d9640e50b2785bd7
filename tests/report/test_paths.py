"""Paths on the page of a report."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmgcvit.report.collect import Run
from mmgcvit.report.paths import PathShortener


def test_paths_without_the_folders_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", "/home/someone")
    inner = dict(data_root="/drive/sets/coco/", data_prefix=dict(img="/drive/sets/coco/val", other="/photos/mine"))
    cfg = Config(
        dict(
            val_dataloader=dict(dataset=dict(datasets=[inner, dict(ann_file="/drive/labels/b.json")])),
            load_from="/models/a.pth",
        )
    )
    shorten = PathShortener(Run(tmp_path / "runs/first", cfg, tmp_path / "c.py", None))
    for text, shown in {
        f"Run in {tmp_path}/runs/first": "Run in .../first",
        f"{tmp_path}/runs/first-2/a.pth": f"{tmp_path}/runs/first-2/a.pth",
        f"Config: {tmp_path}/here/data/a.json": "Config: data/a.json",
        "img='/drive/sets/coco/val', root='/drive/sets/coco/'": "img='.../coco/val', root='.../coco/'",
        "ann_file='/drive/labels/b.json'": "ann_file='.../labels/b.json'",
        "'/photos/mine' and /models/a.pth": "'.../mine' and /models/a.pth",
        "python /home/someone/tools/train.py": "python ~/tools/train.py",
        "no path": "no path",
    }.items():
        assert shorten(text) == shown
