"""Parts of a detector's config that contradict each other."""

from __future__ import annotations

import filecmp
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import DATASETS, MODELS

from mmgcvit.datasets.pipelines import loads_annotations
from mmgcvit.datasets.problems import Problem, class_names, dataset_class
from mmgcvit.registry import base_names, class_of, type_name
from mmgcvit.tasks.base import Split
from mmgcvit.tasks.detection.annotations import wants_masks
from mmgcvit.utils.text import counted

#: Parts of a model whose classes, if any, are not those of the data set.
OTHERS = ("backbone", "neck", "rpn_head", "data_preprocessor", "train_cfg", "test_cfg")
#: Parts of two-stage detectors, and of panoptic ones, that predict masks.
MASKS = ("mask_head", "panoptic_head")
COCO_METRICS = ("bbox", "segm", "proposal", "proposal_fast")
#: Prefix and items of the results of metrics for boxes and masks.
PRECISIONS = {
    "CocoMetric": ("coco", ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")),
    "LVISMetric": ("lvis", ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")),
}
#: Metrics of panoptic quality.
QUALITY_METRICS = ("PanopticMetric", "CocoPanopticMetric")


def check_config(model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
    """Yield the contradictions between heads, class weights, data sets, pipelines and metrics."""
    described = next(
        ((split, dataset, names) for split in splits for dataset in split.datasets if (names := class_names(dataset))),
        None,
    )
    if described and "language_model" not in model:  # open vocabulary: the head's outputs are words
        split, dataset, names = described
        things = _things(dataset)
        for where, head in heads(model):
            count, kind = len(names), "classes"
            if things is not None and not _is_panoptic(head):
                count, kind = things, "thing classes"
            if count:
                yield from _check_classes(where, head, count, f"{split.name}_dataloader.dataset has {count} {kind}")
    for where, head in heads(model):
        yield from _check_weights(where, head)
    masks = makes_masks(model)
    boxes = any("BoxInstMaskHead" in base_names(MODELS, head) for _, head in heads(model))  # makes its masks from boxes
    for split in splits:
        if split.name == "train" and masks and not boxes:
            for dataset in split.datasets:
                if dataset.get("pipeline") and not wants_masks(dataset["pipeline"]) and _loads(dataset):
                    yield Problem(
                        "masks",
                        "train_dataloader.dataset.pipeline",
                        f"LoadAnnotations has with_mask=False; {masks} is trained on masks; allowed: with_mask=True, "
                        "or a detector without masks",
                        True,
                    )
        for where, metric in split.metrics:
            yield from _check_metric(where, metric, split, masks is None)


def detection_result_names(metric: Mapping[str, Any], classes: Sequence[str] | None) -> set[str] | None:
    """Names of the results of a metric; None if it is none of those below, or its classes are not known."""
    kind = type_name(metric)
    if kind == "VOCMetric" and metric.get("metric", "mAP") in ("mAP", ["mAP"]):
        thresholds = metric.get("iou_thrs", 0.5)
        thresholds = thresholds if isinstance(thresholds, (list, tuple)) else [thresholds]
        names = ["mAP", *(f"AP{int(threshold * 100):02d}" for threshold in thresholds)]
        return {f"{metric.get('prefix') or 'pascal_voc'}/{name}" for name in names}
    wanted = metric.get("metric", "bbox")
    wanted = [wanted] if isinstance(wanted, str) else wanted
    classwise = metric.get("classwise")
    if kind in QUALITY_METRICS:
        names = [f"{name}{suffix}" for name in ("PQ", "SQ", "RQ") for suffix in ("", "_th", "_st")]
        if kind == "PanopticMetric" and classwise:
            if classes is None:
                return None
            names += [f"{name}_PQ" for name in classes]
        return {f"{metric.get('prefix') or 'coco_panoptic'}/{name}" for name in names}
    if kind not in PRECISIONS or (classwise and classes is None) or not set(wanted) <= {"bbox", "segm"}:
        return None
    prefix, items = PRECISIONS[kind]
    names = [f"{name}_{item}" for name in wanted for item in metric.get("metric_items") or items]
    if classwise:
        apart = _is_own(metric["type"]) and len(wanted) > 1
        before = [f"{name}_" for name in wanted] if apart else [""]
        names += [f"{start}{name}_precision" for start in before for name in classes or ()]
    return {f"{metric.get('prefix') or prefix}/{name}" for name in names}


def _is_own(kind: Any) -> bool:
    """Whether a metric is of this package, by its name or its class."""
    return (kind if isinstance(kind, str) else kind.__module__).startswith("mmgcvit.")


def heads(model: Mapping[str, Any], path: str = "model") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the heads that predict classes, with their names in the config."""
    for key, part in model.items():
        if key in OTHERS:
            continue
        for where, inner in (
            [(f"{path}.{key}[{i}]", item) for i, item in enumerate(part)]
            if isinstance(part, (list, tuple))
            else [(f"{path}.{key}", part)]
        ):
            if not isinstance(inner, Mapping):
                continue
            if key.endswith("_head") and "type" in inner and "roi_head" not in key:
                yield where, inner
            else:
                yield from heads(inner, where)


def makes_masks(model: Mapping[str, Any]) -> str | None:
    """Name of the part of a model that predicts masks; None if it is certain that there is none.

    Only the parts of two-stage detectors say so by their names; other heads are looked up by their class.
    """
    for where, head in heads(model):
        named = where.rpartition(".")[2].partition("[")[0]
        if named in MASKS or "loss_mask" in head or {"BaseMaskHead", "RTMDetInsHead"} & base_names(MODELS, head):
            return where
    return None


def _things(dataset: Mapping[str, Any]) -> int | None:
    """Number of thing classes of a panoptic data set, 0 if it is not known; None for other data sets."""
    if not _is_panoptic_dataset(dataset):
        return None
    metainfo = dataset.get("metainfo") or {}
    if "classes" not in metainfo:
        metainfo = {**getattr(dataset_class(dataset), "METAINFO", {}), **metainfo}
    return len(metainfo.get("thing_classes") or ())


def _is_panoptic_dataset(dataset: Mapping[str, Any]) -> bool:
    return "CocoPanopticDataset" in base_names(DATASETS, dataset)


def _is_panoptic(head: Mapping[str, Any]) -> bool:
    """Whether a head has numbers of things and of stuff."""
    return all(isinstance(_default(head, f"num_{kind}_classes"), int) for kind in ("things", "stuff"))


def _default(head: Mapping[str, Any], name: str) -> Any:
    """Value of an argument of a head, or the default of its class; None if there is none."""
    if name in head:
        return head[name]
    for base in getattr(class_of(MODELS, head), "__mro__", ()):
        parameter = inspect.signature(base.__init__).parameters.get(name) if "__init__" in vars(base) else None
        if parameter is not None:
            return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None


def _outputs(head: Mapping[str, Any]) -> tuple[str, int] | None:
    """Number of classes of a head, with the argument that it is from; None if the head has none."""
    if _is_panoptic(head):
        things, stuff = (_default(head, f"num_{kind}_classes") for kind in ("things", "stuff"))
        return f"num_things_classes={things}, num_stuff_classes={stuff}", things + stuff
    classes = _default(head, "num_classes")
    return (f"num_classes={classes}", classes) if isinstance(classes, int) else None


def _check_classes(where: str, head: Mapping[str, Any], count: int, whose: str) -> Iterator[Problem]:
    """Yield a head with another number of classes than the data set."""
    if "semantic_head" in where and "num_things_classes" not in head:
        return  # HTC's and SCNet's: classes of COCO's stuff
    if "mask_head" in where and head.get("class_agnostic"):
        return
    outputs = _outputs(head)
    if outputs and outputs[1] != count:
        yield Problem("classes", where, f"{outputs[0]}; {whose}; allowed: {count}", True)


def _check_weights(where: str, head: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a list of class weights of a length other than the number of the head's outputs."""
    loss, outputs = head.get("loss_cls"), _outputs(head)
    if not isinstance(loss, Mapping) or not outputs:
        return
    weights = loss.get("class_weight")
    if not isinstance(weights, (list, tuple)) or loss.get("use_mask"):
        return
    background = 0 if loss.get("use_sigmoid") else 1
    if len(weights) != outputs[1] + background:
        yield Problem(
            "class_weight",
            f"{where}.loss_cls",
            f"class_weight has {counted(len(weights), 'value')}; allowed: {outputs[1] + background}, as the head has "
            f"{outputs[0]}" + (" and the last weight is that of the background" if background else ""),
            True,
        )


def _loads(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set's pipeline loads annotations."""
    return any("LoadAnnotations" in type_name(transform) for transform in dataset.get("pipeline") or ())


def _same_format(metric: str, dataset: Mapping[str, Any]) -> bool:
    """Whether a metric reads annotation files of the data set's format."""
    if metric in ("CocoPanopticMetric", "PanopticMetric"):
        return _is_panoptic_dataset(dataset)
    bases = base_names(DATASETS, dataset)
    return metric in ("CocoMetric", "LVISMetric") and "CocoDataset" in bases and "CocoPanopticDataset" not in bases


def _same_file(first: str, second: str) -> bool:
    """Whether two files are the same or have the same content."""
    if os.path.realpath(first) == os.path.realpath(second):
        return True
    return os.path.isfile(first) and os.path.isfile(second) and filecmp.cmp(first, second, shallow=False)


def _check_metric(where: str, metric: Mapping[str, Any], split: Split, no_masks: bool) -> Iterator[Problem]:
    """Yield the contradictions between a metric, its data set and the model."""
    kind = type_name(metric)
    coco = kind in ("CocoMetric", "LVISMetric")
    wanted = metric.get("metric", "bbox" if coco else "mAP")
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in wanted if name not in COCO_METRICS]
    if coco and unknown:
        yield Problem("metric", where, f"metric={unknown[0]!r}; allowed: {', '.join(COCO_METRICS)}", True)
    if "segm" in wanted and coco and no_masks:
        yield Problem("metric", where, "metric='segm', but the model has no mask_head; allowed: metric='bbox'", True)
    if len(split.datasets) != 1 or metric.get("format_only"):
        return
    dataset, name = split.datasets[0], f"{split.name}_dataloader.dataset"
    if not dataset.get("pipeline"):
        return
    own, file = metric.get("ann_file"), dataset.get("ann_file")
    if _same_format(kind, dataset) and isinstance(own, str) and isinstance(file, str) and own and file:
        file = os.path.join(dataset.get("data_root") or "", file)
        if not metric.get("backend_args") and "://" not in own + file and not _same_file(own, file):
            yield Problem(
                "metric",
                where,
                f"ann_file={own!r}; {name} reads {file!r}; allowed: the same file",
                True,
            )
        if dataset.get("indices") is not None:
            yield Problem(
                "metric",
                where,
                f"{kind} counts every image of {own!r}, but {name} has indices={dataset['indices']!r}: all others "
                "would count as missed; allowed: an annotation file with these images only",
                True,
            )
    keys = [transform.get("meta_keys") for transform in dataset["pipeline"] if "Pack" in type_name(transform)]
    if coco and not own and not any("instances" in (key or ()) for key in keys):
        yield Problem(
            "metric",
            where,
            f"{kind} without ann_file, and {name}.pipeline packs no 'instances' (meta_keys): there would be no ground "
            "truth; allowed: ann_file=<the file of the data set>",
            True,
        )
    if kind == "VOCMetric" and not loads_annotations(dataset.get("pipeline") or ()):
        yield Problem(
            "metric",
            where,
            f"{kind} compares with the annotations in the batch, but {name}.pipeline has no LoadAnnotations; allowed: "
            "dict(type='LoadAnnotations', with_bbox=True) before PackDetInputs",
            True,
        )
    if kind == "VOCMetric" and "VOC" not in type_name(dataset):
        yield Problem(
            "metric",
            where,
            f"{kind} evaluates {name}.type={type_name(dataset)!r} by VOC's rules (eval_mode="
            f"{metric.get('eval_mode', '11points')!r}): its mAP is not COCO's; allowed: CocoMetric",
            False,
        )
