"""What can be wrong with a data set, and the data sets inside a config's wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmgcvit.errors import AnnotationError

SHOWN = 5  # problems that an error names


@dataclass(frozen=True)
class Problem:
    """Something wrong in one place.

    ``breaks``: a run fails or learns wrong things; otherwise mmdet leaves out what is meant.
    """

    kind: str
    where: str
    what: str
    breaks: bool

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def refuse(problems: Sequence[Problem]) -> None:
    """Raise the problems that break a run, naming the first few.

    Raises:
        AnnotationError: one of the problems does.
    """
    broken = [problem for problem in problems if problem.breaks]
    if broken:
        more = f"\n... and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise AnnotationError("\n".join(map(str, broken[:SHOWN])) + more)


def data_sets(dataset: Any) -> Iterator[Mapping]:
    """The data sets inside a config's wrappers: repeated, balanced, concatenated."""
    if not dataset:
        return
    if "dataset" in dataset:
        yield from data_sets(dataset["dataset"])
    elif "datasets" in dataset:
        for inner in dataset["datasets"]:
            yield from data_sets(inner)
    else:
        yield dataset
