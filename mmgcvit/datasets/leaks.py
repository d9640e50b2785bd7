"""Images that are both trained on and evaluated."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence

from mmgcvit.datasets.problems import Problem
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.utils import file_sha256
from mmgcvit.utils.text import counted


def report_leaks(reports: Sequence[DatasetReport]) -> None:
    """Add a warning to each validation and test set that has images of the training data.

    Files are compared by their content. Only those with the same number of bytes are read.
    """
    trained = _by_size([path for report in reports if report.name == "train" for path in report.files])
    digests: dict[str, str] = {}

    def digest(path: str) -> str:
        if path not in digests:
            digests[path] = file_sha256(path)
        return digests[path]

    for report in reports:
        if report.name == "train":
            continue
        pairs = []
        for size, paths in _by_size(report.files).items():
            seen = {digest(path): path for path in trained[size]} if size in trained else {}
            pairs += [(path, seen[digest(path)]) for path in paths if digest(path) in seen] if seen else []
        if pairs:
            what = f"{len(pairs)} of {counted(len(report.files), 'image')} also in the training data, such as"
            what = f"{what} {pairs[0][0]}" + (f" ({pairs[0][1]})" if pairs[0][0] != pairs[0][1] else "")
            report.problems.append(Problem("leak", report.source, f"{what}: the metrics will be too good", False))


def _by_size(paths: Sequence[str]) -> dict[int, list[str]]:
    """Existing files by their number of bytes."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        try:
            found[os.path.getsize(path)].append(path)
        except OSError:  # reported as missing
            continue
    return found
