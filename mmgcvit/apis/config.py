"""Loading of a config as given on the command line."""

from __future__ import annotations

import argparse
import ast
import inspect
import logging
import os
import re
import reprlib
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmgcvit.errors import UsageError
from mmgcvit.registry import rename_old_types
from mmgcvit.utils.files import require_file
from mmgcvit.utils.images import MAX_PIXELS
from mmgcvit.utils.paths import SHIPPED_CONFIGS
from mmgcvit.utils.text import describe, summarize

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
#: Keys of a config that are used besides the arguments of mmengine's Runner.
USED_KEYS = (
    "auto_scale_lr",
    "custom_imports",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "tta_model",
    "tta_pipeline",
)
SINGLE_GPU = "_1gpu"  # suffix of the single-GPU configs of earlier releases
#: Batch sizes of those configs by the prefix of their names; the others used the batch size of their base config.
SINGLE_GPU_BATCHES = {"gcvit-large-384_upernet": 2, "gcvit-": 4}

#: What Python and GCViT say of arguments that do not exist, and the functions by which mmengine builds from a config.
UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'|unknown argument (\w+)=")
BUILDERS = ("build_from_cfg", "build_model_from_cfg", "build_dataloader", "build_runner_from_cfg")


def unknown_argument(error: TypeError, cfg: Config) -> str | None:
    """Message for a setting of a config that what is built from it does not take; None for any other error."""
    found = UNEXPECTED.search(str(error))
    functions = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    if found is None or functions.isdisjoint(BUILDERS):
        return None
    places = list(_places(dict(cfg.items()), found[1] or found[2]))
    return f"config: {summarize(places) or 'a setting'}: {error}"


def _places(node: Any, name: str, place: str = "") -> Iterator[str]:
    """Where a config has a key, such as ``train_cfg.max_iter=10``."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == name:
                yield f"{place}{key}={reprlib.repr(value)}"
            yield from _places(value, name, f"{place}{key}.")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _places(value, name, f"{place}{index}.")


def load_config(
    config: str | Path, work_dir: str | None = None, cfg_options: dict | None = None, launcher: str = "none"
) -> Config:
    """Load a config and apply the options of the commands.

    Type names and ``..._1gpu.py`` configs of earlier releases are converted, with a warning.

    Args:
        config: a config file, or ``mmgcvit::detection/...`` for a config shipped with the package.
        work_dir: folder for logs and checkpoints; by default the config's own, else ``work_dirs/<name of the config>``.
        cfg_options: values that override the config's, by dotted key.
        launcher: one of 'none', 'pytorch', 'slurm', 'mpi'.

    Returns:
        The config. It contains ``auto_scale_lr.enable`` only if the user has decided on it: if it is True, or if
        ``cfg_options`` or the user's own config files set it or the learning rate itself.

    Raises:
        UsageError: the config does not exist or cannot be loaded, the launcher is unknown, or an option does not fit
            the config or would have no effect.
    """
    if launcher not in LAUNCHERS:
        raise UsageError(f"launcher={launcher!r}; allowed: {', '.join(LAUNCHERS)}")
    package, _, inside = str(config).partition("::")
    path = SHIPPED_CONFIGS / inside if package == "mmgcvit" and inside else Path(config)
    shipped = path.resolve().is_relative_to(SHIPPED_CONFIGS.resolve())
    base = path.with_name(path.name.replace(f"{SINGLE_GPU}.py", ".py"))
    if base != path and base.is_file() and (shipped or not path.is_file()):
        cfg = _for_one_gpu(_read(base), path, base)
    else:
        cfg = _read(Path(require_file("config", str(path))))
        if (cfg.get("auto_scale_lr") or {}).get("enable") is False and (shipped or not _decides_on_scaling(path)):
            del cfg.auto_scale_lr["enable"]
    if cfg_options:
        _require_effect(cfg, cfg_options)
        try:
            cfg.merge_from_dict(cfg_options)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise UsageError(f"--cfg-options {cfg_options}: do not fit the config: {describe(error)}") from error
        own_rate = any(key.startswith("optim_wrapper.") and key.endswith(".lr") for key in cfg_options)
        if own_rate and cfg.get("auto_scale_lr") and "enable" not in cfg.auto_scale_lr:
            cfg.auto_scale_lr.enable = False
    rename_old_types(cfg)
    for split in ("train", "val", "test"):
        collate = (cfg.get(f"{split}_dataloader") or {}).get("collate_fn")
        if isinstance(collate, dict):
            collate.pop("_scope_", None)  # a base 'mmgcvit::...' has it; mmengine would pass it on to the function
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = os.path.join("work_dirs", path.stem)
    return cfg


def _read(path: Path) -> Config:
    try:
        return Config.fromfile(str(path))
    except Exception as error:  # of the code in the file, of its _base_ or of custom_imports
        if isinstance(error, FileNotFoundError) and f"{SINGLE_GPU}.py" in str(error):
            raise UsageError(
                f"config {str(path)!r}: a _base_ of it is a single-GPU config of an earlier release: {error}. Use the "
                f"base without {SINGLE_GPU}: with one process SyncBN becomes BN and the learning rate is scaled"
            ) from error
        place = f"{found}: " if (found := _place_of(error, path)) else ""
        raise UsageError(f"config {str(path)!r}: cannot be loaded: {place}{describe(error)}") from error


def _place_of(error: Exception, path: Path) -> str | None:
    """File and line of an error in the code of a config or of one of its bases; None if they are not known."""
    for file in (files := list(dict.fromkeys(_with_bases(path.absolute())))):
        try:
            ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError as wrong:
            return f"{file}:{wrong.lineno}"
        except (OSError, ValueError):
            continue
        for line, base in _bases(file):
            if (found := _base_file(base, file)) is not None and not found.is_file():
                return f"{file}:{line}"
    names = {str(file) for file in files} | {str(file.resolve()) for file in files}
    lines = [f"{name}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)
             if (name := frame.f_code.co_filename) in names]  # fmt: skip
    if lines:
        return lines[-1]
    if isinstance(error, KeyError) and error.args:  # of {{_base_.name}}, which is looked up after the code has run
        wanted = re.compile(rf"_base_\.(\w+\.)*{re.escape(str(error.args[0]))}\b")
        for file in files:
            for line, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if wanted.search(text):
                    return f"{file}:{line}"
    return None


def _with_bases(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield a config and its bases, as far as they are known and there."""
    if path in above or path.suffix != ".py" or not path.is_file():
        return
    yield path
    for _, base in _bases(path):
        if (file := _base_file(base, path)) is not None:
            yield from _with_bases(file, (*above, path))


def _base_file(base: str, path: Path) -> Path | None:
    """File of a base of a config; None for one of another package."""
    package, _, inside = base.partition("::")
    if inside:
        return SHIPPED_CONFIGS / inside if package == "mmgcvit" else None
    return Path(os.path.normpath(path.parent / base))


def _bases(path: Path) -> list[tuple[int, str]]:
    """Bases of a config with their lines, as they are written; none if its code is damaged."""
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return []
    values = [node.value for node in statements if isinstance(node, ast.Assign)
              and any(isinstance(target, ast.Name) and target.id == "_base_" for target in node.targets)]  # fmt: skip
    constants = [node for value in values for node in ast.walk(value) if isinstance(node, ast.Constant)]
    return [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]


def _require_effect(cfg: Config, cfg_options: dict) -> None:
    """Raise an error if an option would only change a variable from which a config file has computed its values."""
    used = {*inspect.signature(Runner.__init__).parameters, *USED_KEYS}
    for name in cfg_options:
        if name in cfg and name not in used and not isinstance(cfg[name], dict):
            hint = f", for example train_cfg.{name}" if name in ("max_iters", "max_epochs") else ""
            raise UsageError(
                f"--cfg-options {name}={cfg_options[name]!r}: {name} is a variable of the config file, and values have "
                f"been computed from it already. Edit a copy of the file, or set these values{hint}"
            )


def _for_one_gpu(cfg: Config, path: Path, base: Path) -> Config:
    """Apply the changes that a single-GPU config of earlier releases made to its base config."""
    print_log(
        f"deprecated config {path.name}: use {base.name}; with one process SyncBN becomes BN and the learning rate is "
        "scaled automatically. Set model.backbone.with_cp=True to recompute blocks; the batch size is train_dataloader."
        "batch_size",
        logger="current",
        level=logging.WARNING,
    )
    waiting: list[Any] = [cfg.model]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if part.get("type") == "SyncBN":
                part["type"] = "BN"
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part
    cfg.model.backbone.with_cp = True
    for name, batch in SINGLE_GPU_BATCHES.items():
        if base.name.startswith(name):
            cfg.train_dataloader.batch_size = batch
            break
    cfg.auto_scale_lr = dict(cfg.get("auto_scale_lr") or {}, enable=True)
    return cfg


def _decides_on_scaling(path: Path, seen: tuple[Path, ...] = ()) -> bool:
    """Whether a user's config file, or one of the user's own bases of it, sets ``auto_scale_lr.enable`` or the rate.

    Bases of packages (``mmgcvit::...``, or files inside a package's folder) do not count.
    """
    path = path.resolve()
    if path in seen or path.suffix != ".py" or not path.is_file() or _is_packaged(path):
        return False
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        text = ast.unparse(statement)
        if "auto_scale_lr" in text and "enable" in text:
            return True
        names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        if "optim_wrapper" in names and re.search(r"\blr\b", text):
            return True
    own = [base for _, base in _bases(path) if "::" not in base]
    return any(_decides_on_scaling(path.parent / base, (*seen, path)) for base in own)


def _is_packaged(path: Path) -> bool:
    """Whether a config file belongs to a package, ours or another one, and not to the user."""
    return path.is_relative_to(SHIPPED_CONFIGS.resolve()) or ".mim" in path.parts or "site-packages" in path.parts


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the config and for options that override its values."""
    parser.add_argument("config", help="config file, or e.g. mmgcvit::detection/... for a config of the package")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="values that override the config's, e.g. train_dataloader.batch_size=4",
    )


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the common arguments of training and testing, named as in mmdet's and mmseg's own tools."""
    add_config_arguments(parser)
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/<name of the config>)")
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="none", help="launcher that started the processes (default: none)"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def add_pixels_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the limit on the size of images (:func:`~mmgcvit.utils.images.set_max_pixels`)."""
    parser.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help=f"do not decode images with more pixels: a small file may decode to any size (default: {MAX_PIXELS:,})",
    )


def config_from_arguments(args: argparse.Namespace) -> Config:
    """Load the config from the parsed arguments of :func:`add_runner_arguments`."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return load_config(args.config, args.work_dir, args.cfg_options, args.launcher)
