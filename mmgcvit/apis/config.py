"""Reading a config as a user of the commands names it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
SHIPPED = Path(__file__).parents[1] / ".mim" / "configs"


class UsageError(ValueError):
    """Something that the user gave cannot be used; the message is for the user, without a traceback."""


def load_config(
    config: str | Path, work_dir: str | None = None, cfg_options: dict | None = None, launcher: str = "none"
) -> Config:
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
        config = SHIPPED / inside
    cfg = Config.fromfile(existing("config", str(config)))
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", Path(config).stem)
    return cfg


def existing(what: str, path: str) -> str:
    """The path, if there is such a file; URLs and names of weights pass.

    Raises:
        UsageError: there is no such file.
    """
    if "://" not in path and not os.path.isfile(path):
        raise UsageError(f"{what} {path!r}: there is no such file")
    return path


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the config, and values to put over its own."""
    parser.add_argument("config", help="config file, or mmgcvit::detection/... and the like for the package's own")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="values to put over the config's, e.g. train_dataloader.batch_size=4",
    )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing have in common, under the names of mmdet's and mmseg's own tools."""
    add_config_arguments(parser)
    parser.add_argument("--work-dir", help="where logs and checkpoints go (work_dirs/<name of the config>)")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="how processes were started (none)")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def config_from_arguments(args: argparse.Namespace) -> Config:
    """The config of parsed :func:`add_runner_arguments`."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
