"""Paths on the page of a report, which is sent to others: without the folders of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmgcvit.report.collect import Run
from mmgcvit.utils.paths import short_paths

#: Keys of a config that have folders and files of data sets.
DATA_KEYS = ("data_root", "data_prefix", "ann_file")


class PathShortener:
    """Returns a text in which paths in the current folder are relative to it, and others begin at a folder of the run.

    '/data/sets/coco/train.json' becomes '.../coco/train.json' if '/data/sets/coco' is a data root of the config. The
    home folder is '~' elsewhere.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        found = {os.path.abspath(run.work_dir), *(os.path.normpath(path) for path in _data_folders(run.cfg.to_dict()))}
        here = Path.cwd()
        outside = [path for path in found if not Path(path).is_relative_to(here) and len(Path(path).parts) > 2]
        # the outermost ones
        folders = [path for path in outside if not any(str(other) in outside for other in Path(path).parents)]
        self.shown = {path: f".../{os.path.basename(path)}" for path in folders}
        home = os.path.expanduser("~")  # unlike Path.home(), no error where there is none
        if len(Path(home).parts) > 1:
            self.shown.setdefault(home, "~")
        names = "|".join(re.escape(path) for path in sorted(self.shown, key=len, reverse=True))
        self.pattern = re.compile(rf"(?<![\w/.~-])(?:{names})(?![\w.-])")

    def __call__(self, text: str) -> str:
        """Return the text as it is shown."""
        text = short_paths(text)
        return self.pattern.sub(lambda match: self.shown[match[0]], text) if self.shown else text


def _data_folders(value: Any, inside: bool = False) -> Iterator[str]:
    """Yield absolute folders of data sets in a part of a config."""
    if isinstance(value, str):
        if inside and os.path.isabs(value):
            yield value if not Path(value).suffix else os.path.dirname(value)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _data_folders(part, inside or key in DATA_KEYS)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _data_folders(part, inside)
