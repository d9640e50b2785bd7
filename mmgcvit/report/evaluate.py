"""One evaluation of a checkpoint on the validation data, from which all results of a report are computed."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, init_default_scope

from mmgcvit.datasets.pipelines import use_checked_loading
from mmgcvit.engine.evaluation import build_loader, evaluate
from mmgcvit.errors import UsageError
from mmgcvit.report.base import Model, TaskReport, encode_image
from mmgcvit.report.numbers import spread
from mmgcvit.report.page import Figure, Note
from mmgcvit.tasks import task_of
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.utils.text import counted, describe

MOSAIC = 6  # training images that are shown


def load_model(cfg: Config, checkpoint: str, device: str | None = None) -> Model:
    """Load a checkpoint into the model of a config.

    Args:
        cfg: the config. It is not changed.
        checkpoint: file or URL.
        device: by default a GPU if there is one.

    Raises:
        UsageError: the config has no validation data.
        CheckpointError: the checkpoint cannot be read, or does not belong to the model.
    """
    if not cfg.get("val_dataloader") or not cfg.get("val_evaluator"):
        raise UsageError("the config has no val_dataloader with a val_evaluator: there is nothing to evaluate on")
    used = copy.deepcopy(cfg)
    used.test_dataloader = copy.deepcopy(cfg.val_dataloader)  # predictors use the test pipeline
    init_default_scope(cfg.get("default_scope", "mmengine"))
    predictor = task_of(cfg).predictor(used, checkpoint, PredictionOptions(device))
    trained = predictor.trained
    return Model(cfg, predictor, build_loader(cfg), trained.classes, trained.palette)


def run_model(model: Model, report: TaskReport) -> tuple[dict[str, float], float, str]:
    """Predict on the validation data.

    Returns:
        The metrics of the config, the seconds that it took, and why the metrics could not be computed, or ''.
    """
    network = model.predictor.trained.model.eval()
    print_log(f"report: evaluating on {counted(len(model.dataset), 'image')}", logger="current")

    seen = 0

    def step(data: dict) -> Sequence[Any]:
        nonlocal seen
        outputs = network.test_step(data)
        report.add(data, outputs, model.dataset)
        seen += len(outputs)
        return outputs

    begin = time.perf_counter()
    metrics, failure = {}, ""
    try:
        with torch.no_grad():
            metrics = evaluate(model.cfg, model.loader, step)
    except Exception as error:  # of a metric, after all predictions: the report can do without it
        if seen < len(model.dataset):
            raise
        failure = describe(error.__cause__ or error)
    return metrics, time.perf_counter() - begin, failure


def training_data(cfg: Config) -> Any:
    """Build the training data of a config, with images loaded as in training."""
    init_default_scope(cfg.get("default_scope", "mmengine"))
    loader = copy.deepcopy(cfg.train_dataloader)
    use_checked_loading(loader)
    dataset = DATASETS.build(loader.dataset)
    if hasattr(dataset, "full_init"):
        dataset.full_init()
    return dataset


def mosaic(report: TaskReport, train: Any) -> Figure | Note:
    """Draw training images after augmentation with their labels, as the network gets them."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        drawn = [report.draw_sample(train[index]) for index in spread(MOSAIC, len(train))]
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    if not drawn:
        return Note("There are no training images.")
    text = "Check that the labels fit, and that augmentation has not destroyed what the model is to learn."
    encoded = [
        encode_image(f"train_{i}", image, label or "training image with its labels", label)
        for i, (image, label) in enumerate(drawn)
    ]
    return Figure(
        f"{len(drawn)} of {counted(len(train), 'training image')} as the network gets them", encoded,
        f"After augmentation, with their labels. {text}", wide=True,
    )  # fmt: skip
