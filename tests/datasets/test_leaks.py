"""Images in training and validation data."""

from __future__ import annotations

from pathlib import Path

from mmgcvit.datasets.leaks import report_leaks
from mmgcvit.datasets.report import DatasetReport


def test_equal_files_are_counted(tmp_path: Path):
    contents = {"train/a": "one", "train/b": "two", "val/a": "six", "val/c": "one", "val/d": "four", "test/b": "two"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    train, val, test, other = reports = [
        DatasetReport(name, f"{name}.json", files=[str(path) for path in sorted((tmp_path / name).glob("*"))])
        for name in ("train", "val", "test", "other")
    ]
    val.files.append(str(tmp_path / "val/missing"))
    report_leaks(reports)
    assert (train.problems, other.problems) == ([], [])
    assert [str(problem) for problem in val.problems + test.problems] == [
        f"val.json: 1 of 4 images also in the training data, such as {tmp_path}/val/c ({tmp_path}/train/a): the "
        "metrics will be too good",
        f"test.json: 1 of 1 image also in the training data, such as {tmp_path}/test/b ({tmp_path}/train/b): the "
        "metrics will be too good",
    ]
    assert not any(report.broken for report in reports)
