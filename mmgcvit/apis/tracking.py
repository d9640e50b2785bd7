"""Experiment trackers, by mmengine's visualization backends."""

from __future__ import annotations

import importlib

from mmengine.config import Config

from mmgcvit.errors import UsageError
from mmgcvit.registry import type_name

#: By the name of a tracker: mmengine's backend, the module that it imports, and the packages to install.
TRACKERS = {
    "tensorboard": ("TensorboardVisBackend", "tensorboard", "tensorboard"),
    "wandb": ("WandbVisBackend", "wandb", "wandb"),
    "mlflow": ("MLflowVisBackend", "mlflow", "mlflow"),
    "clearml": ("ClearMLVisBackend", "clearml", "clearml"),
}


def use_tracker(cfg: Config, name: str) -> None:
    """Add a tracker to a config, in place: it gets all values that are logged, and the config.

    A backend of the config with the same type is kept as it is, with its arguments. TensorBoard and MLflow write to
    ``vis_data`` in the work directory; wandb and ClearML use the account that is logged in on this machine.

    Raises:
        UsageError: the tracker is unknown, or its package is not installed.
    """
    if name not in TRACKERS:
        raise UsageError(f"track={name!r}; allowed: {', '.join(TRACKERS)}")
    backend, module, package = TRACKERS[name]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"--track {name} needs a package that cannot be imported: pip install {package}") from error
    visualizer = dict(cfg.get("visualizer") or dict(type="Visualizer"))
    backends = list(visualizer.get("vis_backends") or [dict(type="LocalVisBackend")])
    if backend not in map(type_name, backends):
        backends.append(dict(type=backend))
    cfg.visualizer = dict(visualizer, vis_backends=backends)
