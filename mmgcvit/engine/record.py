"""What a run is, stored in its checkpoints and compared when it is resumed: model, optimizer, schedule, data."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from mmgcvit.checkpoint.loading import sharded_part
from mmgcvit.checkpoint.stand_ins import find_placeholders
from mmgcvit.datasets.problems import inner_datasets
from mmgcvit.engine.schedule import counts_epochs
from mmgcvit.errors import CheckpointError
from mmgcvit.registry import HOOKS
from mmgcvit.utils.files import file_sha256
from mmgcvit.utils.text import summarize

KEY = "mmgcvit_run"  # in the checkpoint's meta
ADDED = "validation data"  # keys that are missing in the records of earlier releases
#: Settings of a config that change neither the weights nor their training.
WITHOUT_EFFECT = {
    "_scope_", "backend_args", "checkpoint", "init_cfg", "metainfo", "num_workers", "persistent_workers", "pin_memory",
    "prefetch_factor", "pretrained", "timeout", "with_cp", "worker_init_fn", "ann_file", "data_prefix", "data_root",
}  # fmt: skip
ADVICE = (
    "Resume with the config of the checkpoint, or start a new run from its weights: load_from=<the checkpoint>, in "
    "another work directory"
)


@HOOKS.register_module()
class RunRecordHook(Hook):
    """Store in each checkpoint what the run is, and compare it when a run is resumed.

    Model, optimizer, batch size, pipeline, length of the run, and the data of training and validation: number of
    samples, and hash of each annotation file at the start of the run. An annotation file that changes during the run is
    named in a warning. Checkpoints of earlier releases and of other tools have no such record; then only shapes and
    parameter groups are compared.

    Raises:
        CheckpointError: the checkpoint is of a model with other shapes, or of another optimizer. Other differences are
            logged as warnings. Each message names both values.
    """

    priority = "VERY_HIGH"  # before the weights are compared, which knows nothing of configs

    def __init__(self) -> None:
        self.record: dict[str, str] = {}
        self.warned: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Make the record, before the files may change."""
        self.record = self.record or make_record(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the record, and warn of annotation files that have changed since the start."""
        self.record = self.record or make_record(runner)
        checkpoint["meta"][KEY] = json.dumps(self.record)
        for key, path, digest in _annotation_files(runner):
            if digest != self.record.get(key, "") and key not in self.warned:
                self.warned.add(key)
                print_log(
                    f"{key}: {path} {'has changed' if digest else 'has gone'} since the start of the run, which goes "
                    "on with what it has read. A resumed run would read the file as it is then",
                    logger="current",
                    level=logging.WARNING,
                )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the record of a resumed run."""
        if not runner.cfg.get("resume"):
            return
        if placeholders := find_placeholders(checkpoint):
            listed = summarize(f"{place} ({name})" for place, name in sorted(placeholders.items()))
            print_log(
                f"the checkpoint to resume from has objects of other packages, which are not restored: {listed}. What "
                "uses them finds a dict without their methods in their place",
                logger="current",
                level=logging.WARNING,
            )
        self.record = mine = make_record(runner)
        theirs = read_record(checkpoint)
        differing = {
            key: f"{key}={_short(mine.get(key))} (checkpoint: {_short(theirs.get(key))})"
            for key in sorted(mine.keys() | theirs.keys())
            if theirs and mine.get(key) != theirs.get(key) and (key in theirs or not key.startswith(ADDED))
        }
        model = [text for key, text in differing.items() if key.startswith("model.")]
        shapes = list(_other_shapes(runner.model, checkpoint.get("state_dict") or {}))
        if shapes:
            raise CheckpointError(
                f"the checkpoint to resume from is of another model: {summarize(model or shapes, 4)}. {ADVICE}"
            )
        if "optim_wrapper.optimizer.type" in differing:
            raise CheckpointError(f"{differing['optim_wrapper.optimizer.type']}. {ADVICE}")
        groups = [len(_groups(runner.optim_wrapper)), len((checkpoint.get("optimizer") or {}).get("param_groups", ()))]
        if all(groups) and groups[0] != groups[1]:
            settings = [text for key, text in differing.items() if key.startswith("optim_wrapper.")]
            raise CheckpointError(
                f"the optimizer has {groups[0]} parameter groups, that of the checkpoint to resume from {groups[1]}: "
                f"{summarize(settings or ['optim_wrapper or model differ'], 4)}. {ADVICE}"
            )
        if differing:
            print_log(
                f"the resumed run differs from that of the checkpoint: {summarize(differing.values(), 12)}",
                logger="current",
                level=logging.WARNING,
            )


def make_record(runner: Runner) -> dict[str, str]:
    """What the run is: values by dotted key, as text."""
    cfg = runner.cfg
    train = cfg.get("train_cfg") or {}
    record = {key: str(train[key]) for key in ("max_epochs", "max_iters") if key in train}
    record["run counts"] = "epochs" if counts_epochs(train) else "iterations"
    for part in ("model", "optim_wrapper", "train_dataloader"):
        if isinstance(cfg.get(part), Mapping):
            record.update(_flat(part, cfg[part]))
    record.update((f"{key}.samples", str(len(dataset))) for key, dataset in _datasets(runner))
    record.update((key, digest) for key, _, digest in _annotation_files(runner) if digest)
    return record


def _datasets(runner: Runner) -> Iterator[tuple[str, Any]]:
    """Yield the data sets of training and validation, with their names in the record."""
    for part, loop in (("training", runner.train_loop), ("validation", runner.val_loop)):
        for i, dataset in enumerate(inner_datasets(loop.dataloader.dataset) if loop is not None else ()):
            yield f"{part} data[{i}]", dataset


def _annotation_files(runner: Runner) -> Iterator[tuple[str, str, str]]:
    """Yield the annotation files of the data sets: key in the record, path, and hash; '' if the file is not there."""
    for key, dataset in _datasets(runner):
        path = getattr(dataset, "ann_file", None)
        if isinstance(path, str) and path and "://" not in path and not Path(path).is_dir():
            try:
                digest = _hash(path, Path(path).stat().st_mtime_ns)
            except OSError:
                digest = ""
            yield f"{key}.annotation file, SHA-256", path, digest


def read_record(checkpoint: Mapping) -> dict[str, str]:
    """The record in a checkpoint; empty if there is none."""
    try:
        found = json.loads((checkpoint.get("meta") or {}).get(KEY, "{}"))
    except (TypeError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


@lru_cache(64)
def _hash(path: str, _: int) -> str:
    return file_sha256(path)[:16]


def _flat(key: str, part: Any) -> Iterator[tuple[str, str]]:
    """Yield the values of a part of a config by dotted key."""
    if isinstance(part, Mapping) and part:
        for name, value in part.items():
            if name not in WITHOUT_EFFECT:
                yield from _flat(f"{key}.{name}", value)
    elif isinstance(part, (list, tuple)) and any(isinstance(value, Mapping) for value in part):
        for i, value in enumerate(part):
            yield from _flat(f"{key}[{i}]", value)
    else:
        yield key, f"{part.__module__}.{part.__name__}" if isinstance(part, type) else repr(part)


def _other_shapes(model: Any, weights: Mapping) -> Iterator[str]:
    model = getattr(model, "module", model)
    if not isinstance(model, nn.Module) or sharded_part(model):
        return
    for name, value in model.state_dict().items():
        given = getattr(weights.get(name), "shape", None)
        if given is not None and given != value.shape:
            yield f"{name} has the shape {tuple(value.shape)} (checkpoint: {tuple(given)})"


def _groups(optimizer: Any) -> list:
    # those of the wrapper have mmengine's base settings as one more group
    return optimizer.optimizer.param_groups if isinstance(optimizer, OptimWrapper) else []


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 80 else f"{value[:77]}..."
