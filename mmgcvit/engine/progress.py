"""Short output of runs: a live line on a terminal, plain lines on a pipe. The log file has everything.

mmengine writes what it logs to ``sys.stdout`` and to the log file. :func:`short_output` puts a filter in the place of
``sys.stdout``, so that nothing of mmengine is changed.
"""

from __future__ import annotations

import datetime
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO, cast

import numpy as np
import torch
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmgcvit.checkpoint.sources import READER
from mmgcvit.engine.evaluation import is_of_class
from mmgcvit.engine.guarded_stream import GuardedStream, StreamWrapper
from mmgcvit.utils.paths import short_path, short_paths
from mmgcvit.utils.program import is_first_process
from mmgcvit.utils.text import counted

#: Beginnings of log messages that are not shown: dumps, and what the progress lines say already.
HIDDEN_LOGS = (
    r"\s*-+\s*System environment:",
    r"Config:\n",
    r"Hooks will be executed in the following order",
    r"Distributed training is not used",
    r"paramwise_options",
    r"Checkpoints will be saved to",
    r"Exp name:",
    r"Saving checkpoint at",
    r"The previous best checkpoint",
    r"(Iter|Epoch)\((train|val|test)\)",
    r"Evaluating \w+\.\.\.",
    r"\w+_mAP_copypaste",
    r"\s*Average (Precision|Recall)",
    # of third parties, about their own code
    r'"FileClient" will be deprecated',
    r'"HardDiskBackend" is the alias',
    r"Failed to search registry with scope",
    r"Advance dataloader \d+ steps",
    r"Fast sampler-level resume is unavailable",
    r"The prefix is not set in metric class",
    r"Dataset \w+ has no metainfo",
)
#: Beginnings of lines that other packages print.
HIDDEN_PRINTS = (
    r"loading annotations into memory",
    r"done \(t=",
    r"creating index",
    r"index created",
    r"loading and preparing results",
    r"running per image evaluation",
    r"evaluate annotation type",
    r"accumulating evaluation results",
    r"average (precision|recall)",
    r"could not import onedl",
    r"loads checkpoint by",
)
#: Beginnings of Python warnings of other packages that a user cannot act on.
HIDDEN_WARNINGS = (
    r"`torch\.jit\.\w+` is deprecated",
    r"torch\.meshgrid: in an upcoming release",
    r"This DataLoader will create \d+ worker processes",
    r"'pin_memory' argument is set as true but no accelerator",
    r"Detected call of `lr_scheduler\.step\(\)` before",
    r"Failed to add <class .*VisBackend.>",
    r"<class .*Visualizer'> instance named of",
    r"The shape of value will convert from",
    r"``MultiScaleDeformableAttention`` has been moved",
    r"faster_coco_eval is not installed",
    r"To copy construct from a tensor",
    r"The current default scope",
    r"Default ``avg_non_ignore`` is False",
    r"The draw is False",
    r"Could not import OneDL",
    r"Warning: The \w+ is out of bounds",
    r"__array__ implementation doesn't accept a copy keyword",
    r"__array_wrap__ must accept context",
    r"Setting \w+_NUM_THREADS environment variable",
)
_LOGS = re.compile("|".join(HIDDEN_LOGS))
_PRINTS = re.compile(r"\s*(" + "|".join(HIDDEN_PRINTS) + ")", re.IGNORECASE)
_RECORD = re.compile(r"\d\d/\d\d \d\d:\d\d:\d\d - \w+ - ([A-Z]+) - (.*)", re.DOTALL)  # of mmengine's console handler
_EVALUATING = re.compile(r"Evaluating (\w+)\.\.\.")
_COLOURS = re.compile(r"\x1b\[[\d;]*m")
KINDS = {"bbox": "boxes", "segm": "masks"}  # what mmdet calls them
UNKNOWN = -1  # COCO's value of a metric without objects


class Output(StreamWrapper):
    """A text stream that leaves out what :data:`HIDDEN_LOGS` and :data:`HIDDEN_PRINTS` list.

    Args:
        stream: the stream to write to.
        errors_only: show no messages but errors.

    Attributes:
        live: rich's Progress while a live line is shown.
    """

    def __init__(self, stream: TextIO | StreamWrapper, errors_only: bool = False) -> None:
        super().__init__(stream)
        self.errors_only = errors_only
        self.filtering = True
        self.quiet = False  # show no messages but warnings
        self.live: Any = None
        self.waiting = ""  # the beginning of a line
        self.evaluated = ""  # what mmdet evaluates

    def write(self, text: str) -> int:
        """Write a log record, or a part of what is printed."""
        record = _RECORD.fullmatch(_COLOURS.sub("", text)) if self.filtering else None
        if record is not None:  # a handler writes a record at once
            level, message = record.groups()
            if (self.quiet and level == "INFO") or (self.errors_only and level not in ("ERROR", "CRITICAL")):
                return len(text)
            if what := _EVALUATING.match(message):
                self.evaluated = what[1]
            if message.startswith("\n+-"):
                message = self._table(message)
            if not _LOGS.match(message):
                message = short_paths(message.rstrip("\n").replace(READER, ""))
                self.show(message if level == "INFO" else f"{level.lower()}: {message}")
            return len(text)
        if self.errors_only and self.filtering:
            return len(text)
        *lines, self.waiting = (self.waiting + text).split("\n")
        for line in lines:
            if not (self.filtering and _PRINTS.match(line)):
                self.show(line)
        return len(text)

    def _table(self, text: str) -> str:
        """A table of mmdet or mmseg with a title, if it has none, and '-' for what there is nothing of."""
        text = text.rstrip("\n")
        found = re.sub(r"(?<=[^\n]\| )( *)nan( *)(?= \|)", r"\1 - \2", text)  # not in the first column
        ap = "mAP" in text and "category" in text
        title = f"\nAP of each class: {KINDS.get(self.evaluated, self.evaluated)}" if ap else ""
        return title + found + ("\n(-: no objects)" if found != text else "")

    def flush(self) -> None:
        """Write the beginning of a line, too."""
        if self.waiting and self.live is None and not _PRINTS.match(self.waiting):
            self.stream.write(self.waiting)
            self.waiting = ""
        self.stream.flush()

    def show(self, line: str) -> None:
        """Write a line, above the live line if there is one."""
        if self.live is not None:
            from rich.text import Text

            self.live.console.print(Text(line))
        else:
            self.stream.write(f"{line}\n")
            self.stream.flush()

    def stop(self) -> None:
        """Remove the live line."""
        if self.live is not None:
            self.live.stop()
            self.live = None


@contextmanager
def short_output(verbose: bool = False) -> Iterator[None]:
    """Show the progress of runs inside the block in short lines, without dumps and without others' warnings.

    If the reader of standard output goes away, the program ends, or a training goes on
    (:class:`~mmgcvit.engine.guarded_stream.GuardedStream`). Of the processes of a launched run, only the first one
    shows more than errors.

    Args:
        verbose: show everything.
    """
    before, guarded = sys.stdout, GuardedStream(sys.stdout)
    if verbose:
        sys.stdout = guarded
        try:
            yield
        finally:
            sys.stdout = before
        return
    output = Output(guarded, errors_only=not is_first_process())
    with warnings.catch_warnings():
        for message in HIDDEN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        sys.stdout = output
        try:
            yield
        finally:
            output.stop()
            output.flush()
            output.filtering = False  # loggers keep the stream
            sys.stdout = before


@contextmanager
def only_warnings() -> Iterator[None]:
    """Show no messages but warnings inside the block, where :func:`short_output` is used: the log file has all."""
    output = sys.stdout
    if not isinstance(output, Output):
        yield
        return
    output.quiet = True
    try:
        yield
    finally:
        output.quiet = False


class ProgressHook(Hook):
    """Show the progress of a run: losses, learning rate, time left, memory, and metrics.

    Args:
        output: the stream, from :func:`short_output`.
    """

    priority = "VERY_LOW"  # after the values have been updated

    def __init__(self, output: Output) -> None:
        self.output = output
        self.interval = 10
        self.task: Any = None
        self.start = 0.0

    def before_train(self, runner: Runner) -> None:
        """Start the live line, on a terminal."""
        self.interval = next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), self.interval)
        self.start = time.monotonic()
        self.output.show(f"training for {_length(runner)}; log, config and checkpoints: {short_path(runner.work_dir)}")
        if self.output.isatty():
            self.output.live = _live(self.output.stream)
            self.task = self.output.live.add_task("", total=runner.max_iters, completed=runner.iter, status="")
            self.output.live.start()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Update the live line; without one, write a line at the interval of mmengine's logger."""
        if self.output.live is not None:
            self.output.live.update(self.task, completed=runner.iter + 1, status=_status(runner, self.interval))
        elif (batch_idx + 1) % self.interval == 0 or runner.iter + 1 == runner.max_iters:
            self.output.show(f"{_where(runner, runner.iter + 1)}  {_status(runner, self.interval)}")

    def after_train_epoch(self, runner: Runner) -> None:
        """On a terminal, leave a line for each epoch."""
        if self.output.live is not None and _by_epoch(runner):
            self.output.show(f"{_where(runner, runner.iter)}  {_status(runner, self.interval)}")

    def before_val_epoch(self, runner: Runner) -> None:
        """On a terminal, leave a line for the window before a validation."""
        if self.output.live is not None and not _by_epoch(runner):
            self.output.show(f"{_where(runner, runner.iter)}  {_status(runner, self.interval)}")

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Update the live line."""
        if self.output.live is not None:
            count = len(runner.val_dataloader)
            self.output.live.update(self.task, status=f"validation {batch_idx + 1}/{count}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the metrics."""
        values = "  ".join(f"{name}: {value}" for name, value in _results(runner.val_dataloader, metrics))
        self.output.show(f"{_where(runner, runner.iter)}  validation  {values}")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the metrics, one per line."""
        found = _results(runner.test_dataloader, metrics)
        width = max((len(name) for name, _ in found), default=0)
        lines = [f"  {name:<{width}}  {value}" for name, value in found]
        images = counted(len(runner.test_dataloader.dataset), "image")
        self.output.show("\n".join([f"results on {images}:", *lines]) if lines else f"no results on {images}")

    def after_train(self, runner: Runner) -> None:
        """Remove the live line."""
        self.output.stop()
        self.output.show(f"trained in {_duration(time.monotonic() - self.start)}")


def _live(stream: TextIO | StreamWrapper) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    status = TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    columns = (BarColumn(16), MofNCompleteColumn(), status)
    return Progress(
        *columns, console=Console(file=cast(TextIO, stream)), transient=True, expand=True, redirect_stdout=False
    )


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _length(runner: Runner) -> str:
    return counted(runner.max_epochs, "epoch") if _by_epoch(runner) else counted(runner.max_iters, "iteration")


def _where(runner: Runner, done: int) -> str:
    """Where a run is: its epoch, if it counts epochs, and its iteration."""
    iterations = f"iter {done}/{runner.max_iters}"
    if not _by_epoch(runner):
        return iterations
    per_epoch = max(1, runner.max_iters // max(1, runner.max_epochs))
    return f"epoch {-(-done // per_epoch)}/{runner.max_epochs}  {iterations}"


def _status(runner: Runner, window: int) -> str:
    """Losses, their mean over some iterations, learning rate, time left and memory."""
    hub = runner.message_hub
    names = [name for name in hub.log_scalars if name.startswith("train/") and "loss" in name]
    names.sort(key=lambda name: name != "train/loss")  # the sum first
    parts = [f"{name.removeprefix('train/')} {hub.get_scalar(name).mean(window):.4g}" for name in names]
    if "train/lr" in hub.log_scalars:
        parts.insert(min(1, len(parts)), f"lr {hub.get_scalar('train/lr').current():.2g}")
    if "eta" in hub.runtime_info:
        parts.insert(min(2, len(parts)), f"eta {_duration(hub.get_info('eta'))}")
    if torch.cuda.is_available():
        parts.insert(min(3, len(parts)), f"memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return "  ".join(parts)


def _results(loader: DataLoader, metrics: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Names and values of metrics that are known, as text, without those of single classes: a table has them."""
    classes = (getattr(loader.dataset, "metainfo", None) or {}).get("classes") or ()
    # numpy formats a float32 with the digits of a float64
    fractions = (float, np.floating)
    return [
        (name, f"{value:.4f}" if isinstance(value, fractions) else str(value))
        for name, value in (metrics or {}).items()
        if value != UNKNOWN and value == value and not is_of_class(name, classes)  # not those without objects
    ]


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
