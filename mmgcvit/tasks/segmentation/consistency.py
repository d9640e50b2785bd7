"""Parts of a segmentor's config that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.registry import MODELS

from mmgcvit.datasets.pipelines import loads_annotations
from mmgcvit.datasets.problems import Problem
from mmgcvit.registry import base_names, type_name
from mmgcvit.tasks.base import Split
from mmgcvit.tasks.segmentation.label_maps import IGNORED, heads
from mmgcvit.utils.text import counted

IOU_METRICS = ("mIoU", "mDice", "mFscore")
#: Transforms that fill label maps, and their arguments for it.
FILLING = {"RandomRotate": "seg_pad_val", "RandomMosaic": "seg_pad_val", "Pad": "pad_val"}


def check_config(model: Mapping[str, Any], splits: Sequence[Split]) -> Iterator[Problem]:
    """Yield the contradictions between class weights, ignored labels, padding, crops and metrics.

    Numbers of classes and ignored labels of heads, metrics and data sets are compared with each data set
    (:func:`~mmgcvit.tasks.segmentation.label_maps.check_label_maps`).
    """
    for split in splits:
        if split.name == "train":
            for where, head in heads(model):
                yield from _check_weights(where, head)
            yield from _check_padding(model, split)
        else:
            yield from _check_metrics(split)
    test = model.get("test_cfg") or {}
    if test.get("mode") == "slide":
        crop, stride = (_pair(test.get(key)) for key in ("crop_size", "stride"))
        if crop is None or stride is None or any(s > c or s < 1 for s, c in zip(stride, crop, strict=True)):
            yield Problem(
                "test_cfg",
                "model.test_cfg",
                f"mode='slide' with crop_size={test.get('crop_size')}, stride={test.get('stride')}; allowed: both, "
                "with a stride of at most crop_size, so that no pixel is left out",
                True,
            )


def segmentation_result_names(metric: Mapping[str, Any]) -> set[str] | None:
    """Names of the results of an IoUMetric; None for other metrics."""
    if type_name(metric) != "IoUMetric":
        return None
    wanted = metric.get("iou_metrics", ["mIoU"])
    names = {"aAcc"}
    for name in [wanted] if isinstance(wanted, str) else wanted:
        names |= {name, "mAcc"} if name != "mFscore" else {name, "mPrecision", "mRecall"}
    prefix = metric.get("prefix")
    return {f"{prefix}/{name}" for name in names} if prefix else names


def _check_weights(where: str, head: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield class weights that are no list, or a list of a length other than the number of classes."""
    classes = head.get("num_classes")
    if not isinstance(classes, int):
        return
    for key in ("loss_decode", "loss_cls"):
        # Mask2Former and SAN have a weight for `no object`.
        more = int(key == "loss_cls" or "SideAdapterCLIPHead" in base_names(MODELS, head))
        losses = head.get(key) or ()
        for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
            name, weights = "class_weight", loss.get("class_weight")
            if weights is None and type_name(loss) == "FocalLoss" and isinstance(loss.get("alpha"), (list, tuple)):
                name, weights = "alpha", loss["alpha"]
            if weights is None or isinstance(weights, str):  # mmseg reads weights from a file
                continue
            problem = None
            if not isinstance(weights, (list, tuple)):
                problem = f"{name}={weights!r}; allowed: a list of {counted(classes + more, 'value')}"
            elif len(weights) != classes + more:
                problem = (
                    f"{name} has {counted(len(weights), 'value')}; allowed: {classes + more}, as the head has "
                    "num_classes="
                    f"{classes}" + (" and the last weight is that of `no object`" if more else "")
                )
            elif type_name(loss) == "CrossEntropyLoss" and loss.get("use_sigmoid") and head.get("out_channels") != 1:
                problem = (
                    "class_weight with use_sigmoid=True: mmseg would weight the columns of the image; allowed: "
                    "use_sigmoid=False"
                )
            if problem:
                yield Problem("class_weight", f"model.{where}.{key}", problem, True)


def _check_padding(model: Mapping[str, Any], split: Split) -> Iterator[Problem]:
    """Yield values for padded pixels that the losses do not ignore, and crops that are larger than the batch."""
    # Heads for depth have no classes, and no ignored label.
    with_classes = [(where, head) for where, head in heads(model) if "num_classes" in head]
    ignored = {f"model.{where}": head.get("ignore_index", IGNORED) for where, head in with_classes}
    if not ignored:
        return
    classes = with_classes[0][1]["num_classes"]
    fills: dict[str, Any] = {}
    preprocessor = model.get("data_preprocessor") or {}
    if preprocessor.get("size") or preprocessor.get("size_divisor"):
        fills["model.data_preprocessor.seg_pad_val"] = preprocessor.get("seg_pad_val", IGNORED)
    for dataset in split.datasets:
        for i, transform in enumerate(dataset.get("pipeline") or ()):
            key = FILLING.get(type_name(transform))
            if key is not None:
                value = transform.get(key, IGNORED)
                value = (
                    value.get("seg", IGNORED) if isinstance(value, Mapping) else value if key != "pad_val" else IGNORED
                )
                fills[f"train_dataloader.dataset.pipeline[{i}].{key}"] = value
            if type_name(transform) == "RandomCrop":
                crop, size = _pair(transform.get("crop_size")), _pair(preprocessor.get("size"))
                if crop and size and (crop[0] > size[0] or crop[1] > size[1]):
                    yield Problem(
                        "crop",
                        f"train_dataloader.dataset.pipeline[{i}]",
                        f"crop_size={crop}, model.data_preprocessor.size={size}: crops of images of different sizes "
                        "cannot form a batch; allowed: a size of at least the crop",
                        False,
                    )
    for name, value in fills.items():
        for where, allowed in ignored.items():
            if value != allowed:
                learnt = isinstance(value, int) and 0 <= value < classes
                class_ignored = isinstance(allowed, int) and 0 <= allowed < classes  # by a data set without padding
                label = f"be learned as class {value}" if learnt else "have a label that is no class"
                yield Problem(
                    "ignore_index",
                    where,
                    f"ignore_index={allowed}; {name}={value}: padded pixels would {label}; allowed: {name}={allowed}",
                    not learnt and not class_ignored,
                )
                break


def _check_metrics(split: Split) -> Iterator[Problem]:
    """Yield unknown metrics, and metrics without ground truth."""
    for where, metric in split.metrics:
        if type_name(metric) != "IoUMetric" or metric.get("format_only"):
            continue
        wanted = metric.get("iou_metrics", ["mIoU"])
        unknown = [name for name in ([wanted] if isinstance(wanted, str) else wanted) if name not in IOU_METRICS]
        if unknown:
            yield Problem("metric", where, f"iou_metrics: {unknown[0]!r}; allowed: {', '.join(IOU_METRICS)}", True)
        for dataset in split.datasets:
            pipeline = dataset.get("pipeline")
            if pipeline and not loads_annotations(pipeline):
                yield Problem(
                    "metric",
                    where,
                    f"IoUMetric compares with label maps, but {split.name}_dataloader.dataset.pipeline has no "
                    "LoadAnnotations; allowed: dict(type='LoadAnnotations') after the resizing",
                    True,
                )


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width of a size in a config; None if it is not given."""
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, (list, tuple)) and len(size) == 2 else None
