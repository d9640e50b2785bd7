"""Paths of the package's files, and paths for people to read."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: The configs that are installed with the package (a link to ``configs/`` in a checkout).
SHIPPED_CONFIGS = Path(__file__).parents[1] / ".mim" / "configs"


def short_path(path: str | os.PathLike) -> str:
    """Return a path as it is shown: relative to the current folder if it is inside it, as it is otherwise.

    Examples:
        >>> short_path(Path.cwd() / "data" / "a.json")
        'data/a.json'
    """
    return short_paths(os.fspath(path))


def short_paths(text: str) -> str:
    """Return a text in which all paths inside the current folder are relative to it (:func:`short_path`)."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return text
    if here == os.sep:
        return text
    return re.sub(rf"(?<![\w/.~-]){re.escape(here)}{re.escape(os.sep)}+(?=[^\s{re.escape(os.sep)}])", "", text)
