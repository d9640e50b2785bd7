"""JSON files of which one list is decoded by parts: the same content and the same errors as those of json.loads."""

from __future__ import annotations

import json

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
