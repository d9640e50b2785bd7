"""Check of a config and its data sets before training: decodes every image and reads every annotation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.progress import Progress, TaskID

from mmgcvit.datasets.consistency import check_config
from mmgcvit.datasets.leaks import report_leaks
from mmgcvit.datasets.problems import Problem, data_sets
from mmgcvit.datasets.report import DatasetReport
from mmgcvit.engine.schedule import fit_warmups
from mmgcvit.registry import rename_old_types
from mmgcvit.tasks import TASKS, task_of_dataset
from mmgcvit.tasks.base import DatasetCheck
from mmgcvit.utils.images import set_max_pixels

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check_data(
    cfg: Config, workers: int = 8, progress: bool = True, max_pixels: int | None = None
) -> list[DatasetReport]:
    """Check all data sets of a config, and the config itself (:func:`~mmgcvit.datasets.consistency.check_config`).

    Args:
        cfg: config with data loaders; it is not changed.
        workers: threads that decode images.
        progress: whether to show a progress bar.
        max_pixels: images with more pixels are not decoded, and reported; by default 100 million.

    Returns:
        One report per data set; identical data sets with the same evaluator are checked once. If there are problems
        with the config itself, a report named 'config' without a unit follows.
    """
    set_max_pixels(max_pixels)
    cfg = rename_old_types(copy.deepcopy(cfg))
    init_default_scope(cfg.get("default_scope", "mmengine"))
    reports: list[DatasetReport] = []
    done: list[tuple[Mapping, Any]] = []
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        for loader in LOADERS:
            found = list(data_sets((cfg.get(loader) or {}).get("dataset")))
            for dataset in found:
                split = loader.removesuffix("_dataloader")
                evaluator = cfg.get(f"{split}_evaluator")
                if (dataset, evaluator) in done:
                    continue
                done.append((dataset, evaluator))
                row = bar.add_task(split, total=None)

                def advance(total: int, row: TaskID = row) -> None:
                    bar.update(row, advance=1, total=total)

                others = [other for other in found if other is not dataset]
                check = DatasetCheck(split, dataset, cfg.get("model"), evaluator, workers, advance, reports, others)
                reports.append(task_of_dataset(dataset).check_dataset(check))
                bar.remove_task(row)
    for task in TASKS:
        task.compare_splits(reports)
    report_leaks(reports)
    problems = [Problem("warm-up", "config", line, False) for line in fit_warmups(cfg)] + check_config(cfg)
    if problems:
        reports.append(DatasetReport("config", cfg.filename or "", unit="", problems=problems))
    return reports
