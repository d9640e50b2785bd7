"""What a run has left in its work directory: config, checkpoints, logged values, versions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmgcvit.apis.checkpoints import newest_checkpoint
from mmgcvit.errors import UsageError
from mmgcvit.registry import rename_old_types
from mmgcvit.utils.files import require_file

#: Values of a row of the log that are not metrics.
NO_METRICS = ("data_time", "time", "step", "epoch", "iter", "memory")
HIGH_RATE = 0.1  # share of the highest learning rate above which a run is not near the end of its schedule
CLEAR_GAIN = 0.02  # relative gain of a metric from one validation to the next that is more than noise
STAMP = re.compile(r"\d{8}_\d{6}")  # folder of a start of the run
TIME = re.compile(r"^(?:(\d{4})/)?(\d\d/\d\d \d\d:\d\d:\d\d) - mmengine", re.MULTILINE)
ENVIRONMENT = re.compile(r"System environment:\n(.*?)\n-{20,}", re.DOTALL)
COMPILING = re.compile(r"^ *PyTorch compiling details:.*?\n\n", re.DOTALL | re.MULTILINE)


@dataclass
class Run:
    """A run of ``mmgcvit train``.

    Attributes:
        work_dir: its folder.
        cfg: the config as it was used.
        config_file: the file with it.
        checkpoint: the checkpoint to evaluate; None if there is none.
        training: logged values of the training, by ascending 'iter'.
        validations: metrics of each validation, by ascending 'iter'.
        starts: begin and end of each start of the run that has a log.
        environment: what the last log says about machine and packages.
    """

    work_dir: Path
    cfg: Config
    config_file: Path
    checkpoint: str | None
    training: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)
    starts: list[tuple[datetime, datetime]] = field(default_factory=list)
    environment: str = ""

    @property
    def best_metric(self) -> str | None:
        """The metric that selects the best checkpoint, or the first one of the log."""
        chosen = ((self.cfg.get("default_hooks") or {}).get("checkpoint") or {}).get("save_best")
        names = [name for row in self.validations for name in row if name not in NO_METRICS]
        if isinstance(chosen, (list, tuple)):
            chosen = chosen[0] if chosen else None
        return chosen if chosen in names else next(iter(names), None)


def collect(work_dir: str | Path, checkpoint: str | None = None) -> Run:
    """Read what a run has left, also an interrupted or resumed one.

    Args:
        work_dir: folder of the run.
        checkpoint: the checkpoint to evaluate; by default the best one, else the last one.

    Raises:
        UsageError: the folder, a config in it or the checkpoint does not exist.
    """
    folder = Path(work_dir)
    if not folder.is_dir():
        raise UsageError(f"work directory {str(work_dir)!r}: no such folder")
    starts = sorted(path for path in folder.iterdir() if path.is_dir() and STAMP.fullmatch(path.name))
    trained = [path for path in starts if (path / "vis_data" / "scalars.json").is_file()]
    configs = [path / "vis_data" / "config.py" for path in reversed(trained or starts)]
    configs += sorted(folder.glob("*.py"), key=lambda path: -path.stat().st_mtime)
    file = next((path for path in configs if path.is_file()), None)
    if file is None:
        raise UsageError(
            f"work directory {str(work_dir)!r}: has no config; allowed: a folder that `mmgcvit train` wrote"
        )
    try:
        cfg = rename_old_types(Config.fromfile(str(file)))
    except Exception as error:  # a config is code, and may raise anything
        raise UsageError(f"config {str(file)!r}: cannot be loaded: {type(error).__name__}: {error}") from error
    if checkpoint is not None:
        require_file("checkpoint", checkpoint)
    else:
        checkpoint = best_checkpoint(folder)
    run = Run(folder, cfg, file, checkpoint)
    for path in trained:
        _add_scalars(run, path / "vis_data" / "scalars.json")
        _add_log(run, path)
    return run


def best_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that mmengine has saved as the best one; else the last intact one."""
    best = sorted(folder.glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    return str(best[-1]) if best else newest_checkpoint(folder)


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a killed run
            continue
        if isinstance(row, dict):
            rows.append({name: value for name, value in row.items() if isinstance(value, (int, float))})
    return rows


def _add_scalars(run: Run, file: Path) -> None:
    """Add the values of one start; they replace those of earlier starts from the same iteration on."""
    training: list[dict[str, float]] = []
    validations: list[dict[str, float]] = []
    train_cfg = run.cfg.get("train_cfg") or {}
    interval = int(train_cfg.get("val_interval") or 1)
    last = train_cfg.get("max_iters") or math.inf
    position = 0.0
    for row in _rows(file):
        if "iter" in row and ("loss" in row or "lr" in row):
            position = row["iter"]
            training.append(row)
        elif any(name not in NO_METRICS for name in row):
            if not train_cfg.get("max_iters"):
                place = position
            elif row.get("step"):
                place = row["step"]
            else:  # logged by epoch, of which an endless sampler has none: the next multiple of the interval
                before = validations[-1]["iter"] if validations else 0
                place = min(last, max(before + interval, math.ceil(position / interval) * interval))
            validations.append({**row, "iter": place})
    if training:
        first = training[0]["iter"]
        run.training = [row for row in run.training if row["iter"] < first]
        run.validations = [row for row in run.validations if row["iter"] < first]
    run.training += training
    run.validations += validations


def _add_log(run: Run, folder: Path) -> None:
    for file in sorted(folder.glob("*.log")):
        text = file.read_text(encoding="utf-8", errors="replace")
        year = folder.name[:4]
        times = []
        for found in (*list(TIME.finditer(text))[:1], *list(TIME.finditer(text))[-1:]):
            try:
                times.append(datetime.strptime(f"{found[1] or year}/{found[2]}", "%Y/%m/%d %H:%M:%S"))
            except ValueError:
                continue
        if len(times) == 2:
            run.starts.append((times[0], times[1]))
        environment = ENVIRONMENT.search(text)
        if environment:
            run.environment = COMPILING.sub("", environment[1]).strip("\n")


def series(rows: Iterable[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Return iterations and values of one logged name; values that are not finite are left out."""
    pairs = [(row["iter"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    return [x for x, _ in pairs], [y for _, y in pairs]


def metric_names(run: Run) -> list[str]:
    """Names of the main metrics: without those of single classes and sizes, and those that were never computed."""
    names = dict.fromkeys(name for row in run.validations for name in row if name not in NO_METRICS)
    main = [name for name in names if not re.search(r"_(s|m|l|precision)$|_AR|AR@|loss|\b(IoU|Acc)\.", name)]
    return [name for name in main or names if any(row.get(name, -1) >= 0 for row in run.validations)]


def may_go_on(run: Run, name: str) -> bool:
    """Whether a longer run may improve a metric that was best in the last validation.

    It may if the last learning rate is at least :data:`HIGH_RATE` of the highest one, and the last value is better than
    the best one before by at least :data:`CLEAR_GAIN` of it.
    """
    rates, values = series(run.training, "lr")[1], series(run.validations, name)[1]
    if not rates or len(values) < 2:
        return False
    sign = 1 if higher_is_better(name) else -1
    before = max(values[:-1], key=lambda value: sign * value)
    return rates[-1] >= HIGH_RATE * max(rates) and sign * (values[-1] - before) > CLEAR_GAIN * abs(before)


def higher_is_better(name: str) -> bool:
    """Whether a metric grows as the model improves: all but losses and errors do."""
    return not re.search(r"loss|error|mse|mae", name, re.IGNORECASE)
