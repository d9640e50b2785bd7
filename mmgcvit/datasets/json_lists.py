"""Reading of JSON files with one very long list, whose entries would take several times the memory of the text."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

PART = 512  # entries that are in memory at a time
SPACE = re.compile(r"[ \t\n\r]*")  # what JSON allows between values
SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")  # between the entries of a list, and behind the last one
DECODER = json.JSONDecoder()
T = TypeVar("T")


class Entries(Sequence[Any]):
    """The entries of a list in a JSON text; each one is decoded anew whenever it is read.

    Args:
        text: the JSON text.
        starts: where each entry begins in it.
    """

    def __init__(self, text: str, starts: Sequence[int]) -> None:
        self.text, self.starts = text, starts

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [DECODER.raw_decode(self.text, start)[0] for start in self.starts[index]]
        return DECODER.raw_decode(self.text, self.starts[index])[0]


def decode_by_parts(text: str, key: str, look: Callable[[list], T]) -> tuple[Any, list[T]]:
    """Decode a JSON text as ``json.loads`` does, without keeping the entries of one list.

    Args:
        text: the text.
        key: name of the list, in the object that the text is.
        look: called with the first :data:`PART` entries of the list, with the next ones, and so on.

    Returns:
        The content, with :class:`Entries` in the place of the list, and what ``look`` has returned. Other texts are
        decoded whole: a list has its entries, if there is one.

    Raises:
        ValueError: it is not JSON; the message names the place.
        RecursionError: it is nested too deeply.
    """
    found = _decode_object(text, key, look)
    if found:
        return found
    content = json.loads(text)  # usually raises an error
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return content, []
    return content, [look(entries[start : start + PART]) for start in range(0, len(entries), PART)]


def _decode_object(text: str, key: str, look: Callable[[list], T]) -> tuple[dict, list[T]] | None:
    """Content of a JSON object, and what ``look`` has returned; None for any other text."""
    content: dict[str, Any] = {}
    results: list[T] = []
    try:
        position = _skip(text, 0)
        if text[position] != "{":
            return None
        while text[position] != "}":
            name, position = DECODER.raw_decode(text, _skip(text, position + 1))
            position = _skip(text, position)
            if not isinstance(name, str) or text[position] != ":":
                return None
            position = _skip(text, position + 1)
            if name == key:
                results = []  # of a list with the same name
            if name == key and text[position] == "[":
                content[name], results, position = _decode_list(text, position + 1, look)
            else:
                content[name], position = DECODER.raw_decode(text, position)
            position = _skip(text, position)
            if text[position] not in ",}":
                return None
    except (ValueError, IndexError, RecursionError):
        return None
    return (content, results) if _skip(text, position + 1) == len(text) else None


def _decode_list(text: str, position: int, look: Callable[[list], T]) -> tuple[Entries, list[T], int]:
    """Decode a list, from the place behind its opening bracket on.

    Returns:
        Its entries, what ``look`` has returned, and the place behind the closing bracket.

    Raises:
        ValueError: it is not JSON, or the text ends inside the list.
    """
    starts: array[int] = array("q")
    part: list = []
    results: list[T] = []
    position = _skip(text, position)
    if text.startswith("]", position):
        return Entries(text, starts), results, position + 1
    end = False
    while not end:
        starts.append(position)
        entry, position = DECODER.raw_decode(text, position)
        part.append(entry)
        separator = SEPARATOR.match(text, position)
        if separator is None:
            raise ValueError  # caught above
        position, end = separator.end(), separator[1] == "]"
        if len(part) == PART or end:
            results.append(look(part))
            part = []
    return Entries(text, starts), results, position


def _skip(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    assert found  # it matches nothing, too
    return found.end()
