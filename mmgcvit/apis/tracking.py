"""Experiment trackers, by mmengine's visualization backends."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from mmengine.config import Config

from mmgcvit.errors import UsageError
from mmgcvit.registry import type_name
from mmgcvit.utils.text import describe

#: By the name of a tracker: mmengine's backend, the module that it imports, and the packages to install.
TRACKERS = {
    "tensorboard": ("TensorboardVisBackend", "tensorboard", "tensorboard"),
    "wandb": ("WandbVisBackend", "wandb", "wandb"),
    "mlflow": ("MLflowVisBackend", "mlflow", "mlflow"),
    "clearml": ("ClearMLVisBackend", "clearml", "clearml"),
}


def use_tracker(cfg: Config, name: str) -> None:
    """Add a tracker to a config, in place: it gets all values that are logged, and the config.

    A backend of the config with the same type is kept as it is, with its arguments. TensorBoard writes to ``vis_data``
    in the work directory. MLflow uses the server in the environment variable ``MLFLOW_TRACKING_URI``, else the database
    ``mlflow.db`` in the work directory. wandb and ClearML use the account that is logged in on this machine.

    Raises:
        UsageError: the tracker is unknown, or its package is not installed.
    """
    if name not in TRACKERS:
        raise UsageError(f"track={name!r}; allowed: {', '.join(TRACKERS)}")
    backend, module, package = TRACKERS[name]
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"--track {name} needs a package that cannot be imported: {describe(error)}; pip install {package}"
        ) from error
    visualizer = dict(cfg.get("visualizer") or dict(type="Visualizer"))
    backends = list(visualizer.get("vis_backends") or [dict(type="LocalVisBackend")])
    if backend not in map(type_name, backends):
        backends.append(dict(type=backend, **(_mlflow_store(cfg.work_dir) if name == "mlflow" else {})))
    cfg.visualizer = dict(visualizer, vis_backends=backends)


def _mlflow_store(work_dir: str) -> dict[str, str]:
    """Arguments of mmengine's backend; its own default is a folder, which MLflow 3 refuses."""
    folder = Path(work_dir).resolve()
    if server := os.environ.get("MLFLOW_TRACKING_URI"):
        return dict(exp_name=folder.name, tracking_uri=server)
    files = (folder / "mlartifacts").as_uri()  # the experiment 'Default' would use the current folder
    return dict(exp_name=folder.name, tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", artifact_location=files)
