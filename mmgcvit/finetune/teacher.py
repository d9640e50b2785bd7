"""The teacher of ``mmgcvit finetune --teacher``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgcvit.checkpoint.complete import class_names, compare_classes
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.saved_config import saved_model
from mmgcvit.checkpoint.weights import WEIGHTS
from mmgcvit.distillation import Teacher
from mmgcvit.distillation.settings import DEFAULTS, backbone_settings, normalisation
from mmgcvit.errors import UsageError
from mmgcvit.tasks.classification import Classification
from mmgcvit.utils.text import counted, shown

SUFFIXES = (".pth", ".pt", ".tar", ".safetensors", ".bin")  # of files; names of timm have other ones
PAGE = "docs/distillation.md"
ANY = "gcvit_tiny_any"  # model of mmgcvit.timm; its argument `arch` makes it any GC ViT


def distillation(teacher: str, classes: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Return the arguments of a DistilledClassifier that are about its teacher.

    Args:
        teacher: a checkpoint of a classifier of this project, whose probabilities are learned; or the name of a model
            of timm with pretrained weights, or of published GC ViT weights, whose features are learned.
        classes: names of the classes, in the order of the labels.
        say: prints a line: that classes of a file have other names.

    Raises:
        UsageError: there is no such file or model, the file is none of a classifier of this project, or it has another
            number of classes.
        CheckpointError: the file cannot be read, or has the classes in another order.
    """
    if Path(teacher).is_file():
        return _of_file(str(Path(teacher).absolute()), classes, say)
    names = "the name of a model of timm, or of `mmgcvit weights list`"
    arguments: dict[str, Any] = dict(name=teacher, num_classes=0)
    if teacher in WEIGHTS:
        arguments = dict(name=ANY, checkpoint=teacher, arch=WEIGHTS[teacher].arch, num_classes=0)
    elif "://" in teacher:
        raise UsageError(f"teacher={teacher!r}: no such name; allowed: a file, {names}, such as {next(iter(WEIGHTS))}")
    elif Path(teacher).suffix in SUFFIXES:
        raise UsageError(f"teacher={teacher!r}: no such file; allowed: a file, {names}")
    Teacher(**arguments, layers=(-1,))
    return dict(teacher=arguments, features=dict(weight=1.0))


def require_teacher(teacher: Mapping[str, Any], classes: int) -> None:
    """Load the weights of a teacher, and fetch them if needed, before anything else is done.

    Args:
        teacher: arguments of a Teacher.
        classes: number of classes of the data.

    Raises:
        UsageError: the weights cannot be fetched.
        CheckpointError: the file does not have all weights of the teacher.
    """
    Teacher(**{"num_classes": classes, **teacher}).load()


def _of_file(file: str, classes: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    content = read_checkpoint(file)
    model, trained = saved_model(content), class_names(content)
    backbone = model.get("backbone") or {}
    settings = backbone_settings(backbone)
    if not settings or not Classification().has_model(model):
        raise UsageError(
            f"teacher={file!r} has no config of a GC ViT classifier; allowed: a checkpoint of a classifier trained by "
            f"this project, or the name of a model of timm. For other files see {PAGE}"
        )
    count = len(trained) or model.get("num_classes", 1000)
    if count != len(classes):
        raise UsageError(
            f"teacher={file!r} has {counted(count, 'class')}, but the data has {len(classes)}; allowed: the same "
            "classes"
        )
    if renamed := compare_classes(trained, classes, file):
        say(shown(f"note: teacher: {renamed}"))
    arguments = dict(name=ANY, checkpoint=file, arch=backbone.get("arch", DEFAULTS["arch"]))
    arguments |= {name: value for name, value in settings.items() if value != DEFAULTS[name]}
    arguments |= normalisation(model.get("data_preprocessor") or {})
    return dict(teacher=arguments, logits=dict(temperature=2.0))
