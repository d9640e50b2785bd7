"""The output of a run whose reader goes away."""

from __future__ import annotations

import errno
import io
import logging
import sys
from pathlib import Path

import pytest
from classification_run import config, make_tree
from mmengine.logging import MMLogger

from mmgcvit import apis
from mmgcvit.engine.guarded_stream import GuardedStream
from mmgcvit.engine.progress import short_output


class Breaking(io.StringIO):
    """A stream that fails after a text was written."""

    def __init__(self, after: str, number: int = errno.EPIPE) -> None:
        super().__init__()
        self.after, self.number = after, number

    def write(self, text: str) -> int:
        if self.after in self.getvalue():
            raise OSError(self.number, "it cannot be written")
        return super().write(text)


@pytest.mark.parametrize("verbose", [False, True])
def test_before_the_training_the_program_ends(verbose: bool, monkeypatch: pytest.MonkeyPatch):
    """Also if a logger writes, which catches other exceptions and prints them."""
    monkeypatch.setattr(sys, "stdout", Breaking(""))
    with pytest.raises(SystemExit) as end, short_output(verbose):
        MMLogger(f"test without a reader {verbose}", log_level="INFO").log(logging.INFO, "a message")
    assert end.value.code == 1


def test_other_errors_are_errors():
    with pytest.raises(OSError, match="cannot be written"):
        GuardedStream(Breaking("", errno.ENOSPC)).write("a")


@pytest.mark.parametrize(("verbose", "number"), [(False, errno.EPIPE), (True, errno.EPIPE), (False, errno.EIO)])
def test_a_training_goes_on(
    verbose: bool, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    cfg = config(make_tree(tmp_path / "colours", train=4, val=1), tmp_path / "work", batch_size=6, workers=0)
    cfg.log_level, cfg.custom_hooks, cfg.val_cfg, cfg.randomness = "INFO", [], dict(type="ValLoop"), dict(seed=1)
    stream = Breaking("lr: " if verbose else "iter 1/4", number)
    monkeypatch.setattr(sys, "stdout", stream)
    with short_output(verbose):
        runner = apis.train(cfg)
        print("the report")
    assert runner.iter == 4
    assert "the report" not in stream.getvalue()
    assert "Traceback" not in capsys.readouterr().err
    log = next((tmp_path / "work").glob("*/*.log")).read_text()
    said = "the output cannot be written any more (it cannot be written): the training goes on without it"
    assert log.count(said) == 1
    assert log.index(said) < log.index("Epoch(val)")
