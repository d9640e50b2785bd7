"""Short output of runs: what is hidden, what is shown, lines on a pipe and the live line on a terminal."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from classification_run import config, make_tree
from conftest import ROOT
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmgcvit import apis
from mmgcvit.apis.summary import resume_command
from mmgcvit.commands import COMMANDS
from mmgcvit.engine.guarded_stream import GuardedStream
from mmgcvit.engine.progress import HIDDEN_WARNINGS, Output, ProgressHook, short_output


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """Two epochs of two batches."""
    cfg = config(make_tree(tmp_path / "colours", train=4, val=1), tmp_path / "work", batch_size=6, workers=0)
    cfg.log_level, cfg.custom_hooks, cfg.val_cfg, cfg.randomness = "INFO", [], dict(type="ValLoop"), dict(seed=1)
    return cfg


def written(*texts: str) -> str:
    stream = io.StringIO()
    output = Output(stream)
    for text in texts:
        output.write(text)
    output.flush()
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("11/28 12:38:01 - mmengine - INFO - \n-----\nSystem environment:\n    sys.platform: linux\n", ""),
        ("11/28 12:38:01 - mmengine - INFO - Config:\na = 1\n\n", ""),
        ("11/28 12:38:01 - mmengine - INFO - Iter(train) [ 275/1100]  lr: 1e-3\n", ""),
        ("11/28 12:38:01 - mmengine - INFO - Iter 5 is a message\n", "Iter 5 is a message\n"),
        ("11/28 12:38:01 - mmengine - \x1b[5m\x1b[4m\x1b[33mWARNING\x1b[0m - careful\n", "warning: careful\n"),
        ('11/28 12:38:01 - mmengine - WARNING - "FileClient" will be deprecated in future.\n', ""),
        ("11/28 12:38:01 - mmengine - INFO - Advance dataloader 31 steps to skip data that has been trained\n", ""),
        ("11/28 12:38:01 - mmengine - ERROR - skipped image a.jpg\n", "error: skipped image a.jpg\n"),
        ("11/28 12:38:01 - mmengine - INFO - per class\n|a|b|\n", "per class\n|a|b|\n"),
        (
            "11/28 12:38:01 - mmengine - INFO - Load checkpoint from mmgcvit-reader://a.pth\n",
            "Load checkpoint from a.pth\n",
        ),
        ("DONE (t=0.01s).\n", ""),
        ("Done\n", "Done\n"),
        ("Could not import OneDL. Skipping OneDL datasets.\n", ""),
        ("a line\nloading annotations into memory...\nanother\n", "a line\nanother\n"),
        ("without an end", "without an end"),
    ],
)
def test_what_is_shown(text: str, shown: str):
    assert written(text) == shown


def test_print_writes_in_parts():
    assert written("Loading and preparing results...", "\n", "a", "b", "\n") == "ab\n"


def test_everything_is_restored(capsys: pytest.CaptureFixture):
    before, filters = sys.stdout, list(warnings.filters)
    with short_output():
        kept = sys.stdout
        assert isinstance(kept, Output)
        assert (kept.isatty(), kept.writable(), kept.encoding) == (False, True, before.encoding)
        print("creating index...")
        with warnings.catch_warnings(record=True) as shown:
            warnings.warn("The draw is False, it means that the hook", stacklevel=1)
            warnings.warn("<class 'a.LocalVisualizer'> instance named of visualizer has been created", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
        assert [str(w.message) for w in shown] == ["something else"]
    assert sys.stdout is before
    assert warnings.filters == filters
    print("creating index...", file=kept)  # of a logger that has kept the stream
    assert capsys.readouterr().out == "creating index...\n"
    with short_output(verbose=True):
        assert isinstance(sys.stdout, GuardedStream)
        print("creating index...")
    assert sys.stdout is before
    assert capsys.readouterr().out == "creating index...\n"
    assert len(set(HIDDEN_WARNINGS)) == len(HIDDEN_WARNINGS)


@pytest.mark.parametrize(("rank", "shown"), [("0", "a print\nwarning: a warning\nerror: an error\n"),
                                             ("1", "error: an error\n")])  # fmt: skip
def test_other_processes_show_errors_only(
    rank: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("RANK", rank)
    with short_output():
        print("a print")
        sys.stdout.write("11/29 12:00:00 - mmengine - WARNING - a warning\n")
        sys.stdout.write("11/29 12:00:00 - mmengine - ERROR - an error\n")
    assert capsys.readouterr().out == shown


def test_lines_of_a_run_on_a_pipe(cfg: Config, capsys: pytest.CaptureFixture):
    with short_output():
        apis.train(cfg)
    lines = capsys.readouterr().out.splitlines()
    trained = [line for line in lines if "  loss " in line]
    assert [line[:19] for line in trained] == [f"epoch {1 + i // 2}/2  iter {i + 1}/4" for i in range(4)]
    assert "  eta 0:" in trained[0]
    assert "  lr " in trained[0]
    validated = [line for line in lines if "  validation  " in line]
    assert [line[:19] for line in validated] == ["epoch 2/2  iter 4/4"]
    assert "accuracy/top1: " in validated[0]
    assert lines[-1].startswith("trained in 0:00:")
    assert len(lines) < len(trained) + 12
    (log,) = Path(cfg.work_dir).glob("*/*.log")
    text = log.read_text()
    for dumped in ("Config:", "System environment:", "Hooks will be executed", "Epoch(train)"):
        assert dumped in text
        assert dumped not in "\n".join(lines)


def test_live_line_on_a_terminal(cfg: Config, monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with short_output():
        runner = apis.train(cfg)
    text = terminal.getvalue()
    assert "\x1b[?25l" in text  # the cursor is hidden while the line is live
    assert text.count("\x1b[?25h") >= 1
    assert f"{runner.max_iters}/{runner.max_iters}" in text
    assert "validation 1/" in text or "  validation  " in text
    lasting = [line for line in text.replace("\r", "\n").split("\n") if line.startswith(("epoch", "\x1b[2Kepoch"))]
    assert sum("  validation  accuracy/top1: " in line for line in lasting) == 1
    assert sum("  loss " in line for line in lasting) == 2  # one per epoch
    assert "trained in 0:" in text.splitlines()[-1]


def test_live_line_ends_with_an_error(cfg: Config, monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), dict(type="EmptyCacheHook", after_iter=True)]
    monkeypatch.setattr("mmengine.hooks.EmptyCacheHook._after_iter", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError), short_output():
        apis.train(cfg)
    assert terminal.getvalue().rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in terminal.getvalue()


def test_metrics_of_a_test(cfg: Config, files: dict[str, Path], capsys: pytest.CaptureFixture):
    cfg.model.num_classes = 5
    with short_output():
        metrics = apis.test(cfg, str(files["mmgcvit"]))
    lines = capsys.readouterr().out.splitlines()
    (at,) = (i for i, line in enumerate(lines) if re.fullmatch(r"results on \d+ images:", line))
    assert lines[at + 1 :] == [f"  {name:<{len(max(metrics, key=len))}}  {metrics[name]:.4f}" for name in metrics]


def test_a_test_without_metrics(capsys: pytest.CaptureFixture):
    """As with format_only=True, which writes the predictions."""
    with short_output():
        hook = ProgressHook(sys.stdout)
        hook.after_test_epoch(SimpleNamespace(test_dataloader=SimpleNamespace(dataset=range(3))), {"unknown": -1})
    assert capsys.readouterr().out == "no results on 3 images\n"


def test_end_of_a_run(tmp_path: Path):
    import torch

    detector = Config(dict(model=dict(type="FasterRCNN", roi_head=dict()), test_dataloader=dict(batch_size=1)))
    panoptic = Config(dict(detector, model=dict(type="PanopticFPN", panoptic_fusion_head=dict())))
    assert apis.end_of_run(tmp_path, "c.py", detector) == ""
    torch.save({}, tmp_path / "epoch_3.pth")
    found = apis.end_of_run(tmp_path, "c.py", detector).splitlines()
    assert found[0] == f"last checkpoint: {tmp_path}/epoch_3.pth"
    torch.save({}, tmp_path / "best_accuracy_epoch_2.pth")
    (tmp_path / "report.html").touch()
    best, last, report, predict, export = apis.end_of_run(tmp_path, "my config.py", detector).splitlines()
    backbone = Config(dict(model=detector.model, test_dataloader=None))
    assert apis.end_of_run(tmp_path, "my config.py", backbone).splitlines() == [best, last, report]
    assert apis.end_of_run(tmp_path, "my config.py", panoptic).splitlines() == [best, last, report, predict]
    assert best == f"best checkpoint: {tmp_path}/best_accuracy_epoch_2.pth"
    assert last == found[0]
    assert report.endswith(f" {tmp_path}/report.html")
    assert f"mmgcvit predict IMAGES 'my config.py' {tmp_path}/best_accuracy_epoch_2.pth" in predict
    assert export.endswith(f"mmgcvit export 'my config.py' {tmp_path}/best_accuracy_epoch_2.pth {tmp_path}/model.onnx")


def test_logger_writes_through_the_filter(capsys: pytest.CaptureFixture):
    with short_output():
        logger = MMLogger("test of short output", log_level="INFO")
        logger.info("Checkpoints will be saved to here")
        logger.log(logging.WARNING, "careful")
    assert capsys.readouterr().out == "warning: careful\n"


def test_tools_show_no_messages_of_other_packages():
    """Each command that imports mmdet or mmseg does so inside short_output."""
    # These import none of them.
    without = {"benchmark-gpu", "convert-checkpoint", "data", "doctor", "make-digit-scenes", "ops", "prepare-data",
               "weights"}  # fmt: skip
    modules = {name: one.module or f"mmgcvit.commands.{name.replace('-', '_')}" for name, one in COMMANDS.items()}
    texts = {name: (ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8") for name, module in modules.items()}
    assert {name for name, text in texts.items() if "short_output(" not in text} == without


def test_the_command_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In place of 'the same command': make demo would start again, and python may be that of another environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "env/bin/python"))
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/python").touch(0o755)

    def said(command: str, **settings) -> str:
        return resume_command(Config(dict(command=command, **settings)))

    assert said("python tools/train.py c.py --work-dir 'a b'") == (
        "env/bin/python tools/train.py c.py --work-dir 'a b' --resume"
    )
    assert said("mmgcvit finetune data") == "env/bin/python -m mmgcvit finetune data --resume"
    monkeypatch.setenv("PATH", str(tmp_path / "env/bin"))
    assert said("python tools/train.py c.py") == "python tools/train.py c.py --resume"
    assert said("python t.py c.py --resume old/iter_5.pth --amp") == "python t.py c.py --amp --resume"
    assert said("python t.py --resume c.py") == "python t.py c.py --resume"
    assert said("python t.py c.py", launcher="pytorch") == resume_command(Config()) == "the same command with --resume"
