"""Training, testing and inference from a config file: what the commands in ``tools/`` call.

mmengine's Runner does the work, and mmdet's inferencer draws and writes predictions.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed as dist

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


class UsageError(ValueError):
    """Something that the user gave cannot be used; the message is for the user, without a traceback."""


def load_config(config: str | Path, work_dir: str | None = None, cfg_options: dict | None = None,
                launcher: str = "none") -> Config:
    """Read a config and set what the commands let a user choose.

    Args:
        config: a config file, or ``mmgcvit::detection/...`` for one that came with the package.
        work_dir: where logs and checkpoints go; by default the config's own, else ``work_dirs/<name of the config>``.
        cfg_options: values to put over the config's, by dotted key.
        launcher: one of 'none', 'pytorch', 'slurm', 'mpi'.

    Raises:
        UsageError: there is no such config, or an unknown launcher.
    """
    if launcher not in LAUNCHERS:
        raise UsageError(f"launcher={launcher!r}; allowed: {', '.join(LAUNCHERS)}")
    package, _, inside = str(config).partition("::")
    if package == "mmgcvit" and inside:
        config = Path(__file__).parent / ".mim" / "configs" / inside
    cfg = Config.fromfile(_existing("config", str(config)))
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(config).stem)
    return cfg


def train(cfg: Config, resume: str | bool = False, amp: bool = False, auto_scale_lr: bool = False) -> Runner:
    """Train the config's model.

    Args:
        cfg: from :func:`load_config`.
        resume: True or 'auto': go on from the newest checkpoint of the work directory, if there is one; a file or URL:
            from that one.
        amp: mixed precision.
        auto_scale_lr: scale the learning rate by the global batch size over the config's ``base_batch_size``.

    Raises:
        UsageError: ``amp`` without a GPU, ``auto_scale_lr`` without a ``base_batch_size`` in the config, a checkpoint
            that is not there, or classes that are not the annotation file's (:func:`check_classes`).
    """
    if amp:
        if get_device() == "cpu":
            raise UsageError("--amp needs a GPU: mmengine's mixed precision does not run on a CPU")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise UsageError("--auto-scale-lr: the config has no auto_scale_lr.base_batch_size; add "
                             "auto_scale_lr = dict(base_batch_size=<global batch that its learning rate is meant for>)")
        cfg.auto_scale_lr.enable = True
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume in (True, "auto") else _existing("checkpoint to resume from", resume)
    for loader in ("train_dataloader", "val_dataloader"):
        check_classes(cfg.get(loader))
    runner = _build_runner(cfg)
    runner.train()
    return runner


def test(cfg: Config, checkpoint: str, show_dir: str | None = None) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data.

    Args:
        cfg: from :func:`load_config`.
        checkpoint: file or URL.
        show_dir: folder for pictures with the truth on the left and the prediction on the right.

    Returns:
        The metrics.

    Raises:
        UsageError: the checkpoint is not there, ``show_dir`` with a config whose visualization hook is not mmdet's, or
            classes that are not the annotation file's (:func:`check_classes`).
    """
    cfg.load_from = _existing("checkpoint", checkpoint)
    check_classes(cfg.get("test_dataloader"))
    if show_dir is not None:
        hook = cfg.get("default_hooks", {}).get("visualization") or {}
        if hook.get("type") != "DetVisualizationHook":
            raise UsageError(f"--show-dir: default_hooks.visualization of the config is {hook.get('type')!r}; "
                             "allowed: 'DetVisualizationHook'")
        hook.draw = True
        # The hook joins this to the run's own folder: an absolute path stays itself.
        hook.test_out_dir = os.path.abspath(show_dir)
    return _build_runner(cfg).test()


def predict(config: str, checkpoint: str, inputs: Sequence[str | Path], out_dir: str, device: str | None = None,
            score_thr: float = 0.3, batch_size: int = 1) -> dict:
    """Detect on pictures and on every picture of folders; write drawings and predictions.

    Args:
        config: a config file of a detector.
        checkpoint: file or URL.
        inputs: pictures and folders of pictures.
        out_dir: drawings go into its ``vis``, predictions (JSON, one per picture) into its ``preds``.
        device: 'cpu', 'cuda:0', ...; by default a GPU where there is one.
        score_thr: boxes under this score are not drawn; the JSON has all of them.
        batch_size: pictures at a time.

    Returns:
        mmdet's dict of predictions and drawings.

    Raises:
        UsageError: config, checkpoint or inputs are not there, a folder without pictures, or two pictures of one name.
    """
    from mmdet.apis import DetInferencer

    _existing("checkpoint", checkpoint)
    pictures = [picture for source in inputs for picture in list_pictures(source)]
    first: dict[str, Path] = {}
    for picture in pictures:
        if picture.stem in first:
            raise UsageError(f"inputs: the predictions of {str(picture)!r} and {str(first[picture.stem])!r} would go "
                             f"into one file, {picture.stem}.json; give them in two calls with two --out-dir")
        first[picture.stem] = picture
    inferencer = DetInferencer(load_config(config), checkpoint, device=device, show_progress=False)
    return inferencer([str(p) for p in pictures], out_dir=out_dir, pred_score_thr=score_thr, batch_size=batch_size,
                      no_save_pred=False)


def list_pictures(source: str | Path) -> list[Path]:
    """The picture, or the pictures of a folder, by name.

    Raises:
        UsageError: it is not there, or a folder without pictures.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UsageError(f"input {str(source)!r}: there is no such picture or folder")
    pictures = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURES)
    if not pictures:
        raise UsageError(f"input {str(source)!r}: no pictures in this folder; allowed: {', '.join(PICTURES)}")
    return pictures


def check_classes(dataloader: dict | None) -> None:
    """See that the classes which a config gives a COCO data set are its annotation file's, in the file's order.

    mmdet numbers the classes in the file's order whatever the config's, and says nothing of a name that it does not
    find; a data set in which it finds none of them is empty, and training waits for ever.

    Args:
        dataloader: a config's; without a CocoDataset or ``metainfo.classes`` there is nothing to see.

    Raises:
        UsageError: names that the file lacks, another order than the file's, or no such file.
    """
    dataset = (dataloader or {}).get("dataset", {})
    while "dataset" in dataset:  # wrappers
        dataset = dataset["dataset"]
    classes = dataset.get("metainfo", {}).get("classes")
    if dataset.get("type") != "CocoDataset" or not classes:
        return
    path = _existing("annotation file", os.path.join(dataset.get("data_root") or "", dataset["ann_file"]))
    categories = sorted(json.loads(Path(path).read_text())["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    if [name for name in names if name in classes] != list(classes):
        raise UsageError(f"classes={tuple(classes)!r}; allowed, as {path} has them: {', '.join(map(repr, names))}, "
                         "all or some, in this order")


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing have in common, under the names of mmdet's and mmseg's own tools."""
    parser.add_argument("config", help="config file, or mmgcvit::detection/... for one of the package's own")
    parser.add_argument("--work-dir", help="where logs and checkpoints go (work_dirs/<name of the config>)")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE",
                        help="values to put over the config's, e.g. train_dataloader.batch_size=4")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="how processes were started (none)")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def config_from_arguments(args: argparse.Namespace) -> Config:
    """The config of parsed :func:`add_runner_arguments`."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return load_config(args.config, args.work_dir, args.cfg_options, args.launcher)


def _build_runner(cfg: Config) -> Runner:
    if cfg.launcher == "pytorch" and get_device() == "cpu":
        # mmengine would give each process a GPU. It takes a process group that is there already as it is, and a
        # wrapper's own arguments over its defaults.
        if not dist.is_initialized():
            dist.init_process_group("gloo")
        cfg.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel", "broadcast_buffers": False,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
            **cfg.get("model_wrapper_cfg", {}), "device_ids": None}  # fmt: skip
    return Runner.from_cfg(cfg) if "runner_type" not in cfg else RUNNERS.build(cfg)


def _existing(what: str, path: str) -> str:
    if "://" not in path and not os.path.isfile(path):
        raise UsageError(f"{what} {path!r}: there is no such file")
    return path
