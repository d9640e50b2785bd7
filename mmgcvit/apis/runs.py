"""Training and testing with mmengine's Runner, with checks before the run and hooks for long runs."""

from __future__ import annotations

import copy
import errno
import gc
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmgcvit.apis.checkpoints import checkpoint_to_resume, newest_checkpoint, require_whole
from mmgcvit.apis.config import unknown_argument
from mmgcvit.apis.launch import build_runner, lost_process
from mmgcvit.apis.lock import lock_work_dir
from mmgcvit.apis.precision import fit_precision_to_device, predict_in, use_mixed_precision
from mmgcvit.apis.summary import resume_command
from mmgcvit.apis.tracking import use_tracker
from mmgcvit.apis.tta import use_tta
from mmgcvit.checkpoint.sources import through_reader
from mmgcvit.compat import end_workers
from mmgcvit.datasets.consistency import check_config
from mmgcvit.datasets.pipelines import use_checked_loading
from mmgcvit.datasets.problems import data_sets, refuse
from mmgcvit.engine.evaluation import tell_classes_apart
from mmgcvit.engine.guarded_stream import keep_running
from mmgcvit.engine.schedule import fit_warmups, fit_warmups_to_iterations
from mmgcvit.engine.single_device import revert_sync_bn, scale_single_device_lr
from mmgcvit.engine.stopping import stop_at_signals
from mmgcvit.engine.unused_maps import require_used_maps
from mmgcvit.engine.workers import end_workers_on_error, lost_worker
from mmgcvit.errors import (
    AnnotationError,
    CheckpointError,
    ClassificationDataError,
    CorruptImageError,
    RunStopped,
    UsageError,
)
from mmgcvit.optim import with_fused_optimizer
from mmgcvit.registry import rename_old_types, type_name
from mmgcvit.tasks import TASKS, task_of_dataset
from mmgcvit.utils.files import require_file
from mmgcvit.utils.program import is_first_process
from mmgcvit.utils.text import summarize, worker_message

CORRUPT = ("stop", "skip")
#: What a run leaves, by name.
RUN_FILES = ("iter_*.pth", "epoch_*.pth", "best_*.pth", "report.html")
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
#: Errors about the data, which may have changed since they were checked, and files that have gone.
DATA_ERRORS = (AnnotationError, ClassificationDataError, CorruptImageError, FileNotFoundError, PermissionError)
#: Errors about what the user gave, which are shown without a traceback.
USERS_ERRORS = (*DATA_ERRORS, CheckpointError, UsageError)


def train(
    cfg: Config,
    resume: str | bool = False,
    amp: str | bool = False,
    auto_scale_lr: bool | None = None,
    corrupt: str | None = None,
    track: str | None = None,
) -> Runner:
    """Train the config's model.

    The run stops at a NaN or infinite loss and names the last good checkpoint. With ``randomness.deterministic``, a
    resumed run ends with the same weights as an uninterrupted one. With one process or on a CPU, SyncBN is replaced by
    BN.

    Ctrl-C, SIGTERM and SIGUSR1 (Slurm's notice) end the run after the iteration, with a checkpoint. The work directory
    is locked while the run lasts.

    Args:
        cfg: from :func:`~mmgcvit.apis.load_config`. It is not changed; the runner has its own copy.
        resume: True or 'auto': resumes from the newest intact checkpoint in the work directory, if there is one;
            damaged ones are named in warnings. A file or URL: resumes from that checkpoint.
        amp: mixed precision: 'fp16' (or True) with a dynamic loss scale and, unless the config clips gradients,
            clipping at a norm of 35; or 'bf16', on a CPU, too. (A config that enables fp16 itself runs in float32 on a
            CPU.)
        auto_scale_lr: True multiplies the learning rate by (global batch size incl. gradient accumulation) /
            ``auto_scale_lr.base_batch_size``, like ``auto_scale_lr.enable`` in the config. By default, the learning
            rate is also scaled in a run with one process, if the config has a larger ``base_batch_size`` and no
            ``enable``; False prevents this.
        corrupt: handling of images that cannot be decoded: 'stop' stops the run and names the image; 'skip' names and
            counts the image and replaces it by another one. Default: the setting in the config, else 'stop'.
        track: experiment tracker for the logged values, 'tensorboard', 'wandb', 'mlflow' or 'clearml'
            (:func:`~mmgcvit.apis.tracking.use_tracker`).

    Raises:
        UsageError: ``amp`` is 'fp16' without a GPU; the learning rate is to be scaled but the config has no
            ``base_batch_size``; the checkpoint does not exist, cannot be read, or is resumed by another model or with
            other schedules; parts of the config contradict each other
            (:func:`~mmgcvit.datasets.consistency.check_config`); the annotations would break the run; the classes
            differ from those of the annotation file; another run has the work directory; or, with DDP, a map of the
            backbone is not used.
        RunStopped: a signal has stopped the run; the message says how to go on.
    """
    if corrupt is not None and corrupt not in CORRUPT:
        raise UsageError(f"corrupt={corrupt!r}; allowed: {', '.join(CORRUPT)}")
    started = time.time()
    cfg = rename_old_types(copy.deepcopy(cfg))
    if track is not None:
        use_tracker(cfg, track)
    if amp:
        use_mixed_precision(cfg, "fp16" if amp is True else amp)
    else:
        fit_precision_to_device(cfg)
    scale_single_device_lr(cfg, auto_scale_lr)
    try:
        lock = lock_work_dir(cfg.work_dir) if cfg.get("work_dir") else nullcontext()
        with lock, stop_at_signals(), end_workers_on_error():
            return _train(cfg, resume, corrupt)
    except RunStopped as stop:
        error = RunStopped(f"{stop}. To go on: {resume_command(cfg)}", stop.number)
    except DATA_ERRORS as failed:
        raise UsageError(worker_message(failed) + _way_on(cfg, started)) from failed
    except USERS_ERRORS as failed:
        raise UsageError(worker_message(failed)) from failed
    except TypeError as failed:
        message = unknown_argument(failed, cfg)
        if message is None:
            raise
        raise UsageError(message) from failed
    except RuntimeError as failed:
        message = lost_process(failed, cfg) or lost_worker(failed)
        if message is None:
            raise
        raise UsageError(message + _way_on(cfg, started)) from failed
    except OSError as failed:
        if failed.errno not in DISK_FULL:
            raise
        free = shutil.disk_usage(cfg.work_dir).free
        raise UsageError(
            f"{failed.filename or cfg.work_dir}: cannot be written: {failed.strerror}; {free:,} bytes are free on the "
            f"disk. Make room, and go on: {resume_command(cfg)}"
        ) from failed
    # The traceback refers to the data loaders, whose workers end with them.
    error.__traceback__ = error.__context__ = None
    gc.collect()
    raise error


def _way_on(cfg: Config, started: float) -> str:
    """How a run that has failed goes on, for the end of a message; '' if it has written no checkpoint."""
    checkpoint = newest_checkpoint(cfg.work_dir) if cfg.get("work_dir") else None
    if checkpoint and not cfg.get("resume") and os.path.isfile(checkpoint) and os.path.getmtime(checkpoint) < started:
        checkpoint = None  # of an earlier run
    return f". Last checkpoint: {checkpoint}. To go on from it: {resume_command(cfg)}" if checkpoint else ""


def _require_work_dir(cfg: Config) -> None:
    if not cfg.get("work_dir"):
        raise UsageError("config: work_dir is not set; allowed: a folder for log and checkpoints")


def _train(cfg: Config, resume: str | bool, corrupt: str | None) -> Runner:
    if resume:
        _require_work_dir(cfg)
        checkpoint = checkpoint_to_resume(cfg.work_dir) if resume in (True, "auto") else require_whole(str(resume))
        if checkpoint is not None:
            cfg.resume, cfg.load_from = True, checkpoint
        else:
            print_log(f"--resume: no checkpoint in {cfg.work_dir}; starting from scratch", level=logging.WARNING)
    elif cfg.get("load_from") and not cfg.get("resume"):
        cfg.load_from = through_reader(require_file("load_from", cfg.load_from))
    use_checked_loading([cfg.get("train_dataloader"), cfg.get("custom_hooks")], corrupt)  # hooks may set pipelines
    use_checked_loading(cfg.get("val_dataloader"))
    _warn(fit_warmups(cfg))
    _check_data(cfg, "train", "val")
    _require_work_dir(cfg)
    configured = {type_name(hook) for hook in cfg.get("custom_hooks") or ()}
    ours = ["InvalidLossHook", "CorruptImageHook", "RunRecordHook", "StopHook", "MergedGroupsHook"]
    if cfg.get("randomness", {}).get("deterministic"):
        ours.append("ReproducibleHook")
    if cfg.get("resume"):
        ours.append("ResumedScheduleHook")
    added: list[dict[str, Any]] = [dict(type=f"mmgcvit.{name}") for name in ours if name not in configured]
    added.append(dict(type="mmgcvit.LoadedWeightsHook", complete=bool(cfg.get("resume"))))
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), *added]
    if not cfg.get("resume"):
        _warn_of_earlier_run(cfg.work_dir)
    _use_resumable_loop(cfg)
    _use_safe_checkpoints(cfg)
    if not _watches_a_class(cfg):
        tell_classes_apart(cfg.get("val_evaluator"))
    runner = build_runner(cfg)
    revert_sync_bn(runner)
    # Other runners shard parameters or bring optimizers of their own. A resumed run gets the implementation from its
    # checkpoint: an optimizer that was built as a fused one fails under AMP if the checkpoint's was not.
    if type(runner) is Runner and not cfg.get("resume"):
        runner.optim_wrapper = with_fused_optimizer(runner.optim_wrapper)
    require_used_maps(getattr(runner, "model", None))  # FlexibleRunner builds it later
    _warn(fit_warmups_to_iterations(runner))
    keep_running()
    runner.train()
    end_workers(runner)
    return runner


def _warn_of_earlier_run(work_dir: str) -> None:
    """Name the files of an earlier run, among which those of a new one would be written."""
    found = sorted(path.name for pattern in RUN_FILES for path in Path(work_dir).glob(pattern))
    if found and is_first_process():
        _warn([f"work_dir={work_dir!r} has files of an earlier run ({summarize(found, 4)}), and this run adds its own, "
               "which its report and --resume cannot tell apart. Another --work-dir keeps them apart"])  # fmt: skip


def _use_resumable_loop(cfg: Config) -> None:
    """Let a run by epochs be resumed inside an epoch, where a signal may stop it."""
    loop = cfg.get("train_cfg") or {}
    if type_name(loop) == "EpochBasedTrainLoop" or (loop.get("by_epoch") and "type" not in loop):
        loop.pop("by_epoch", None)
        loop.update(type="mmgcvit.ResumableTrainLoop", same_length=False)


def _watches_a_class(cfg: Config) -> bool:
    """Whether a hook or a schedule looks at the result of a class by mmdet's name for it: 'coco/cat_precision'."""
    schedules = cfg.get("param_scheduler") or ()
    parts = [
        *(cfg.get("default_hooks") or {}).values(),
        *(cfg.get("custom_hooks") or ()),
        *([schedules] if isinstance(schedules, Mapping) else schedules),
    ]
    names: list[Any] = []
    for value in (part.get(key) for part in parts if isinstance(part, Mapping) for key in ("save_best", "monitor")):
        names += value if isinstance(value, (list, tuple)) else [value]
    return any(str(name).endswith("_precision") for name in names)


def _use_safe_checkpoints(cfg: Config) -> None:
    """Let mmengine's CheckpointHook keep the last good checkpoint until the next one is whole."""
    hooks = cfg.get("default_hooks") or {}
    hook = hooks.setdefault("checkpoint", dict(type="CheckpointHook", interval=1))  # mmengine's default
    if hook and type_name(hook) == "CheckpointHook":
        hook["type"] = "mmgcvit.SafeCheckpointHook"
    cfg.default_hooks = hooks


def test(
    cfg: Config,
    checkpoint: str,
    show_dir: str | None = None,
    tta: bool = False,
    out: str | None = None,
    amp: str | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data.

    The checkpoint is read by :func:`~mmgcvit.checkpoint.reader.read_checkpoint`, which never executes code from a file.
    For a run with an ``EMAHook``, the averaged weights are evaluated, which mmengine saves as the model's weights.

    Args:
        cfg: from :func:`~mmgcvit.apis.load_config`. It is not changed.
        checkpoint: a file of any publisher or your own, a URL, or a name from ``mmgcvit weights list``.
        show_dir: folder for images with the ground truth on the left and the prediction on the right.
        tta: use test-time augmentation (:func:`use_tta`).
        out: for a classifier, CSV file for the predictions (:class:`~mmgcvit.classification.TopKAccuracy`).
        amp: mixed precision of the backbone, 'fp16' (GPU only) or 'bf16'.

    Returns:
        The metrics.

    Raises:
        UsageError: the checkpoint does not exist, cannot be read, belongs to another network, lacks a part of the
            model, or has NaN or infinite values; a class of the test data has another label in the checkpoint;
            ``show_dir`` is used with a visualization hook that is neither mmdet's nor mmseg's; ``out`` is used without
            a TopKAccuracy in the config; parts of the config contradict each other; the annotations would break the
            run; or the classes differ from those of the annotation file or the head.
    """
    cfg = rename_old_types(copy.deepcopy(cfg))
    if not cfg.get("test_dataloader"):
        raise UsageError("the config has no test_dataloader: there is nothing to test on")
    cfg.load_from = through_reader(require_file("checkpoint", checkpoint))
    # mmengine saves the averaged weights as the model's weights. Its hook would load them again, and would fail on bare
    # state dicts and on weights without a head.
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or () if type_name(hook) != "EMAHook"]
    cfg.custom_hooks.append(dict(type="mmgcvit.LoadedWeightsHook"))
    _check_data(cfg, "test")
    if show_dir is not None:
        _show_in(cfg, os.path.abspath(show_dir))  # absolute, as the libraries join it to the work directory
    if tta:
        use_tta(cfg)
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    use_checked_loading(cfg.test_dataloader)
    tell_classes_apart(cfg.get("test_evaluator"))
    if out is not None and not any(task.set_table(cfg, out) for task in TASKS):
        raise UsageError("--out: the config's test_evaluator is not a TopKAccuracy, which writes the table")
    try:
        runner = build_runner(cfg)
        revert_sync_bn(runner)
        predict_in(amp, runner.model)
        metrics = runner.test()
        end_workers(runner)
        return metrics
    except USERS_ERRORS as error:
        raise UsageError(worker_message(error)) from error
    except (RuntimeError, TypeError) as error:
        message = unknown_argument(error, cfg) if isinstance(error, TypeError) else lost_worker(error)
        if message is None:
            raise
        raise UsageError(message) from error


def _show_in(cfg: Config, folder: str) -> None:
    hook: Any = cfg.get("default_hooks", {}).get("visualization") or {}
    known = {task.visualization_hook: task for task in TASKS if task.visualization_hook}
    if type_name(hook) not in known:
        raise UsageError(
            f"--show-dir: default_hooks.visualization of the config is {hook.get('type')!r}; "
            f"allowed: {', '.join(map(repr, sorted(known)))}"
        )
    known[type_name(hook)].show_in(cfg, hook, folder)
    hook.draw = True


def _check_data(cfg: Config, *splits: str) -> None:
    """Check the data of a run, and add the checks that are made while the data is loaded."""
    init_default_scope(cfg.get("default_scope", "mmengine"))
    if is_first_process():
        _check_before_run(cfg, *splits)  # only the first process; the launcher stops the others
    for split in splits:
        for dataset in data_sets((cfg.get(f"{split}_dataloader") or {}).get("dataset")):
            task_of_dataset(dataset).add_checks(dataset, cfg.get("model"))


def _check_before_run(cfg: Config, *splits: str) -> None:
    try:
        for split in splits:
            evaluator = cfg.get(f"{split}_evaluator")
            found = list(data_sets((cfg.get(f"{split}_dataloader") or {}).get("dataset")))
            for dataset in found:
                others = [other for other in found if other is not dataset]
                task_of_dataset(dataset).check_before_run(dataset, cfg.get("model"), evaluator, others)
        refuse(check_config(cfg, splits))
    except AnnotationError as error:
        raise UsageError(str(error)) from error


def _warn(messages: Sequence[str]) -> None:
    for message in messages:
        print_log(message, logger="current", level=logging.WARNING)
