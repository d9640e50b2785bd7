"""Problems found in data sets; the data sets inside wrappers, and their classes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import DATASETS

from mmgcvit.datasets.text import read_lines
from mmgcvit.errors import AnnotationError
from mmgcvit.registry import class_of
from mmgcvit.utils.text import shown

SHOWN = 5  # number of problems listed in an error


@dataclass(frozen=True)
class Problem:
    """A problem at one place in a data set.

    ``breaks``: a run would fail or learn wrong things; otherwise mmdet skips the affected item.
    """

    kind: str
    where: str
    what: str
    breaks: bool

    def __str__(self) -> str:
        return shown(f"{self.where}: {self.what}")


def refuse(problems: Sequence[Problem]) -> None:
    """Raise an error that lists the first problems that break a run, if there are any; else log the others by kind.

    Raises:
        AnnotationError: at least one problem breaks a run.
    """
    broken = [problem for problem in problems if problem.breaks]
    if broken:
        more = f"\n... and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise AnnotationError("\n".join(map(str, broken[:SHOWN])) + more)
    first = {problem.kind: problem for problem in reversed(problems)}
    for kind, count in Counter(problem.kind for problem in problems).items():
        more = f" ({count} of this kind; `mmgcvit check-data` lists them)" if count > 1 else ""
        prefix = "" if str(first[kind]).startswith(kind) else f"{kind}: "
        print_log(f"{prefix}{first[kind]}{more}", logger="current", level=logging.WARNING)


def data_sets(dataset: Any) -> Iterator[Mapping]:
    """Yield the data sets inside a config's wrappers (repeated, balanced, concatenated)."""
    if not dataset:
        return
    if "dataset" in dataset:
        yield from data_sets(dataset["dataset"])
    elif "datasets" in dataset:
        for inner in dataset["datasets"]:
            yield from data_sets(inner)
    else:
        yield dataset


def metrics_of(evaluator: Any) -> list[Any]:
    """Return the metrics of a config's evaluator: a metric, a list of them, or an Evaluator with ``metrics``."""
    if isinstance(evaluator, Mapping):
        evaluator = evaluator.get("metrics", evaluator)
    if isinstance(evaluator, (list, tuple)):
        return list(evaluator)
    return [evaluator] if evaluator else []


def dataset_class(dataset: Mapping) -> Any:
    """Return the class of a config's data set, in the scope in which it would be built; None if it is unknown."""
    return class_of(DATASETS, dataset)


def class_names(dataset: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names of a config's data set: its own, in the config or in a file, or those of its class; None if unknown.

    A file that cannot be read is reported by the checks of the data.
    """
    names = (dataset.get("metainfo") or {}).get("classes") or dataset.get("classes")
    if isinstance(names, str):
        try:
            return tuple(read_lines("classes", names))
        except AnnotationError:
            return None
    if names is None:
        names = (getattr(class_of(DATASETS, dataset), "METAINFO", None) or {}).get("classes")
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else None


def inner_datasets(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside built wrappers."""
    if hasattr(dataset, "datasets"):
        for inner in dataset.datasets:
            yield from inner_datasets(inner)
    elif hasattr(dataset, "dataset"):
        yield from inner_datasets(dataset.dataset)
    else:
        yield dataset
