"""Parts of a classifier's config that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmgcvit.datasets.problems import Problem, class_names
from mmgcvit.registry import type_name
from mmgcvit.tasks.base import Split
from mmgcvit.tasks.classification.classifier import class_weight_problem
from mmgcvit.tasks.classification.metric import informative_topk
from mmgcvit.utils.text import counted


def topk_result_names(metric: Mapping[str, Any], model: Mapping[str, Any]) -> set[str] | None:
    """Names of the results of a TopKAccuracy; None for other metrics."""
    if type_name(metric) != "TopKAccuracy":
        return None
    topk = metric.get("topk", (1, 5))
    if metric.get("real_labels"):
        names = [f"real_top{k}" for k in topk]
    else:
        names = [f"top{k}" for k in informative_topk(topk, model.get("num_classes", 1000))]
        names += ["mean_class"] if metric.get("classwise") else []
    return {f"{metric.get('prefix') or 'accuracy'}/{name}" for name in names}


def check_config(model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
    """Yield the contradictions between head, class weights, data sets and batch size."""
    outputs = model.get("num_classes", 1000)
    if problem := class_weight_problem(model.get("class_weight"), outputs):
        yield Problem("class_weight", "model", problem, True)
    for split in splits:
        for dataset in split.datasets:
            names, where = class_names(dataset), f"{split.name}_dataloader.dataset"
            count = dataset.get("classes") if isinstance(dataset.get("classes"), int) else names and len(names)
            if count and count > outputs:
                yield Problem(
                    "classes", where, f"{counted(count, 'class')}; allowed: at most model.num_classes={outputs}", True
                )
        outer = type_name(split.loader.get("dataset") or {})
        if split.name != "train" and outer != "ClassificationDataset" and split.datasets:
            yield Problem(
                "dataset",
                f"{split.name}_dataloader.dataset",
                f"{outer} around ClassificationDataset; allowed in evaluation, which counts every image once: "
                "ClassificationDataset itself",
                True,
            )
        batch = split.loader.get("batch_size")
        mixup = (model.get("data_preprocessor") or {}).get("mixup")
        if split.name == "train" and mixup and isinstance(batch, int) and batch % 2:
            yield Problem(
                "batch_size",
                "train_dataloader",
                f"batch_size={batch} with model.data_preprocessor.mixup, which pairs images; allowed: an even number",
                True,
            )
