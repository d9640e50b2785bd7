"""Writing of a config for fine-tuning: a template of ``configs/`` with its variables set, and lines at its end."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pprint import pformat
from typing import Any

from mmengine.config import Config

from mmgcvit.apis.config import load_config
from mmgcvit.backbone.arch import ARCHS
from mmgcvit.checkpoint.weights import WEIGHTS
from mmgcvit.errors import UsageError
from mmgcvit.finetune.data import Data
from mmgcvit.finetune.write import common_suffix, image_root
from mmgcvit.utils.paths import SHIPPED_CONFIGS

NANO = "nano"  # a small network of this project without published weights
#: Template and base configs by task: for 'nano', and for the published archs.
TEMPLATES = {
    "detect": ("detection/custom_coco_template.py", "detection/_base_/faster-rcnn_gcvit-nano_fpn.py",
               "detection/faster-rcnn_gcvit-tiny_fpn_1x_coco.py"),
    "segment": ("detection/custom_coco_template.py", "detection/_base_/mask-rcnn_gcvit-nano_fpn.py",
                "detection/mask-rcnn_gcvit-tiny_fpn_1x_coco.py"),
    "semantic": ("segmentation/custom_template.py", "segmentation/_base_/upernet_gcvit-nano.py",
                 "segmentation/gcvit-tiny_upernet_8xb2-20k_ade20k-512x512.py"),
    "classify": ("classification/custom_template.py", "classification/_base_/gcvit-nano.py",
                 "classification/gcvit-tiny_32xb128_in1k.py"),
}  # fmt: skip
SIZES = {"detect": (320, 800), "segment": (320, 800), "semantic": (192, 512), "classify": (128, 224)}  # nano, others
CPU_BATCHES = {"detect": 2, "segment": 2, "semantic": 4, "classify": 16}
EPOCHS = {"detect": 50, "segment": 50, "semantic": 100, "classify": 60}
VALIDATIONS, PATIENCE = 25, 10  # at most so many validations; the run stops after this many without a better result
WARMUP = 500  # iterations at most; a tenth of a shorter run
END_OF_VARIABLES = "# No changes are needed below."


@dataclass(frozen=True)
class Settings:
    """What a run is to do.

    Attributes:
        task: a key of :data:`~mmgcvit.finetune.data.TASKS`.
        arch: 'nano' or a key of :data:`~mmgcvit.backbone.arch.ARCHS`.
        weights: name of published weights, a file, a URL, or 'none'.
        epochs: passes over the training images.
        batch: images per step.
        size: short side of the images in pixels; of a classifier's images both sides.
        workers: processes that load images.
        distillation: arguments of a DistilledClassifier for its teacher; None for no teacher.
    """

    task: str
    arch: str
    weights: str
    epochs: int
    batch: int
    size: int
    workers: int = 2
    distillation: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.arch != NANO and self.arch not in ARCHS:
            raise UsageError(f"arch={self.arch!r}; allowed: {', '.join((NANO, *ARCHS))}")
        for name, least in (("epochs", 1), ("batch", 1), ("size", 32), ("workers", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)}; allowed: at least {least}")
        weights = self.weights
        if "://" not in weights and weights != "none" and not Path(weights).is_file():
            raise UsageError(f"weights={weights!r}: no such file; allowed: none, a file, or {', '.join(WEIGHTS)}")
        if weights in WEIGHTS and WEIGHTS[weights].arch != self.arch:
            raise UsageError(f"weights={weights!r} are for arch={WEIGHTS[weights].arch!r}, not {self.arch!r}")


def default_weights(arch: str) -> str:
    """Published ImageNet weights of an arch; 'none' for 'nano', which has none."""
    names = [name for name, weights in WEIGHTS.items() if weights.arch == arch and name.startswith("gcvit://")]
    return names[0] if names else "none"


def default_size(task: str, arch: str) -> int:
    """Short side of the images in pixels."""
    return SIZES[task][arch != NANO]


def allowed_batch(task: str, arch: str, batch: int) -> int:
    """Return the batch size, or one less if it is odd and the recipe pairs the images of a batch (mixup)."""
    return batch - batch % 2 if task == "classify" and arch != NANO else batch


def training_images(data: Data) -> int:
    """Number of images that are trained on: detectors leave out those without objects."""
    if data.tasks[0] in ("detect", "segment"):
        return sum(any(not item.crowd for item in image.instances) for image in data.splits["train"])
    return len(data.splits["train"])


def base_config(task: str, arch: str) -> Path:
    """Config of the package that the run's config is based on."""
    return SHIPPED_CONFIGS / TEMPLATES[task][1 + (arch != NANO)]


def make_config(data: Data, folder: Path, settings: Settings) -> str:
    """Return the text of a config: the template of the task with its variables set.

    Args:
        data: the data, with training and validation images.
        folder: where :func:`~mmgcvit.finetune.write.convert` writes it.
        settings: what the run is to do.
    """
    task, images = settings.task, training_images(data)
    if not images:
        raise UsageError("no training image has an annotation: there is nothing to learn")
    template, *_ = TEMPLATES[task]
    text = (SHIPPED_CONFIGS / template).read_text(encoding="utf-8")
    steps = -(-images // settings.batch) if task != "classify" else max(images // settings.batch, 1)
    values: dict[str, Any] = dict(
        _base_=f"mmgcvit::{base_config(task, settings.arch).relative_to(SHIPPED_CONFIGS).as_posix()}",
        data_root=f"{folder}/",
        classes=tuple(data.classes),
        validations=min(settings.epochs, VALIDATIONS),
        early_stopping=PATIENCE,
        ema=round(min(0.5, max(2e-4, 10 / (settings.epochs * steps))), 4),
    )
    if task == "classify":
        values |= dict(
            size=settings.size,
            batch_size=settings.batch,
            max_epochs=settings.epochs,
            load=None if settings.weights == "none" else settings.weights,
        )
        inserted, appended = [], _classifier_lines(settings, images)
    else:
        inserted = [
            f"epochs = {settings.epochs}",
            f"batch_size = {settings.batch}",
            f"images = {images}  # training images" + (" with objects" if task != "semantic" else ""),
            "iterations = epochs * -(-images // batch_size)",
        ]
        values["max_iters"] = ast.Name("iterations")
        if task == "semantic":
            side = -(-settings.size // 32) * 32
            values |= dict(
                short=settings.size,
                crop_size=(side, side),
                reduce_zero_label=data.ignore_zero,
            )
            values["img_suffix, seg_map_suffix"] = (common_suffix(data), ".png")
        else:
            long = settings.size * 3 // 2 if settings.arch == NANO else round(settings.size * 1333 / 800)
            values["scale"] = (long, settings.size)
        appended = _dense_lines(settings, data)
    return "\n".join([_edit(text, values, inserted), *appended]) + "\n"


def load_text(text: str, work_dir: str | None = None) -> Config:
    """Load a config that is not in a file yet.

    Raises:
        UsageError: it cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.py")
        path.write_text(text, encoding="utf-8")
        return load_config(path, work_dir)


def learning_rate(cfg: Config) -> tuple[float, float, int]:
    """Learning rate of a run on one device, and the config's own rate with the batch size that it is for."""
    rate, base = cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size
    return rate * cfg.train_dataloader.batch_size / base, rate, base


def _dense_lines(settings: Settings, data: Data) -> list[str]:
    lines = [
        "",
        "# The run counts iterations, as an epoch of a small data set is short; the learning rate fits the batch size.",
        "train_cfg = dict(",
        "    _delete_=True, type='IterBasedTrainLoop', max_iters=iterations, "
        "val_interval=max(iterations // validations, 1)",
        ")",
        f"warmup = max(min({WARMUP}, iterations // 10), 2)",
        "param_scheduler = [",
        "    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),",
        "    dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, eta_min_ratio=0.01),",
        "]",
        "del warmup",
        "auto_scale_lr = dict(enable=True)",
        "loading = dict(batch_size=batch_size, sampler=dict(type='InfiniteSampler', shuffle=True))",
        f"train_dataloader.update(num_workers={settings.workers}, **loading)",
        f"val_dataloader.update(num_workers={settings.workers})",
        "del loading",
        "default_hooks['checkpoint'].update(by_epoch=False, interval=train_cfg['val_interval'], max_keep_ckpts=2)",
        "default_hooks['logger'] = dict(type='LoggerHook', interval=min(25, max(iterations // 10, 1)))",
        "log_processor = dict(by_epoch=False, window_size=25)",
        "randomness = dict(seed=0)",
        "",
    ]
    if settings.task != "semantic":
        lines += [
            f"image_root = {_source(str(image_root(data)))}  # the file names in train.json are relative to it",
            "for loader in (train_dataloader, val_dataloader):",
            "    loader['dataset']['data_prefix'] = dict(img=image_root)",
            "    del loader",
            "train_dataloader['dataset']['filter_cfg'] = dict(filter_empty_gt=True, min_size=1)",
        ]
        if settings.arch != NANO:
            lines.append("train_dataloader['batch_sampler'] = None  # the bases group images by their aspect ratio")
    return [*lines, *_backbone_lines(settings)]


def _classifier_lines(settings: Settings, images: int) -> list[str]:
    lines = [
        "",
        "# The learning rate fits the batch size.",
        "auto_scale_lr['enable'] = True" if settings.arch == NANO else "auto_scale_lr = dict(enable=True)",
        "for loader in (train_dataloader, val_dataloader):",
        f"    loader.num_workers = {settings.workers}",
        "    del loader",
        "every = max(max_epochs // validations, 1)",
        "default_hooks['checkpoint'].update(by_epoch=True, interval=every, max_keep_ckpts=2)",
        "del every",
        "default_hooks['logger'] = dict(interval=20)",
        f"val_evaluator['topk'] = {(1,)}",
        "randomness = dict(seed=0)",
    ]
    if settings.arch not in (NANO, "tiny"):
        lines.append(f"model['backbone'] = dict(arch={settings.arch!r})")
    if settings.distillation is not None:
        lines += [
            "",
            "# The teacher: see docs/distillation.md of mmgcvit.",
            "model['type'] = 'mmgcvit.DistilledClassifier'",
        ]
        lines += [f"model[{name!r}] = {_source(value)}" for name, value in settings.distillation.items()]
    return lines


def _backbone_lines(settings: Settings) -> list[str]:
    lines = []
    if settings.arch not in (NANO, "tiny"):
        width = ARCHS[settings.arch]["embed_dims"]
        widths = [width * 2**i for i in range(4)]
        lines += [
            f"model.backbone.arch = {settings.arch!r}",
            f"model.backbone.drop_path_rate = {ARCHS[settings.arch]['drop_path_rate']}",
        ]
        if settings.task == "semantic":
            lines += [f"model.decode_head.in_channels = {widths}", f"model.auxiliary_head.in_channels = {widths[2]}"]
        else:
            lines.append(f"model.neck.in_channels = {widths}")
    start = "None" if settings.weights == "none" else f"dict(type='Pretrained', checkpoint={_source(settings.weights)})"
    lines.append(f"model.backbone.init_cfg = {start}")
    return lines


def _edit(text: str, values: Mapping[str, Any], inserted: list[str]) -> str:
    """Set variables at the top of a template, without the instructions before them.

    Args:
        text: the template.
        values: the variables; all must be in the template.
        inserted: lines after the first assignment.
    """
    top, mark, rest = text.partition(END_OF_VARIABLES)
    lines = top.splitlines()
    nodes = {
        ast.unparse(node.targets[0]).strip("()"): node for node in ast.parse(top).body if isinstance(node, ast.Assign)
    }
    for name, value in sorted(values.items(), key=lambda pair: -nodes[pair[0]].lineno):
        node = nodes[name].value
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        # ast counts bytes of UTF-8
        before = lines[first].encode()[: node.col_offset].decode()
        after = lines[last].encode()[node.end_col_offset :].decode()
        if name in ("_base_", "max_iters", "validations", "load"):  # their comments are about other choices
            after = ""
        lines[first : last + 1] = [f"{before}{_source(value)}{after}"]
    start = next(i for i, line in enumerate(lines) if line.startswith("_base_"))
    header = [
        "# Written by `mmgcvit finetune` from a template of mmgcvit. You can change it and run it again:",
        "#   mmgcvit train THIS_FILE --work-dir NEW_FOLDER",
    ]
    return "\n".join([*header, lines[start], *inserted, *lines[start + 1 :]]) + f"\n{mark}{rest}".rstrip("\n")


def _source(value: Any) -> str:
    """Python source of a value; mmengine would replace `{{` in a config."""
    if isinstance(value, ast.Name):
        return value.id
    return pformat(value, width=110, compact=True, sort_dicts=False).replace("{{", "{\\x7b")
