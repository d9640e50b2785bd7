"""Parts of a config that contradict each other: schedule, data sets, heads, class weights, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mmengine.config import Config
from mmengine.registry import HOOKS, PARAM_SCHEDULERS

from mmgcvit.datasets.problems import Problem, class_names, data_sets, metrics_of
from mmgcvit.engine.schedule import check_schedule
from mmgcvit.registry import base_names, type_name
from mmgcvit.tasks import TASKS, find_task
from mmgcvit.tasks.base import Split, Task
from mmgcvit.utils import summarize

SPLITS = ("train", "val", "test")
#: Parts of a config that mmengine's runner wants all together, by split.
PARTS = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "val": ("val_dataloader", "val_cfg", "val_evaluator"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}
#: Parts of a model whose data sets may have different classes: trackers train on one class, and words are any classes.
OPEN = ("tracker", "language_model")
MOST_NAMES = 20  # of results, in a message


def check_config(cfg: Config, splits: Sequence[str] = SPLITS) -> list[Problem]:
    """Find the parts of a config that contradict each other; opens no data.

    Args:
        cfg: the config; its default scope must be initialised.
        splits: what will run: 'train', 'val', 'test'.

    Returns:
        The problems; each names both parts and their values.
    """
    model = cfg.get("model")
    problems = list(_check_parts(cfg))
    if "train" in splits:
        problems += check_schedule(cfg)
    used = [split_of(cfg, name) for name in splits if cfg.get(f"{name}_dataloader")]
    task = find_task(model) if model else None
    problems += _check_classes(used, task is not None and not any(part in model for part in OPEN))
    for split in used:
        known = next((own for own in TASKS if any(own.has_dataset(dataset) for dataset in split.datasets)), task)
        if known is None:
            continue
        for where, metric in split.metrics:
            kind = type_name(metric)
            other = next((own for own in reversed(TASKS) if kind in own.metrics), known)  # the general ones first
            if kind not in known.metrics and other is not known:
                problems.append(
                    Problem(
                        "metric",
                        where,
                        f"{kind} is a metric for {other.name}; {split.name}_dataloader.dataset.type="
                        f"{type_name(split.datasets[0])!r} is for {known.name}; allowed: {', '.join(known.metrics)}",
                        True,
                    )
                )
        if split.name == "val":
            problems += _check_best(cfg, split, known)
    if task is not None:
        problems += task.check_config(model, used)
    return problems


def split_of(cfg: Config, name: str) -> Split:
    """Return what a config says about one split."""
    loader = cfg.get(f"{name}_dataloader") or {}
    evaluator, whole = cfg.get(f"{name}_evaluator"), f"{name}_evaluator"
    found = metrics_of(evaluator)
    if isinstance(evaluator, Mapping) and "metrics" in evaluator:
        evaluator, whole = evaluator["metrics"], f"{whole}.metrics"
    single = isinstance(evaluator, Mapping)
    metrics = [(whole if single else f"{whole}[{i}]", metric) for i, metric in enumerate(found)]
    return Split(name, loader, list(data_sets(loader.get("dataset"))), metrics)


def _check_parts(cfg: Config) -> Iterator[Problem]:
    """Yield the parts that are missing beside others of the same split."""
    if not any(cfg.get(f"{split}_cfg") is not None for split in SPLITS):
        return  # data sets only
    for names in PARTS.values():
        # An empty val_cfg or test_cfg is a part, too.
        there = [name for name in names if cfg.get(name) is not None]
        if there and len(there) < len(names):
            missing = [name for name in names if name not in there]
            yield Problem(
                "parts",
                "config",
                f"{', '.join(there)} without {', '.join(missing)}; allowed: all of {', '.join(names)}, or none",
                True,
            )


def _check_best(cfg: Config, split: Split, task: Task) -> Iterator[Problem]:
    """Yield hooks that wait for a result that no metric of the validation gives."""
    classes = class_names(split.datasets[0]) if split.datasets else None
    given: set[str] = set()
    for _, metric in split.metrics:
        results = task.result_names(metric, cfg.get("model") or {}, classes)
        if results is None:
            return
        given |= results
    hooks = cfg.get("custom_hooks") or ()
    averaged = any("EMAHook" in base_names(HOOKS, hook) for hook in hooks if isinstance(hook, Mapping))
    if averaged and type_name(cfg.get("val_cfg") or {}) == "EMAValLoop":
        given |= {f"{name}_raw" for name in given}
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    wanted = [("default_hooks.checkpoint.save_best", checkpoint.get("save_best"))]
    wanted += [
        (f"custom_hooks[{i}].monitor", hook.get("monitor"))
        for i, hook in enumerate(hooks)
        if type_name(hook) == "EarlyStoppingHook"
    ]
    schedules = cfg.get("param_scheduler") or ()
    wanted += [
        (f"param_scheduler[{i}].monitor", schedule.get("monitor", "loss"))  # mmengine's default, which no metric gives
        for i, schedule in enumerate(schedules if isinstance(schedules, (list, tuple)) else [schedules])
        if isinstance(schedule, Mapping)
        and "ReduceOnPlateauParamScheduler" in base_names(PARAM_SCHEDULERS, schedule)
        and schedule.get("by_epoch", True)
    ]
    for where, names in wanted:
        for name in names if isinstance(names, (list, tuple)) else [names]:
            if name not in (None, "auto", *given):
                allowed = summarize(sorted(given), MOST_NAMES)
                yield Problem("metric", where, f"{name!r}; allowed, as val_evaluator gives them: {allowed}", True)


def _check_classes(splits: Sequence[Split], fixed: bool) -> Iterator[Problem]:
    """Yield data sets whose classes are not those of the first one.

    Args:
        splits: the splits that will run.
        fixed: whether the labels are the outputs of a head. Labels with a different meaning, or another number of
            classes, then break a run. Other names for the same number of classes may be synonyms.
    """
    first: tuple[str, tuple[str, ...]] | None = None
    for split in splits:
        for dataset in split.datasets:
            names, where = class_names(dataset), f"{split.name}_dataloader.dataset"
            if names is None:
                continue
            if first is None:
                first = where, names
            elif names != first[1]:
                known = {name: label for label, name in enumerate(first[1])}
                moved = any(known.get(name, label) != label for label, name in enumerate(names))
                yield Problem(
                    "classes",
                    where,
                    f"classes={_shown(names)}; {first[0]} has classes={_shown(first[1])}; allowed: the same names in "
                    "the same order",
                    fixed and (moved or len(names) != len(first[1])),
                )


def _shown(names: Sequence[str]) -> str:
    """Format class names, of many only the first ones."""
    return f"{tuple(names)}" if len(names) <= 10 else f"({', '.join(map(repr, names[:8]))}, ... {len(names)} in all)"
