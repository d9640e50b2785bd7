"""Length of a run against its sampler, schedules and intervals, and warm-ups longer than the run."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmgcvit.datasets.problems import Problem
from mmgcvit.errors import UsageError
from mmgcvit.registry import HOOKS, type_name
from mmgcvit.utils.text import counted

#: mmengine's training loops and ours: whether they count epochs.
LOOPS = {"EpochBasedTrainLoop": True, "ResumableTrainLoop": True, "IterBasedTrainLoop": False}
#: Entries of a scheduler's state that change during a run. The others describe the schedule.
PROGRESS = (
    "last_step", "_global_step", "_last_value", "base_values", "verbose",
    "best", "num_bad_epochs", "cooldown_counter",
)  # fmt: skip


def counts_epochs(train_cfg: Mapping[str, Any]) -> bool:
    """Whether a training loop counts epochs, and not iterations."""
    return bool(LOOPS.get(type_name(train_cfg), train_cfg.get("by_epoch", "max_epochs" in train_cfg)))


def run_length(train_cfg: Mapping[str, Any]) -> tuple[str, Any]:
    """Name and value of a run's length: ``max_epochs`` or ``max_iters``; the value is None if it is not given."""
    key = "max_epochs" if counts_epochs(train_cfg) else "max_iters"
    return key, train_cfg.get(key)


def check_schedule(cfg: Config) -> Iterator[Problem]:
    """Yield the contradictions between the length of a run and its sampler, schedules and intervals.

    Warm-ups longer than the run are expected to be shortened already (:func:`shorten_warmups`).
    """
    train_cfg = cfg.get("train_cfg")
    if not train_cfg:
        return
    key, length = run_length(train_cfg)
    own = "type" in train_cfg and type_name(train_cfg) not in LOOPS
    if own and "by_epoch" not in train_cfg and length is None:
        return  # a loop of another package, whose length has another name
    loop = type_name(train_cfg) or f"by_epoch={counts_epochs(train_cfg)}"
    other = "max_iters" if key == "max_epochs" else "max_epochs"
    if other in train_cfg and (type_name(train_cfg) in LOOPS or "by_epoch" in train_cfg):
        yield Problem(
            "train_cfg",
            "train_cfg",
            f"{other}={train_cfg[other]} with {loop}; allowed: {key}. To replace the train_cfg of a base config, write "
            f"train_cfg = dict(_delete_=True, ...)",
            True,
        )
        return
    for name, value in ((key, length), ("val_interval", 1 if own else train_cfg.get("val_interval", 1))):
        if not isinstance(value, (int, float)) or value < 1 or value != int(value):
            yield Problem("train_cfg", "train_cfg", f"{name}={value!r}; allowed: a positive integer", True)
            return
    assert length is not None
    run = f"train_cfg.{key}={length}"
    sampler = (cfg.get("train_dataloader") or {}).get("sampler")
    if key == "max_epochs" and type_name(sampler) == "InfiniteSampler":
        yield Problem(
            "sampler",
            "train_dataloader.sampler",
            f"InfiniteSampler with {loop} ({run}): the first epoch would never end; allowed: "
            "dict(type='DefaultSampler', shuffle=True), or IterBasedTrainLoop with max_iters",
            True,
        )
    for where, scheduler in _schedulers(cfg.get("param_scheduler")):
        yield from _check_scheduler(where, scheduler, run, key == "max_epochs", int(length))
    begin = train_cfg.get("val_begin", 1)
    if cfg.get("val_dataloader") and begin > length:
        yield Problem("train_cfg", "train_cfg", f"val_begin={begin}, {run}: there will be no validation", False)
    yield from _check_checkpoints(cfg, run, key == "max_epochs", int(length))


def _check_scheduler(
    where: str, scheduler: Mapping[str, Any], run: str, epochs: bool, length: int
) -> Iterator[Problem]:
    """Yield the problems of one scheduler, for a run of this length in epochs or iterations."""
    name, by_epoch = type_name(scheduler), scheduler.get("by_epoch", True)
    begin, end = scheduler.get("begin", 0), scheduler.get("end")
    if by_epoch and not epochs and not scheduler.get("convert_to_iter_based") and "Plateau" not in name:
        yield Problem(
            "param_scheduler",
            where,
            f"{name} has by_epoch=True, but the run counts iterations ({run}): it would never be applied; allowed: "
            "by_epoch=False, with lengths in iterations",
            True,
        )
        return
    if by_epoch and not epochs and end is None and "Plateau" not in name:
        yield Problem(
            "param_scheduler",
            where,
            f"{name} has no end, and the run counts iterations ({run}), which mmengine takes for one epoch: it would "
            "end after the first; allowed: an end in epochs, or by_epoch=False with lengths in iterations",
            True,
        )
    same_unit = by_epoch == epochs
    if (
        name.startswith("Linear")
        and end is not None
        and end - begin == 1
        and not scheduler.get("convert_to_iter_based")
    ):
        yield Problem(
            "param_scheduler",
            where,
            f"{name} has begin={begin}, end={end}: the learning rate would stay at its start; allowed: 2 steps or more",
            True,
        )
    if end is not None and end <= begin:
        yield Problem("param_scheduler", where, f"{name} has begin={begin}, end={end}; allowed: begin < end", True)
    elif end is None and same_unit and begin >= length:
        yield Problem(
            "param_scheduler", where, f"{name} has begin={begin}, and {run}; allowed: a begin before the end", True
        )
    warmup, total = scheduler.get("warmup", 0), scheduler.get("T_max")
    if name == "WarmupCosineLR" and total is not None and not 0 <= warmup < total:
        yield Problem(
            "param_scheduler", where, f"{name} has warmup={warmup}, T_max={total}; allowed: 0 <= warmup < T_max", True
        )
    if not same_unit:
        return  # the number of iterations is not known yet
    last = [("end", end)] if end is not None else [("T_max", total and begin + total)]
    last += [("milestones", max(scheduler.get("milestones") or [0]))]
    for key, value in last:
        if value and value > length:
            yield Problem(
                "param_scheduler",
                where,
                f"{name} has {key}={scheduler[key]}, but {run}: the run ends before the schedule does",
                False,
            )
    if end is not None and end < length and total is not None:
        yield Problem(
            "param_scheduler",
            where,
            f"{name} has end={end}, but {run}: the learning rate stays at its last value afterwards",
            False,
        )


def _check_checkpoints(cfg: Config, run: str, epochs: bool, length: int) -> Iterator[Problem]:
    """Yield whether no checkpoint, or only the last one, will be written."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint")
    if not hook:
        return
    interval, by_epoch, last = hook.get("interval", -1), hook.get("by_epoch", True), hook.get("save_last", True)
    where = "default_hooks.checkpoint"
    if by_epoch and not epochs:
        yield Problem(
            "checkpoint",
            where,
            f"by_epoch=True, but the run counts iterations ({run}): "
            f"{'only the last checkpoint' if last or interval == 1 else 'no checkpoint'} will be written; allowed: "
            "by_epoch=False, with an interval in iterations",
            False,
        )
    elif by_epoch == epochs and not last and not 0 < interval <= length:
        yield Problem(
            "checkpoint", where, f"interval={interval}, save_last=False, {run}: no checkpoint will be written", False
        )


def _schedulers(schedulers: Any, where: str = "param_scheduler") -> Iterator[tuple[str, Any]]:
    """Yield the schedulers of a config with their names; there may be a list of them, or one per optimizer."""
    if isinstance(schedulers, (list, tuple)):
        for i, scheduler in enumerate(schedulers):
            yield from _schedulers(scheduler, f"{where}[{i}]")
    elif isinstance(schedulers, Mapping) and "type" in schedulers:
        yield where, schedulers
    elif isinstance(schedulers, Mapping):
        for name, inner in schedulers.items():
            yield from _schedulers(inner, f"{where}.{name}")


def shorten_warmups(schedulers: Any, run: str, by_epoch: bool, length: int) -> tuple[Any, list[str]]:
    """Shorten warm-ups that are longer than the run, or as long and followed by another schedule, to a tenth of it.

    A single schedule over the whole run, as for a learning rate range test, is kept. A warm-up of fewer than two steps
    is removed: mmengine's would keep the learning rate at its start. What follows a warm-up begins earlier.

    Args:
        schedulers: the config's ``param_scheduler``, which is changed.
        run: name and value of the run's length, for the messages.
        by_epoch: unit of the length. Schedulers that count in the other unit are not changed.
        length: number of epochs or iterations of the run.

    Returns:
        The schedulers, and a message per warm-up.
    """
    if isinstance(schedulers, Mapping) and "type" not in schedulers:  # by optimizer
        found = {name: shorten_warmups(inner, run, by_epoch, length) for name, inner in schedulers.items()}
        return {name: inner for name, (inner, _) in found.items()}, [
            line for _, lines in found.values() for line in lines
        ]
    messages: list[str] = []
    kept: list[Any] = []
    moved: dict[int, int] = {}
    listed = list(_schedulers(schedulers))
    for where, scheduler in listed:
        if scheduler.get("by_epoch", True) == by_epoch:
            name = type_name(scheduler)
            key = "warmup" if name == "WarmupCosineLR" else "end"
            begin, before = scheduler.get("begin", 0), scheduler.get(key)
            # A warm-up as long as the run is a fault if anything follows it.
            limit = length if key == "warmup" or len(listed) > 1 else length + 1
            if _is_warmup(scheduler) and begin == 0 and before is not None and before >= limit:
                short = length // 10 if length >= 20 else 0
                what = f"shortened to {short}" if short else "removed"
                messages.append(
                    f"{where}: the warm-up ({name}, {key}={before}) is not shorter than the run ({run}) and is {what}"
                )
                scheduler[key] = moved[before] = short
                if key == "end" and not short:
                    continue
            elif begin in moved:
                scheduler["begin"] = moved[begin]
        kept.append(scheduler)
    if isinstance(schedulers, (list, tuple)):
        return kept, messages
    return (kept[0] if kept else None), messages


def _is_warmup(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler increases the learning rate."""
    name = type_name(scheduler)
    if name.startswith("Linear"):
        return scheduler.get("start_factor", 1 / 3) < scheduler.get("end_factor", 1)
    if name.startswith("Constant"):
        return scheduler.get("factor", 1 / 3) < 1
    return "Warmup" in name


def fit_warmups(cfg: Config) -> list[str]:
    """Shorten the warm-ups of a config that count in the unit of its run; returns a message per warm-up."""
    key, length = run_length(cfg.get("train_cfg") or {})
    if not cfg.get("param_scheduler") or not isinstance(length, int) or length < 1:
        return []
    cfg.param_scheduler, messages = shorten_warmups(
        cfg.param_scheduler, f"train_cfg.{key}={length}", key == "max_epochs", length
    )
    return messages


def fit_warmups_to_iterations(runner: Any) -> list[str]:
    """Shorten the warm-ups in iterations of a run by epochs, whose number of iterations only the runner knows."""
    if not isinstance(runner, Runner) or not runner.param_schedulers or not counts_epochs(runner.cfg.train_cfg):
        return []
    length = runner.train_loop.max_iters
    run = f"{counted(length, 'iteration')} in train_cfg.max_epochs={runner.train_loop.max_epochs}"
    runner.param_schedulers, messages = shorten_warmups(runner.param_schedulers, run, False, length)
    return messages


@HOOKS.register_module()
class ResumedScheduleHook(Hook):
    """Compare the schedules and the length of a resumed run with those of its checkpoint.

    mmengine restores a scheduler with all its settings, so that those of the config would silently have no effect. It
    also restores the learning rate.

    Raises:
        UsageError: before the training, if the schedules of the checkpoint differ from the config's, or if it is from a
            later iteration than the last one of the run.
    """

    def __init__(self) -> None:
        self.own: list[dict] = []  # states of the config's schedulers
        self.saved: list[dict] | None = None  # those in the checkpoint, None if none is resumed
        self.done = 0  # epoch or iteration of the checkpoint

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep both states, before mmengine replaces the config's."""
        if runner.cfg.get("resume"):
            self.own = [copy.deepcopy(scheduler.state_dict()) for scheduler in _flat(runner.param_schedulers)]
            self.saved = _flat(checkpoint.get("param_schedulers"))
            self.done = checkpoint.get("meta", {}).get("epoch" if counts_epochs(runner.cfg.train_cfg) else "iter", 0)

    def before_train(self, runner: Runner) -> None:
        """Compare them, after the training loop has checked that its epochs have the same length."""
        if self.saved is None:
            return
        epochs = counts_epochs(runner.cfg.train_cfg)
        unit, length = ("epoch", runner.max_epochs) if epochs else ("iter", runner.max_iters)
        run = f"train_cfg.max_{unit}s={length}"
        if self.done > length:
            raise UsageError(f"the checkpoint to resume from is from {unit} {self.done}; allowed: at most {run}")
        if self.done == length:
            print_log(f"the run to resume is finished: {run}", logger="current", level=logging.WARNING)
        advice = (
            "mmengine would continue with the checkpoint's. Resume with the schedule of the checkpoint, or start a new "
            "run from its weights: load_from=<the checkpoint>, in another work directory"
        )
        if len(self.own) != len(self.saved):
            raise UsageError(
                f"param_scheduler has {len(self.own)} schedulers, the checkpoint to resume from {len(self.saved)}; "
                + advice
            )
        for i, (mine, state) in enumerate(zip(self.own, self.saved, strict=True)):
            differing = [
                f"{name}={mine[name]!r} (checkpoint: {state[name]!r})"
                for name in mine
                if name not in PROGRESS and name in state and mine[name] != state[name]
            ]
            if differing:
                kind = type(_flat(runner.param_schedulers)[i]).__name__
                raise UsageError(f"param_scheduler[{i}] ({kind}): {', '.join(differing)}; {advice}")
            if not _close(mine.get("base_values"), state.get("base_values")):
                print_log(
                    f"the learning rate of the config is {mine['base_values'][0]:g}, that of the checkpoint "
                    f"{state['base_values'][0]:g}: the resumed run keeps the checkpoint's",
                    logger="current",
                    level=logging.WARNING,
                )


def _flat(schedulers: Any) -> list:
    """Return the schedulers, or their states, of all optimizers."""
    if isinstance(schedulers, Mapping):
        return [scheduler for inner in schedulers.values() for scheduler in inner]
    return list(schedulers or ())


def _close(first: Any, second: Any) -> bool:
    """Whether two lists of learning rates are equal; lists of different lengths are not compared."""
    pairs = zip(first or (), second or (), strict=False)
    return len(first or ()) != len(second or ()) or all(abs(a - b) <= 1e-6 * max(abs(a), abs(b)) for a, b in pairs)
