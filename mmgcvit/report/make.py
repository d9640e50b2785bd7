"""Making the report of a run."""

from __future__ import annotations

import importlib.util
import logging
import shlex
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_rank
from mmengine.logging import print_log
from torch import distributed as dist

from mmgcvit.engine.evaluation import is_of_class
from mmgcvit.engine.progress import only_warnings
from mmgcvit.errors import (
    AnnotationError,
    CheckpointError,
    ClassificationDataError,
    CorruptImageError,
    UsageError,
)
from mmgcvit.report import page
from mmgcvit.report.collect import Run, collect, higher_is_better, may_go_on, metric_names, series
from mmgcvit.report.page import Details, Figure, Note, Section, Table
from mmgcvit.report.paths import PathShortener
from mmgcvit.tasks import task_of
from mmgcvit.utils.text import counted
from mmgcvit.version import __version__

PACKAGES = {"matplotlib": "matplotlib", "jinja2": "jinja2", "sklearn": "scikit-learn"}
STACK = ("torch", "timm", "mmengine", "onedl-mmengine", "mmcv", "onedl-mmcv", "mmdet",
         "onedl-mmdetection", "mmsegmentation", "onedl-mmsegmentation", "numpy")  # fmt: skip
EXPECTED = (AnnotationError, CheckpointError, ClassificationDataError, CorruptImageError, UsageError, OSError)
LOSSES = 8  # lines in the plot of losses


def make_report(
    work_dir: str | Path, checkpoint: str | None = None, out: str | Path | None = None, device: str | None = None
) -> Path:
    """Write a page about a run: its data, learning curves, and an evaluation of its best checkpoint.

    The page is one HTML file that contains its images. They are also written to the folder ``report`` beside it. What
    a run does not have, such as a checkpoint or validation data, is said on the page.

    Args:
        work_dir: folder that :func:`mmgcvit.apis.train` wrote; the run may be unfinished or resumed.
        checkpoint: the checkpoint to evaluate; by default the best one, else the last one.
        out: the file; by default ``report.html`` in ``work_dir``.
        device: 'cpu', 'cuda:0', ...; by default a GPU if there is one.

    Returns:
        The file.

    Raises:
        UsageError: a package is missing; the folder is not that of a run; the given checkpoint does not exist, cannot
            be read, or does not belong to the model; or the file cannot be written.
    """
    missing = [package for name, package in PACKAGES.items() if not _installed(name)]
    if missing:
        raise UsageError(f"a report needs {', '.join(missing)}: pip install {' '.join(missing)}")
    run = collect(work_dir, checkpoint)
    sections, headline = _evaluated(run, checkpoint is not None, device)
    sections = [sections[0], _learning(run), *sections[1:], _time(run), _reproduce(run)]
    path = Path(out) if out is not None else run.work_dir / "report.html"
    subtitle = f"Run in {run.work_dir}"
    subtitle += f", evaluated: {Path(run.checkpoint).name}" if run.checkpoint and headline else ""
    title = f"{run.config_file.stem if run.config_file.stem != 'config' else run.work_dir.name}: training report"
    try:
        page.write(path, page.render(title, subtitle, headline, sections, PathShortener(run)), sections)
    except OSError as error:
        raise UsageError(f"{str(path)!r}: cannot be written: {error}") from error
    return path


def report_after_training(work_dir: str | Path) -> Path | None:
    """Write the report of a finished run; a failure is logged as a warning and stops nothing.

    Of several processes only the first one does so. The process group is left before, as the evaluation would wait for
    the others.

    Returns:
        The file; None if it could not be written, and in the other processes.
    """
    rank = get_rank()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    if rank:
        return None
    print_log("writing the report of the run", logger="current")
    try:
        with only_warnings():  # the results were shown by the last validation or the test
            path = make_report(work_dir)
            print_log(f"report of the run: {path}", logger="current")
    except Exception as error:  # the run has succeeded, whatever happens here
        words = str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        print_log(f"no report of the run: {words}\nto try again: mmgcvit report {shlex.quote(str(work_dir))}",
                  logger="current", level=logging.WARNING)  # fmt: skip
        return None
    return path


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None  # importing scikit-learn takes seconds


def _evaluated(run: Run, required: bool, device: str | None) -> tuple[list[Section], list[tuple[str, str]]]:
    """Sections on data and predictions, and the most important results."""
    data = Section("data", "Data")
    results = Section("evaluation", "Evaluation")
    if run.checkpoint is None:
        results.add(Note("The run has left no checkpoint, so there is no evaluation."))
        return [data, results], []
    from mmgcvit.report.evaluate import load_model, mosaic, run_model, training_data

    try:
        model = load_model(run.cfg, run.checkpoint, device)
        report = task_of(run.cfg).report(model.predictor.trained)
        metrics, seconds, failure = run_model(model, report)
    except EXPECTED as error:
        if required and isinstance(error, (UsageError, CheckpointError)):
            raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
        results.add(Note(f"There is no evaluation of {run.checkpoint}: {error}"))
        return [data, results], []
    train = None
    try:
        train = training_data(run.cfg) if run.cfg.get("train_dataloader") else None
        drawn: Any = mosaic(report, train) if train is not None else Note("The config has no training data.")
    except EXPECTED as error:
        drawn = Note(f"The training data cannot be shown: {error}")
    report.count(data, train)
    data.add(drawn)
    if failure:
        results.add(Note(f"The metrics of the config cannot be computed: {failure}"))
    # mmdet names the box AP and the mask AP of a class alike; the table of classes has both.
    kept = {name: value for name, value in metrics.items() if not is_of_class(name, model.classes)}
    elsewhere = " Those of each class are in the table 'Classes'." if len(kept) < len(metrics) else ""
    metrics = kept
    rows = [(name, f"{value:.4g}") for name, value in metrics.items() if np.isfinite(value) and value >= 0]
    count = len(model.dataset)
    results.add(
        Table("Metrics", ("metric", "value"), rows, f"Of {run.checkpoint} on {counted(count, 'validation image')}, by "
              f"the metrics of the config.{elsewhere} The evaluation took {seconds:.0f} s, "
              f"{1000 * seconds / max(count, 1):.0f} ms per image.")
    )  # fmt: skip
    chosen = [name for name in _headline(run, list(metrics)) if np.isfinite(metrics[name])]
    headline = [(name, f"{metrics[name]:.4g}") for name in chosen]
    return [data, results, *report.sections(model)], headline


def _headline(run: Run, names: Sequence[str]) -> list[str]:
    best = run.best_metric
    wanted = [
        "coco/bbox_mAP",
        "coco/bbox_mAP_50",
        "coco/segm_mAP",
        "coco_panoptic/PQ",
        "coco_panoptic/PQ_th",
        "coco_panoptic/PQ_st",
        "mIoU",
        "aAcc",
        "accuracy/top1",
        "accuracy/mean_class",
    ]
    chosen = [name for name in dict.fromkeys([best or "", *wanted]) if name in names]
    return (chosen or list(names))[:4]


def _learning(run: Run) -> Section:
    """Losses, learning rate and metrics over the run."""
    from mmgcvit.report import plots

    section = Section("learning", "Learning curves")
    if not run.training:
        section.add(
            Note(
                "The run has logged no iteration: it ended before the first one to be logged "
                "(default_hooks.logger.interval), or its logs were removed."
            )
        )
    names = [name for name in dict.fromkeys(n for row in run.training for n in row) if "loss" in name]
    names.sort(key=lambda name: name != "loss")
    losses = {name: line for name in names[:LOSSES] if len((line := series(run.training, name))[0]) > 1}
    if losses:
        values = [value for _, y in losses.values() for value in y if value > 0]
        log = bool(values) and all(min(y) > 0 for _, y in losses.values()) and max(values) > 30 * min(values)
        scale = " The scale is logarithmic." if log else ""
        left = f" {len(names) - LOSSES} more are left out." if len(names) > LOSSES else ""
        window = (run.cfg.get("log_processor") or {}).get("window_size", 10)  # 10: default of mmengine
        caption = (
            f"Losses of the training, each a mean over the last {counted(window, 'iteration')}. They should fall and "
            "then flatten."
            f"{scale}{left}"
        )
        content = plots.curves(losses, "iteration", "loss", log=log)
        section.add(Figure.plot("losses", "Losses", content, caption))
    rate = series(run.training, "lr")
    if len(rate[0]) > 1:
        content = plots.curves({"lr": rate}, "iteration", "learning rate")
        caption = "Learning rate of the first parameter group, with warm-up and decay as in the config."
        section.add(Figure.plot("learning_rate", "Learning rate", content, caption))
    section.add(*_validations(run))
    return section


def _validations(run: Run) -> list[Any]:
    """Metrics over the run as a plot, or as words if there are not enough for one."""
    from mmgcvit.report import plots

    names = metric_names(run)[:6]
    lines = {name: series(run.validations, name) for name in names}
    lines = {name: line for name, line in lines.items() if line[0]}
    if not lines:
        return [Note("The run was never validated, so there are no metrics over time.")]
    if all(len(x) < 2 for x, _ in lines.values()):
        shown = ", ".join(f"{name} {y[0]:.4g}" for name, (_, y) in lines.items())
        at = next(iter(lines.values()))[0][0]
        return [Note(f"The run was validated once, at iteration {at:.0f}: {shown}.")]
    main = run.best_metric if run.best_metric in lines else next(iter(lines))
    x, y = lines[main]
    at = int(np.argmax(y) if higher_is_better(main) else np.argmin(y))
    late = ""
    if at == len(y) - 1:
        late = " The last validation was the best"
        late += ": a longer run may help." if may_go_on(run, main) else "."
    caption = (
        f"Metrics of each validation. The star marks the best value of {main}: {y[at]:.4g}, at iteration {x[at]:.0f}."
        f"{late} Metrics that fall again while the losses still fall mean overfitting."
    )
    content = plots.curves(lines, "iteration", "metric", {main: at})
    return [Figure.plot("metrics", "Metrics", content, caption)]


def _time(run: Run) -> Section:
    """Time per iteration, memory, and the starts of the run."""
    from mmgcvit.report import plots

    section = Section("time", "Time and memory")
    times, waiting = series(run.training, "time"), series(run.training, "data_time")
    rows = [("iterations", f"{run.training[-1]['iter']:,.0f}{_planned(run)}")] if run.training else []
    if times[1]:
        middle = statistics.median(times[1])
        rows.append(("time per iteration (median)", f"{middle:.3g} s"))
        if waiting[1] and middle:
            wait = statistics.median(waiting[1])
            rows.append(("of which waiting for data (median)", f"{wait:.3g} s ({100 * wait / middle:.0f} %)"))
    memory = series(run.training, "memory")[1]
    if memory:
        rows.append(("GPU memory (largest)", f"{max(memory):,.0f} MB"))
    for number, (begin, end) in enumerate(run.starts):
        label = "start and last line of the log" + (f", start {number + 1}" if len(run.starts) > 1 else "")
        rows.append((label, f"{begin:%Y-%m-%d %H:%M} to {end:%H:%M}, {end - begin}"))
    if rows:
        memory_note = "" if memory else " Memory is logged for GPUs only."
        section.add(Table("Run", ("what", "value"), rows, f"As logged by the run.{memory_note}", words=2))
    if len(times[0]) > 2:
        lines = {"total": times} | ({"waiting for data": waiting} if len(waiting[0]) > 2 else {})
        caption = (
            "If waiting for data is a large part of the time, use more workers or smaller image files. Peaks are "
            "validations, checkpoints, or other programs on the machine."
        )
        content = plots.curves(lines, "iteration", "seconds per iteration")
        section.add(Figure.plot("time", "Time per iteration", content, caption))
    return section


def _planned(run: Run) -> str:
    """Words on the length of the run in the config, after the number of its iterations."""
    plan, last = run.cfg.get("train_cfg") or {}, run.training[-1]
    if plan.get("max_iters"):
        return f" of {plan['max_iters']:,}"
    return f" (epoch {last['epoch']:.0f} of {plan['max_epochs']})" if plan.get("max_epochs") and "epoch" in last else ""


def _reproduce(run: Run) -> Section:
    """Command, versions and config."""
    section = Section("reproduce", "To run it again")
    command = run.cfg.get("command")
    if command:
        section.add(
            Note(
                "The run was started with the first command. The second one uses the config as it was used. Folders of "
                "the machine are left out on this page: '...' stands for them. The files of the run have them."
            )
        )
    again = f"mmgcvit train {shlex.quote(str(run.config_file))} --work-dir NEW_FOLDER"
    section.add(Details("Commands", f"{command}\n{again}" if command else again))
    rows = [("mmgcvit", __version__)]
    for name in STACK:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    section.add(Table("Versions", ("package", "version"), rows, "Installed when this report was made."))
    if run.environment:
        section.add(Details("Machine and packages of the run, from its log", run.environment))
    section.add(Details(f"Config: {run.config_file}", run.cfg.pretty_text))
    return section
