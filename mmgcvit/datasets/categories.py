"""Reading of the categories of COCO's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmgcvit.errors import AnnotationError
from mmgcvit.utils.text import summarize


def read_categories(content: Any, path: str | Path) -> dict[int | str, str]:
    """Return the names of the categories by id, in the order of the file.

    Args:
        content: the content of the file.
        path: the file, for messages.

    Raises:
        AnnotationError: there are none, or one has no name, or no id of its own.
    """
    found: dict[int | str, str] = {}
    entries = entries_of(content, "categories", path)
    for i, category in enumerate(entries):
        where = f"{path}: categories[{i}]"
        identity, name = new_id(category, where, found), value_of(category, "name", where)
        if not isinstance(name, (str, int)) or not str(name).strip():
            raise AnnotationError(f"{where}.name={name!r}; allowed: a name")
        found[identity] = str(name)
    if not found:
        raise AnnotationError(f"{path}: categories is empty: there are no class names")
    return found


def entries_of(content: Any, key: str, path: str | Path) -> list[Mapping]:
    """Return one of the lists of a COCO file: 'images', 'annotations', 'categories'.

    Raises:
        AnnotationError: it is missing, or is no list of objects.
    """
    values = content.get(key) if isinstance(content, Mapping) else None
    if not isinstance(values, list):
        raise AnnotationError(f"{path}: {key} is {type(values).__name__}; allowed: a list, as in COCO's format")
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise AnnotationError(f"{path}: {key}[{i}] is {value!r:.100}; allowed: an object with keys")
    return values


def value_of(entry: Mapping, key: str, where: str) -> Any:
    """Return a value of an entry.

    Raises:
        AnnotationError: the entry does not have it.
    """
    if key not in entry:
        raise AnnotationError(f"{where}: has no {key!r}; its keys are {summarize(entry)}")
    return entry[key]


def new_id(entry: Mapping, where: str, known: Mapping[Any, Any]) -> int | str:
    """Return the id of an entry.

    Raises:
        AnnotationError: it has none, or that of an entry before.
    """
    identity = value_of(entry, "id", where)
    if not isinstance(identity, (int, str)):
        raise AnnotationError(f"{where}.id={identity!r}; allowed: an integer")
    if identity in known:
        raise AnnotationError(f"{where}.id={identity!r}: an entry above has the same id")
    return identity
