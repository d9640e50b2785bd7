"""Output that nobody reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mmgcvit.utils.pipes import run_program


@contextmanager
def unread_output() -> Iterator[None]:
    """Standard output to a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "__stdout__", stream)
        yield


@pytest.mark.parametrize("flush", [True, False])
def test_without_a_reader(flush: bool):
    with unread_output():
        assert run_program(lambda: print("a", flush=flush)) == 1
        print("b", flush=True)  # what is written later, at exit, goes to nowhere


def test_help_without_a_reader():
    def main() -> None:
        print("usage:")
        sys.exit(0)

    with unread_output():
        assert run_program(main) == 1


def test_another_broken_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def main() -> None:
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run_program(main)


def test_ctrl_c():
    def main() -> None:
        raise KeyboardInterrupt

    assert run_program(main) == 130


def test_closed_by_the_shell(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert run_program(lambda: print("a") or 3) == 3
    sys.stdout.close()
