"""Check of a config and its data sets before training: decodes every image and reads every annotation."""

from __future__ import annotations

import copy
import time
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
from mmgcvit.errors import UsageError
from mmgcvit.registry import rename_old_types
from mmgcvit.tasks import TASKS, task_of_dataset
from mmgcvit.tasks.base import DatasetCheck
from mmgcvit.utils.cores import usable_cores
from mmgcvit.utils.images import set_max_pixels

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
REFRESH = 0.1  # seconds between two updates of the progress bar


def check_data(
    cfg: Config, workers: int | None = None, progress: bool = True, max_pixels: int | None = None
) -> list[DatasetReport]:
    """Check all data sets of a config, and the config itself (:func:`~mmgcvit.datasets.consistency.check_config`).

    Args:
        cfg: config with data loaders; it is not changed.
        workers: processes that decode images; by default as many as there are usable cores
            (:func:`~mmgcvit.utils.cores.usable_cores`). More are faster if the images are on a slow drive.
        progress: whether to show a progress bar.
        max_pixels: images with more pixels are not decoded, and reported; by default 100 million.

    Returns:
        One report per data set; identical data sets with the same evaluator are checked once. If there are problems
        with the config itself, a report named 'config' without a unit follows.

    Raises:
        UsageError: ``workers`` is less than 1, or a file cannot be checked, for example because memory is short.
    """
    workers = usable_cores() if workers is None else workers
    if workers < 1:
        raise UsageError(f"workers={workers}; allowed: 1 or more")
    set_max_pixels(max_pixels)
    cfg = rename_old_types(copy.deepcopy(cfg))
    init_default_scope(cfg.get("default_scope", "mmengine"))
    reports: list[DatasetReport] = []
    done: list[tuple[Mapping, Any]] = []
    # Without its own thread, as processes are forked below.
    with Progress(console=Console(stderr=True), disable=not progress, transient=True, auto_refresh=False) as bar:
        shown = time.monotonic()
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
                    nonlocal shown
                    bar.update(row, advance=1, total=total)
                    if time.monotonic() - shown > REFRESH:
                        bar.refresh()
                        shown = time.monotonic()

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
