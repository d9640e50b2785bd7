"""docs/troubleshooting.md has every kind of error message of the package, by its words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from conftest import ROOT

from mmgcvit import errors
from mmgcvit.utils.text import counted

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
OTHERS = {"cuda out of memory"}  # messages of other packages
HOLE = "\0"  # stands for a value in a message
LEAST = 4  # pairs of letters; messages with fewer pass on the words of another library
TEXTS = ("what", "problem", "reason", "why", "wrong")  # variables that hold a message, or a part of one


def words_of(node: ast.expr) -> str:
    """The fixed words of a message in the source, with holes for values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(words_of, node.values))
    if isinstance(node, ast.FormattedValue) and getattr(getattr(node.value, "func", None), "id", "") == "counted":
        return HOLE + counted(2, *map(words_of, node.value.args[1:]))[1:]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return words_of(node.left) + words_of(node.right)
    return HOLE


def messages() -> Iterator[tuple[str, str]]:
    """(place, message) of each error raised in the package, and of each problem of a dataset or config."""
    for path in sorted((ROOT / "mmgcvit").rglob("*.py")):
        if ".mim" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            message = None
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                message = node.exc.args[0]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem" and len(node.args) > 2:
                message = node.args[2]
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in TEXTS:
                message = node.value
            words = words_of(message) if message is not None else ""
            if len(re.findall(r"[A-Za-z]{2}", words)) >= LEAST:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", words


def phrases() -> list[str]:
    """What the page says that messages have: code in the first column of its tables; `...` stands for values."""
    tables = re.findall(r"^\| The message has \|.*\n\|.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    return [phrase for row in rows for phrase in re.findall(r"`([^`]+)`", re.split(r"(?<!\\)\|", row)[1])]


def pattern(phrase: str) -> re.Pattern[str]:
    """Finds the words of a phrase in a message."""
    return re.compile(".*".join(map(re.escape, phrase.split("..."))), re.DOTALL | re.IGNORECASE)


MESSAGES = list(messages())


def test_messages_are_found():
    assert len(MESSAGES) > 400
    assert any("allowed: 'stop', 'skip'" in words for _, words in MESSAGES)


def test_phrases_are_specific():
    assert all(len(re.findall(r"[A-Za-z]", phrase)) >= 5 for phrase in phrases())


def test_no_phrase_is_out_of_date():
    """The words of each phrase are in a text of the source."""
    texts = [words_of(node) for path in (ROOT / "mmgcvit").rglob("*.py") if ".mim" not in path.parts
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, (ast.Constant, ast.JoinedStr))]  # fmt: skip
    source = "\n".join(texts).lower()
    parts = {part.strip().lower() for phrase in phrases() for part in phrase.split("...")} - OTHERS
    assert not [part for part in parts if part not in source]


def test_every_message_is_on_the_page():
    known = [pattern(phrase) for phrase in phrases()]
    missing = [f"{place}: {words.replace(HOLE, '...')}" for place, words in MESSAGES
               if not any(words_of_page.search(words) for words_of_page in known)]  # fmt: skip
    assert not missing, "\n".join(["add the words of these to docs/troubleshooting.md:", *missing])


@pytest.mark.parametrize("name", sorted(name for name, value in vars(errors).items() if isinstance(value, type)))
def test_every_class_is_on_the_page(name: str):
    assert f"`{name}`" in PAGE or getattr(errors, name).__name__ != name  # former names are in docs/migration.md
