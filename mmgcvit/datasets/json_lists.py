"""Reading of JSON files with one very long list, whose entries would take several times the memory of the text."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, overload

from mmgcvit.datasets.processes import Processes
from mmgcvit.errors import UsageError

PART = 512  # entries that are in memory at a time
SPAN = 2**22  # characters that a process decodes at a time
SPACE = re.compile(r"[ \t\n\r]*")  # what JSON allows between values
SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")  # between the entries of a list, and behind the last one
BOUNDARY = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")  # between two objects, which may be entries of the list
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


class _Span(NamedTuple):
    """What has been decoded of a list."""

    starts: array[int]  # where each entry begins
    results: list  # of ``look``
    position: int  # behind the last entry and its separator
    end: bool  # whether the list ends there


def decode_by_parts(text: str, key: str, look: Callable[[list], T], processes: int = 1) -> tuple[Any, list[T]]:
    """Decode a JSON text as ``json.loads`` does, without keeping the entries of one list.

    Args:
        text: the text.
        key: name of the list, in the object that the text is.
        look: called with the first entries of the list, with the next ones, and so on; at most :data:`PART` at a time.
        processes: number of processes that decode a long list of objects, and call ``look``.

    Returns:
        The content, with :class:`Entries` in the place of the list, and what ``look`` has returned. Other texts are
        decoded whole: a list has its entries, if there is one.

    Raises:
        ValueError: it is not JSON; the message names the place.
        RecursionError: it is nested too deeply.
    """
    found = _decode_object(text, key, look, processes)
    if found:
        return found
    content = json.loads(text)  # usually raises an error
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return content, []
    return content, [look(entries[start : start + PART]) for start in range(0, len(entries), PART)]


def _decode_object(text: str, key: str, look: Callable[[list], T], processes: int) -> tuple[dict, list[T]] | None:
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
                content[name], results, position = _decode_list(text, position + 1, look, processes)
            else:
                content[name], position = DECODER.raw_decode(text, position)
            position = _skip(text, position)
            if text[position] not in ",}":
                return None
    except (ValueError, IndexError, RecursionError):
        return None
    return (content, results) if _skip(text, position + 1) == len(text) else None


def _decode_list(text: str, position: int, look: Callable[[list], T], processes: int) -> tuple[Entries, list[T], int]:
    """Decode a list, from the place behind its opening bracket on.

    Returns:
        Its entries, what ``look`` has returned, and the place behind the closing bracket.

    Raises:
        ValueError: it is not JSON, or the text ends inside the list.
    """
    starts: array[int] = array("q")
    results: list[T] = []
    position, end = _skip(text, position), False
    if text.startswith("]", position):
        return Entries(text, starts), results, position + 1
    for span in _decode_spans(text, _boundaries(text, position), look, processes):
        starts += span.starts
        results += span.results
        position, end = span.position, span.end
    if not end:
        rest = _decode_span(text, position, len(text), look)
        starts += rest.starts
        results += rest.results
        position = rest.position
    return Entries(text, starts), results, position


def _boundaries(text: str, position: int) -> list[int]:
    """Places where an entry begins, about :data:`SPAN` characters apart, if the list consists of simple objects.

    Some may be inside an entry, or behind the list.
    """
    found = [position]
    while len(text) - found[-1] > SPAN and (boundary := BOUNDARY.search(text, found[-1] + SPAN)):
        found.append(boundary.end())
    return found


def _decode_spans(text: str, begins: list[int], look: Callable[[list], T], processes: int) -> Iterator[_Span]:
    """Yield what is between the boundaries, up to the end of the list, or to a boundary that is inside an entry."""

    def decode(index: int) -> _Span | None:
        try:
            return _decode_span(text, begins[index], begins[index + 1], look)
        except (ValueError, RecursionError):  # a wrong boundary, or a fault of the text
            return None

    with Processes(decode, processes) as pool:
        spans = pool.map(range(len(begins) - 1))
        for following in begins[1:]:
            try:
                span = next(spans)
            except UsageError:  # a process was killed, such as when memory is short
                return
            if span is None:
                return
            yield span
            if span.end or span.position != following:
                return


def _decode_span(text: str, position: int, stop: int, look: Callable[[list], T]) -> _Span:
    """Decode the entries that begin before ``stop``, up to the end of the list."""
    starts: array[int] = array("q")
    part: list = []
    results: list[T] = []
    end = False
    while not end and position < stop:
        starts.append(position)
        entry, position = DECODER.raw_decode(text, position)
        part.append(entry)
        separator = SEPARATOR.match(text, position)
        if separator is None:
            raise ValueError  # caught above
        position, end = separator.end(), separator[1] == "]"
        if len(part) == PART or end or position >= stop:
            results.append(look(part))
            part = []
    if not end and stop == len(text):
        raise ValueError  # the text ends inside the list
    return _Span(starts, results, position, end)


def _skip(text: str, position: int) -> int:
    found = SPACE.match(text, position)
    assert found  # it matches nothing, too
    return found.end()
