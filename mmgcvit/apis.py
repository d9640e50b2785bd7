"""Training, testing and inference from a config file: what the commands in ``tools/`` call.

mmengine's Runner does the work, and mmdet's inferencer draws and writes predictions.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed as dist

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def load_config(config: str | Path, work_dir: str | None = None, cfg_options: dict | None = None,
                launcher: str = "none") -> Config:
    """Read a config and set what the commands let a user choose.

    Args:
        config: a config file, or ``mmgcvit::detection/...`` for one that came with the package.
        work_dir: where logs and checkpoints go; by default the config's own, else ``work_dirs/<name of the config>``.
        cfg_options: values to put over the config's, by dotted key.
        launcher: one of 'none', 'pytorch', 'slurm', 'mpi'.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: an unknown launcher.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher={launcher!r}; allowed: {', '.join(LAUNCHERS)}")
    package, _, inside = str(config).partition("::")
    if package == "mmgcvit" and inside:
        config = Path(__file__).parent / ".mim" / "configs" / inside
    if not Path(config).is_file():
        raise FileNotFoundError(f"config {str(config)!r}: there is no such file")
    cfg = Config.fromfile(str(config))
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
        resume: True: go on from the newest checkpoint of the work directory, if there is one; a path: from that one.
        amp: mixed precision.
        auto_scale_lr: scale the learning rate by the global batch size over the config's ``base_batch_size``.

    Raises:
        ValueError: ``amp`` without a GPU, or ``auto_scale_lr`` without a ``base_batch_size`` in the config.
        FileNotFoundError: the checkpoint to resume from is not there.
    """
    if amp:
        if get_device() == "cpu":
            raise ValueError("--amp needs a GPU: mmengine's mixed precision does not run on a CPU")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise ValueError("--auto-scale-lr: the config has no auto_scale_lr.base_batch_size; add "
                             "auto_scale_lr = dict(base_batch_size=<global batch that its learning rate is meant for>)")
        cfg.auto_scale_lr.enable = True
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume is True else _existing("checkpoint to resume from", resume)
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
        FileNotFoundError: the checkpoint is not there.
        ValueError: ``show_dir`` with a config that has no visualization hook.
    """
    cfg.load_from = checkpoint if "://" in checkpoint else _existing("checkpoint", checkpoint)
    if show_dir is not None:
        hook = cfg.get("default_hooks", {}).get("visualization")
        if hook is None:
            raise ValueError("--show-dir: the config has no default_hooks.visualization that could draw")
        hook.draw = True
        # The hook joins this to the run's own folder: an absolute path stays itself.
        hook.test_out_dir = os.path.abspath(show_dir)
    return _build_runner(cfg).test()


def predict(config: str, checkpoint: str, inputs: str, out_dir: str, device: str | None = None,
            score_thr: float = 0.3, batch_size: int = 1) -> dict:
    """Detect on a picture or on every picture of a folder; write drawings and predictions.

    Args:
        config: a config file of a detector.
        checkpoint: file or URL.
        inputs: a picture or a folder of pictures.
        out_dir: drawings go into its ``vis``, predictions (JSON, one per picture) into its ``preds``.
        device: 'cpu', 'cuda:0', ...; by default a GPU where there is one.
        score_thr: boxes under this score are not drawn; the JSON has all of them.
        batch_size: pictures at a time.

    Returns:
        mmdet's dict of predictions and drawings.

    Raises:
        FileNotFoundError: config, checkpoint or inputs are not there.
        ValueError: a folder without pictures.
    """
    from mmdet.apis import DetInferencer

    if "://" not in checkpoint:
        _existing("checkpoint", checkpoint)
    pictures = list_pictures(inputs)
    # The inferencer builds from the config alone: with the picture that a run keeps, nothing else is read.
    inferencer = DetInferencer(load_config(config), checkpoint, device=device, show_progress=False)
    return inferencer([str(p) for p in pictures], out_dir=out_dir, pred_score_thr=score_thr, batch_size=batch_size,
                      no_save_pred=False)


def list_pictures(source: str | Path) -> list[Path]:
    """The picture, or the pictures of a folder, by name.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: a folder without pictures.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"input {str(source)!r}: there is no such picture or folder")
    suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
    pictures = sorted(path for path in source.iterdir() if path.suffix.lower() in suffixes)
    if not pictures:
        raise ValueError(f"input {str(source)!r}: no pictures in this folder; allowed: {', '.join(suffixes)}")
    return pictures


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
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{what} {path!r}: there is no such file")
    return path
