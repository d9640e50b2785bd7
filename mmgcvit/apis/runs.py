"""Training and testing: mmengine's Runner with what keeps a long run safe."""

from __future__ import annotations

import logging
import os
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS, init_default_scope
from mmengine.runner import CheckpointLoader, Runner
from torch import distributed as dist

from mmgcvit.apis.config import SHIPPED, UsageError, existing
from mmgcvit.checkpoint.errors import CheckpointError
from mmgcvit.checkpoint.layouts import weights_of
from mmgcvit.checkpoint.loading import SCHEMES, locate
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.tasks.detection.annotations import AnnotationError, check_before_run, data_sets
from mmgcvit.errors import ClassificationDataError
from mmgcvit.tasks.segmentation.label_maps import check_label_maps, has_label_maps

AMP = ("fp16", "bf16")
MIXED = {"OptimWrapper": "AmpOptimWrapper", "FSDPOptimWrapper": "FSDPAmpOptimWrapper"}
CORRUPT = ("stop", "skip")
LOADERS = {f"{scope}LoadImageFromFile": "LoadCheckedImage" for scope in ("", "mmcv.", "mmdet.", "mmseg.")}
LOADERS["LoadPillowImage"] = "LoadPillowImage"
LOADERS["LoadCheckedImage"] = "LoadCheckedImage"
READER = "mmgcvit-reader://"  # before a checkpoint's name: mmengine is to have it from our own reader
SCALES = (0.8, 1.0, 1.2)  # of the test pipeline's, under test-time augmentation


def train(
    cfg: Config,
    resume: str | bool = False,
    amp: str | bool = False,
    auto_scale_lr: bool = False,
    corrupt: str | None = None,
) -> Runner:
    """Train the config's model.

    The run stops at a loss that is not finite, with the last good checkpoint's name; with
    ``randomness.deterministic`` a resumed run ends at the weights of one that was never interrupted.

    Args:
        cfg: from :func:`~mmgcvit.apis.load_config`.
        resume: True or 'auto': go on from the newest whole checkpoint of the work directory, if there is one; a file
            or URL: from that one.
        amp: mixed precision: 'fp16' (True means this) with a dynamic loss scale and, where the config clips nothing,
            gradients clipped at a norm of 35, or 'bf16'. (A config that has it itself runs in float32 on a CPU.)
        auto_scale_lr: scale the learning rate by the global batch size, of all the batches whose gradients are added up
            for a step, over the config's ``base_batch_size``; as if the config had ``auto_scale_lr.enable``.
        corrupt: what an image that cannot be decoded does in training: 'stop' the run with its name, or 'skip': it is
            named, counted, and another one takes its place. By default what the config's loading says, else 'stop'.

    Raises:
        UsageError: ``amp`` without a GPU, a scaled rate without a ``base_batch_size`` in the config, a checkpoint
            that is not there, annotations that would break the run or classes that are not the annotation file's
            (:func:`~mmgcvit.tasks.detection.annotations.check_before_run`).
    """
    if corrupt is not None and corrupt not in CORRUPT:
        raise UsageError(f"corrupt={corrupt!r}; allowed: {', '.join(CORRUPT)}")
    if amp:
        _mixed_precision(cfg, "fp16" if amp is True else amp)
    elif _type_name(cfg.get("optim_wrapper") or {}) in MIXED.values() and get_device() == "cpu":
        print_log("mixed precision of the config is left out: there is no GPU", level=logging.WARNING)
        cfg.optim_wrapper.type = _type_name(cfg.optim_wrapper).replace("Amp", "")
        for key in ("dtype", "loss_scale", "use_fsdp"):
            cfg.optim_wrapper.pop(key, None)
    if auto_scale_lr or (cfg.get("auto_scale_lr") or {}).get("enable"):
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise UsageError(
                "--auto-scale-lr: the config has no auto_scale_lr.base_batch_size; add "
                "auto_scale_lr = dict(base_batch_size=<global batch that its learning rate is meant for>)"
            )
        cfg.auto_scale_lr.enable = True
        # mmengine compares a single batch of all processes with it
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get("accumulative_counts", 1)
    if resume:
        checkpoint = newest_checkpoint(cfg.work_dir) if resume in (True, "auto") else resume
        if checkpoint is not None:
            cfg.resume, cfg.load_from = True, existing("checkpoint to resume from", checkpoint)
        else:
            print_log(f"--resume: no checkpoint in {cfg.work_dir}: the run begins anew", level=logging.WARNING)
    _check_data(cfg, "train_dataloader", "val_dataloader")
    for transform in _images([cfg.get("train_dataloader"), cfg.get("custom_hooks")]):  # hooks may switch pipelines
        transform.update(type=LOADERS[transform["type"]], **({} if corrupt is None else {"corrupt": corrupt}))
    hooks = [hook["type"] for hook in cfg.get("custom_hooks") or ()]
    ours = [dict(type="InvalidLossHook"), dict(type="CorruptImageHook")]
    if cfg.get("randomness", {}).get("deterministic"):
        ours.append(dict(type="ReproducibleHook"))
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), *(hook for hook in ours if hook["type"] not in hooks)]
    try:
        runner = _build_runner(cfg)
        runner.train()
    except ClassificationDataError as error:
        raise UsageError(str(error)) from error
    return runner


def test(
    cfg: Config, checkpoint: str, show_dir: str | None = None, tta: bool = False, out: str | None = None
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data.

    The checkpoint is read by :func:`~mmgcvit.checkpoint.reader.read_checkpoint`, which runs nothing that is in it. Of a
    run with an ``EMAHook`` the averaged weights are evaluated, as mmengine saves them in the model's place.

    Args:
        cfg: from :func:`~mmgcvit.apis.load_config`.
        checkpoint: a file of any publisher or of one's own, a URL, or a name of ``mmgcvit weights list``.
        show_dir: folder for images with the truth on the left and the prediction on the right.
        tta: test-time augmentation (:func:`use_tta`).
        out: of a classifier: CSV file for the predictions (:class:`~mmgcvit.classification.TopKAccuracy`).

    Returns:
        The metrics.

    Raises:
        UsageError: the checkpoint is not there, cannot be read, is of another network or, for a classifier, lacks its
            head; ``show_dir`` with a config whose visualization hook is neither mmdet's nor mmseg's, ``out`` without a
            TopKAccuracy in the config, annotations that would break the run, or classes that are not the annotation
            file's, the checkpoint's or the head's.
    """
    if not cfg.get("test_dataloader"):
        raise UsageError("the config has no test_dataloader: there is nothing to test on")
    cfg.load_from = existing("checkpoint", checkpoint)
    if "://" not in checkpoint or checkpoint.startswith((*SCHEMES, "http://", "https://")):
        cfg.load_from = READER + checkpoint
    # mmengine saves the averaged weights as the model's; its hook would load them a second time, and bare state dicts
    # and weights without a head not at all
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or () if _type_name(hook) != "EMAHook"]
    _check_data(cfg, "test_dataloader")
    if show_dir is not None:
        hook = cfg.get("default_hooks", {}).get("visualization") or {}
        folder = os.path.abspath(show_dir)  # what the libraries join to the run's own folder stays itself
        if hook.get("type") == "DetVisualizationHook":
            hook.test_out_dir = folder
        elif hook.get("type") == "SegVisualizationHook":
            hook.interval = 1  # OpenMMLab's draws one in 50
            cfg.visualizer.vis_backends = [dict(type="LocalVisBackend", img_save_dir=folder)]
        else:
            raise UsageError(
                f"--show-dir: default_hooks.visualization of the config is {hook.get('type')!r}; "
                "allowed: 'DetVisualizationHook', 'SegVisualizationHook'"
            )
        hook.draw = True
    if tta:
        use_tta(cfg)
        cfg.model = dict(**cfg.tta_model, module=cfg.model)
    if out is not None:
        metrics = [metric for metric in _listed(cfg.get("test_evaluator")) if metric.get("type") == "TopKAccuracy"]
        if not metrics:
            raise UsageError("--out: the config's test_evaluator is no TopKAccuracy, which writes the table")
        metrics[0].out_csv = out
    try:
        return _build_runner(cfg).test()
    except (CheckpointError, ClassificationDataError) as error:
        raise UsageError(str(error)) from error


def use_tta(cfg: Config) -> None:
    """Make the config's test pipeline one of several scales, each mirrored too.

    A config's own ``tta_model`` and ``tta_pipeline``, which those in ``configs/segmentation`` have, are taken as they
    are. Otherwise they are those of ``configs/detection/_base_/tta.py``, at 0.8, 1 and 1.2 times the scale of the test
    pipeline's Resize. Of detections boxes alone are merged: masks are left out, and the metric 'segm' with them.

    Raises:
        UsageError: a detector's test pipeline without Resize, or no detector, in a config that lacks one of the two.
    """
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        if "roi_head" not in cfg.model and "bbox_head" not in cfg.model:
            raise UsageError("--tta: the config is no detector's and has no tta_model with a tta_pipeline; add them")
        resize = [t for t in cfg.test_dataloader.dataset.pipeline if t["type"].endswith("Resize") and "scale" in t]
        if not resize:
            raise UsageError(
                "--tta: test_dataloader.dataset.pipeline has no Resize with a scale, and the config no "
                "tta_pipeline; add tta_model and tta_pipeline"
            )
        base = Config.fromfile(SHIPPED / "detection" / "_base_" / "tta.py")
        scale = resize[0]["scale"]
        scale = (scale, scale) if isinstance(scale, int) else scale
        base.tta_pipeline[-1].transforms[0] = [
            dict(resize[0], scale=tuple(round(side * factor) for side in scale)) for factor in SCALES
        ]
        cfg.tta_model, cfg.tta_pipeline = base.tta_model, base.tta_pipeline
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if str(cfg.tta_model.type).endswith("BoxTTAModel"):
        for evaluator in _listed(cfg.get("test_evaluator")):
            if "segm" in evaluator.get("metric", ()):
                evaluator.metric = "bbox"


def newest_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint to go on from: the one that ``last_checkpoint`` names, or else the newest that is whole.

    A run that is killed while it writes leaves a part of a file, or an empty ``last_checkpoint``.
    """
    folder = Path(work_dir)
    # not best_*.pth, which have no optimizer
    found = [path for pattern in ("epoch_*.pth", "iter_*.pth") for path in folder.glob(pattern)]
    candidates = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    pointer = folder / "last_checkpoint"
    if pointer.is_file():
        named = pointer.read_text().strip()
        if "://" in named:
            return named
        # work_dir may have been moved since
        candidates = [path for path in (Path(named), folder / Path(named).name) if named] + candidates
    for path in candidates:
        if path.is_file() and zipfile.is_zipfile(path):  # its directory is at the file's end
            return str(path)
    return None


def _mixed_precision(cfg: Config, kind: str) -> None:
    if kind not in AMP:
        raise UsageError(f"amp={kind!r}; allowed: {', '.join(AMP)}")
    if get_device() == "cpu":
        raise UsageError("--amp needs a GPU: mmengine's mixed precision does not run on a CPU")
    whole = _type_name(cfg.optim_wrapper).replace("Amp", "")
    cfg.optim_wrapper.type = MIXED.get(whole, "AmpOptimWrapper")
    if kind == "bf16":
        cfg.optim_wrapper.dtype = "bfloat16"
        return
    cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if not cfg.optim_wrapper.get("clip_grad"):
        cfg.optim_wrapper.clip_grad = dict(max_norm=35, norm_type=2)


def _check_data(cfg: Config, *loaders: str) -> None:
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))):
        return  # one process speaks for all: the launcher stops the others
    init_default_scope(cfg.get("default_scope", "mmengine"))
    try:
        for loader in loaders:
            check_before_run(cfg.get(loader))
            for dataset in data_sets((cfg.get(loader) or {}).get("dataset")):
                if has_label_maps(dataset) and not dataset.get("backend_args"):
                    check_label_maps(dataset, cfg.get("model"), cfg.get(loader.replace("dataloader", "evaluator")))
    except AnnotationError as error:
        raise UsageError(str(error)) from error


def _images(part: Any) -> Iterator[dict]:
    """Every loading of an image in a data loader's config, however deep."""
    if isinstance(part, dict):
        if part.get("type") in LOADERS:
            yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from _images(inner)


def _listed(value: Any) -> Sequence:
    return value if isinstance(value, (list, tuple)) else [value] if value else []


def _take_slurms_word() -> None:
    """Tell torch what Slurm says of the processes, by mmengine's rules."""
    lacking = [name for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST") if name not in os.environ]
    if lacking:
        raise UsageError(
            f"launcher='slurm': {', '.join(lacking)} not in the environment; start processes by srun, as "
            "tools/slurm_train.sh does"
        )
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=os.environ["SLURM_NTASKS"],
        LOCAL_RANK=os.environ.get("SLURM_LOCALID", "0"),
    )
    if "MASTER_ADDR" not in os.environ:
        nodes = subprocess.run(
            ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]], capture_output=True, text=True, check=True
        ).stdout.split()
        os.environ["MASTER_ADDR"] = nodes[0]
    os.environ.setdefault("MASTER_PORT", "29500")


def _type_name(part: Mapping) -> str:
    """The class's name, whether a config gives the class, its name, or the name with a scope."""
    kind = part.get("type")
    return kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", "")


@CheckpointLoader.register_scheme(prefixes=READER, force=True)
def load_from_mmgcvit_reader(filename: str, map_location: Any = None) -> dict[str, Any]:
    """For mmengine: a checkpoint by our own reader, whose ``state_dict`` mmengine and its hooks find by that name."""
    found = read_checkpoint(locate(filename.removeprefix(READER)), map_location or "cpu")
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        return found
    return {"state_dict": weights_of(found)}


def _build_runner(cfg: Config) -> Runner:
    if cfg.launcher in ("pytorch", "slurm") and get_device() == "cpu":
        # mmengine would give each process a GPU. It takes a process group that is there already as it is, and a
        # wrapper's own arguments over its defaults.
        if not dist.is_initialized():
            if cfg.launcher == "slurm":
                _take_slurms_word()
            dist.init_process_group("gloo")
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel", "broadcast_buffers": False,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
            **cfg.get("model_wrapper_cfg", {}), "device_ids": None}  # fmt: skip
    return Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)
