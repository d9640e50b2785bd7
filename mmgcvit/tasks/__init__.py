"""The tasks: one folder each, with its data set, data check, predictor, drawing and forward pass.

To add a task, add a folder with a subclass of :class:`~mmgcvit.tasks.base.Task` and an entry in :data:`TASKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from torch import nn

from mmgcvit.errors import UsageError
from mmgcvit.registry import type_name
from mmgcvit.tasks.base import Predictor, Task
from mmgcvit.tasks.classification import Classification
from mmgcvit.tasks.detection import Detection
from mmgcvit.tasks.panoptic import Panoptic
from mmgcvit.tasks.segmentation import Segmentation

#: Tried in this order. The last task accepts every data set that no other task accepts.
TASKS: tuple[Task, ...] = (Classification(), Segmentation(), Panoptic(), Detection())


def find_task(model: Mapping[str, Any] | nn.Module) -> Task | None:
    """Return the task of a config's model or of a built model; None if no task supports it."""
    return next((task for task in TASKS if task.has_model(model)), None)


def task_of(cfg: Config) -> Task:
    """Return the task of a config.

    Raises:
        UsageError: no task supports the model.
    """
    model = cfg.get("model") or {}
    task = find_task(model)
    if task is None:
        allowed = "; ".join(task.description for task in TASKS)
        raise UsageError(f"model.type={type_name(model)!r} with {', '.join(model)}; allowed: {allowed}")
    return task


def task_of_dataset(dataset: Mapping[str, Any]) -> Task:
    """Return the task of a config's data set."""
    return next((task for task in TASKS if task.has_dataset(dataset)), TASKS[-1])


__all__ = ["TASKS", "Predictor", "Task", "find_task", "task_of", "task_of_dataset"]
