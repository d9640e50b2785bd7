"""JSON files of which one list is decoded by parts: the same content and the same errors as those of json.loads."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from mmgcvit.datasets import json_lists
from mmgcvit.datasets.json_lists import Entries, decode_by_parts

GOOD = [
    '{"a": 1, "list": [1, {"list": [2]}, "]", [3, "}"]], "b": {"c": []}}',
    '\n {"list"\t:\r\n[ 1 , 2\n,3 ] , "list2":[] } \n',
    '{"list":[]}',
    '{"list": [ \n ], "a": null}',
    '{"list": [1, 2], "list": [3]}',
    '{"list": [1, 2], "li\\u0073t": [3, 4, 5]}',
    '{"list": [1, 2], "list": "none"}',
    '{"list": {"list": [1]}}',
    '{"info": {"list": [1, 2]}}',
    '{"list": [NaN, -Infinity, 1e999, "\\ud800", 123456789012345678901234567890]}',
    "{}",
    "[1, 2]",
    '"list"',
    "7",
]
BAD = [
    "", " ", "{",
    '{"list"', '{"list":', '{"list": [', '{"list": [1', '{"list": [1,', '{"list": [1,]}', '{"list": [,1]}',
    '{"list": [1 2]}', '{"list": [1]', '{"list": [1],}', '{"list": [1]} x', '{"list": [1]; "a": 2}', "{list: [1]}",
    '{1: [1], "list": [1]}', '{"list": [1], 2: 3}', '{"a": 1 "list": [1]}', '{"list": [{"a": }]}', '{"a"; [1]}',
    '{"list": ' + "[" * 100_000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("part", [1, 2, 512])
@pytest.mark.parametrize("text", GOOD)
def test_same_content(monkeypatch: pytest.MonkeyPatch, text: str, part: int):
    monkeypatch.setattr(json_lists, "PART", part)
    expected = json.loads(text)
    content, parts = decode_by_parts(text, "list", list)
    entries = content.get("list") if isinstance(content, dict) else None
    whole = isinstance(expected, dict) and isinstance(expected.get("list"), list)
    assert isinstance(entries, Entries) == whole
    if whole:
        assert all(len(each) == part for each in parts[:-1])
        assert repr([entry for each in parts for entry in each]) == repr(expected["list"])
        assert len(entries) == len(expected["list"])
        assert repr([entries[i] for i in range(len(entries))]) == repr(entries[:]) == repr(expected["list"])
        content["list"] = expected["list"]
    else:
        assert parts == []
    assert repr(content) == repr(expected)


@pytest.mark.parametrize("text", BAD)
def test_same_errors(text: str):
    with pytest.raises((ValueError, RecursionError)) as expected:
        json.loads(text)
    with pytest.raises((ValueError, RecursionError)) as found:
        decode_by_parts(text, "list", len)
    assert (type(found.value), str(found.value)) == (type(expected.value), str(expected.value))


LONG = {
    "objects": [dict(id=i, box=[i, 0.5, -1e-3, 2e9]) for i in range(200)],
    "nested objects": [dict(id=i, parts=[dict(x=1), dict(y=[{}, {"z": 2}])]) for i in range(100)],
    "strings like boundaries": [dict(id=i, name='}, {"id": 1}, {' * (i % 3)) for i in range(100)],
    "no objects": [[i, i] for i in range(200)],
    "few objects": [i if i % 50 else dict(id=i) for i in range(200)],
    "one object": [dict(id=0)],
}


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", LONG)
def test_same_content_by_spans(monkeypatch: pytest.MonkeyPatch, name: str, indent: int | None, processes: int):
    """Boundaries between spans may be wrong, or behind the end of the list."""
    monkeypatch.setattr(json_lists, "SPAN", 40)
    monkeypatch.setattr(json_lists, "PART", 4)
    expected = {"first": LONG["objects"], "list": LONG[name], "last": LONG["objects"]}
    content, parts = decode_by_parts(json.dumps(expected, indent=indent), "list", list, processes)
    assert [entry for each in parts for entry in each] == content["list"][:] == expected["list"]
    assert max(map(len, parts)) <= 4
    assert {**content, "list": expected["list"]} == expected


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("place", [0.3, 0.7, 0.99])
def test_same_errors_by_spans(monkeypatch: pytest.MonkeyPatch, place: float, processes: int):
    monkeypatch.setattr(json_lists, "SPAN", 40)
    text = json.dumps({"list": LONG["objects"]})
    before, behind = text[: int(place * len(text))], text[int(place * len(text)) :]
    for bad in (before, f"{before}\0{behind}"):
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(bad)
        with pytest.raises(json.JSONDecodeError) as found:
            decode_by_parts(bad, "list", len, processes)
        assert str(found.value) == str(expected.value)


def test_processes_that_are_killed(monkeypatch: pytest.MonkeyPatch):
    """Such as where memory is short: the list is decoded by this process."""
    monkeypatch.setattr(json_lists, "SPAN", 40)
    own = os.getpid()

    def look(part: list[dict[str, Any]]) -> list[tuple[int, bool]]:
        if os.getpid() != own and part[0]["id"] > 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return [(entry["id"], os.getpid() == own) for entry in part]

    _, parts = decode_by_parts(json.dumps({"list": LONG["objects"]}), "list", look, 3)
    found = [entry for part in parts for entry in part]
    assert [entry for entry, _ in found] == list(range(200))
    assert {here for _, here in found} == {False, True}
