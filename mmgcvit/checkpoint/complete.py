"""Comparison of a checkpoint with the whole model that it is loaded into: tensors, values, class names.

mmengine loads whatever fits and prints the rest. For training this is what ``load_from`` is for; in a test, or for
predictions, a part without weights would stay at its random initial values.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from mmgcvit.checkpoint.layouts import unwrap_checkpoint
from mmgcvit.checkpoint.tao import find_tao_dino
from mmgcvit.compat import add_load_state_dict_pre_hook, with_versions
from mmgcvit.errors import CheckpointError
from mmgcvit.utils.text import counted, summarize

#: Parts that mmseg, mmdet and a DistilledClassifier use in training only; predictions do not depend on them.
TRAINING_PARTS = ("auxiliary_head.", "dn_query_generator.", "feature_loss.")
#: Buffers that training changes. Other buffers are constants, which the model computes itself.
STATISTICS = ("running_mean", "running_var")
LISTED = 40  # number of class names listed in a message


@dataclass
class Comparison:
    """How a checkpoint fits a model; each list has names of tensors in the model, unless stated otherwise.

    Args:
        loaded: tensors with a counterpart of the same shape in the checkpoint, after conversion of names and shapes.
        missing: parameters and statistics without a counterpart.
        reshaped: those with a counterpart of another shape: the shapes in the checkpoint and in the model.
        optional: tensors without a counterpart on which predictions do not depend: constants, and
            :data:`TRAINING_PARTS`.
        unused: names in the checkpoint that the model does not use.
        invalid: parameters and statistics with NaN or infinite values in the checkpoint.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    optional: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    invalid: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether checkpoint and model have the same tensors."""
        return not (self.missing or self.reshaped or self.optional or self.unused)

    def __str__(self) -> str:
        parts = [f"{counted(len(self.loaded), 'tensor')} loaded"]
        if self.missing or self.optional:
            parts.append(f"left at initial values: {self.group_in_model([*self.missing, *self.optional])}")
        if self.unused:
            parts.append(f"not used by the model: {self.group_in_checkpoint()}")
        if self.reshaped:
            parts.append(f"left at initial values because the shape differs: {self.describe_shapes()}")
        return "; ".join(parts)

    def group_in_model(self, names: Sequence[str], limit: int = 8) -> str:
        """List tensors of the model by the largest parts of which the checkpoint has nothing; at most ``limit``."""
        return group_names(names, [*self.loaded, *self.reshaped, *self.unused], limit)

    def group_in_checkpoint(self, limit: int = 8) -> str:
        """List the unused tensors of the checkpoint by the largest parts of which the model has nothing."""
        return group_names(self.unused, [*self.loaded, *self.reshaped, *self.missing, *self.optional], limit)

    def describe_shapes(self, limit: int = 8) -> str:
        """List the tensors of other shapes."""
        shapes = (f"{name} {theirs}, in the model {ours}" for name, (theirs, ours) in self.reshaped.items())
        return summarize(shapes, limit)


def compare_weights(model: nn.Module, checkpoint: Mapping[str, Any]) -> Comparison:
    """Compare the tensors of a checkpoint with those of a model, as loading would match them.

    The state dict is loaded into a copy of the model without values, so that all conversions of loading take place
    (names of other publishers, bare networks, earlier versions of heads). Neither the model nor the checkpoint is
    changed, and no tensor is copied.

    Args:
        model: the model; wrappers (DDP, test-time augmentation) are removed as mmengine does.
        checkpoint: contents of a file, or a state dict.

    Raises:
        CheckpointError: the checkpoint belongs to another backbone, or has no tensors.
    """
    model = unwrap_model(model)
    result = Comparison()
    empty = copy_without_values(model)
    converted: list[Mapping[str, Tensor]] = []  # the state dict after the hooks of the model itself
    add_load_state_dict_pre_hook(empty, lambda _, state_dict, *__: converted.append(state_dict))
    empty.register_load_state_dict_post_hook(lambda _, keys: result.unused.extend(keys.unexpected_keys))
    with _no_log():
        try:
            empty.load_state_dict(_state_dict(checkpoint), strict=False, assign=True)
        except RuntimeError as error:  # torch lists the tensors of other shapes only in its message
            for name, value in empty.state_dict(keep_vars=True).items():
                theirs = converted[0].get(name) if converted else None
                if theirs is not None and theirs.shape != value.shape:
                    result.reshaped[name] = tuple(theirs.shape), tuple(value.shape)
            if not result.reshaped:
                raise CheckpointError(f"the state dict cannot be loaded: {error}") from error

    own = model.state_dict(keep_vars=True)
    found = {name: value for name, value in empty.state_dict(keep_vars=True).items() if not value.is_meta}
    shared = {id(own[name]) for name in found}  # a tensor with two names needs one of them
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in own.items():
        trained = name in parameters or name.endswith(STATISTICS)
        if id(value) in shared:
            result.loaded.append(name)
            if trained and name in found and not found[name].to(value.dtype).isfinite().all():
                result.invalid.append(name)
        elif name not in result.reshaped and not name.endswith("num_batches_tracked"):
            needed = trained and not name.startswith(TRAINING_PARTS)
            (result.missing if needed else result.optional).append(name)
    return result


def require_complete(model: nn.Module, checkpoint: Mapping[str, Any], name: str = "") -> Comparison:
    """Check that a checkpoint has a finite value for everything in a model on which predictions depend.

    A checkpoint may contain more than the model: the weights of a Mask R-CNN are complete for a Faster R-CNN, whose
    predictions do not depend on the mask head.

    Args:
        model: the model, before the checkpoint is loaded.
        checkpoint: contents of a file, or a state dict.
        name: name of the checkpoint, for the error.

    Returns:
        The comparison.

    Raises:
        CheckpointError: tensors are missing, have other shapes, or NaN or infinite values.
    """
    result = compare_weights(model, checkpoint)
    reshaped = {key: shapes for key, shapes in result.reshaped.items() if not key.startswith(TRAINING_PARTS)}
    problems = []
    lacking, other = (3, 2) if result.missing and reshaped else (5, 5)  # names that are listed
    if result.missing:
        problems.append(f"lacks {result.group_in_model(result.missing, lacking)}")
    if reshaped:
        problems.append(f"has other shapes: {Comparison(reshaped=reshaped).describe_shapes(other)}")
    if problems:
        unused = f". Not used by the model: {result.group_in_checkpoint(1)}" if result.unused else ""
        trained = class_names(checkpoint)
        classes = f". It was trained on {counted(len(trained), 'class')}: {summarize(trained, 3)}" if trained else ""
        if find_tao_dino(_state_dict(checkpoint)) is not None:
            classes += ". It is a DINO of NVIDIA TAO: convert it by `mmgcvit convert-checkpoint` first"
        raise CheckpointError(
            f"{_of(name)}does not belong to the model of the config: it {', and '.join(problems)}; allowed: a "
            f"checkpoint with all weights of the model{unused}{classes}"
        )
    if result.invalid:
        raise CheckpointError(
            f"{_of(name)}NaN or infinite values in {counted(len(result.invalid), 'tensor')}: "
            f"{summarize(result.invalid)}"
        )
    return result


def load_complete(model: nn.Module, checkpoint: Mapping[str, Any], name: str = "") -> Comparison:
    """Load a checkpoint that has everything on which predictions depend; tensors are matched as they are compared.

    Args:
        model: the model.
        checkpoint: contents of a file, or a state dict.
        name: name of the checkpoint, for the error.

    Returns:
        The comparison.

    Raises:
        CheckpointError: see :func:`require_complete`; or a tensor was found by the comparison, but was not loaded.
    """
    result = require_complete(model, checkpoint, name)
    missing = unwrap_model(model).load_state_dict(_state_dict(checkpoint), strict=False).missing_keys
    if lost := [key for key in missing if key in result.loaded]:
        raise CheckpointError(
            f"{_of(name)}{counted(len(lost), 'tensor was', 'tensors were')} not loaded: {summarize(lost)}"
        )
    return result


def class_names(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes that a checkpoint was trained on, in the order of the labels; () if it has none."""
    meta = checkpoint.get("meta")
    if not isinstance(meta, Mapping):
        return ()
    saved = meta.get("dataset_meta")
    known = {str(key).lower(): value for key, value in (saved if isinstance(saved, Mapping) else meta).items()}
    names = known.get("classes")
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else ()


def compare_classes(trained: Sequence[str], classes: Sequence[str], name: str = "") -> str:
    """Check that no class of a checkpoint has another label in the config.

    Classes that were renamed keep their labels, and are not an error.

    Args:
        trained: names from the checkpoint, see :func:`class_names`; empty if it has none.
        classes: names from the config, or from its data set.
        name: name of the checkpoint, for messages.

    Returns:
        A warning about renamed classes, or ''.

    Raises:
        CheckpointError: a class has another label.
    """
    labels = {label: i for i, label in enumerate(classes)}
    if not trained or not classes or len(labels) < len(classes):
        return ""
    moved = [label for i, label in enumerate(trained) if labels.get(label, i) != i]
    orders = f"the checkpoint has {summarize(trained, LISTED)}; the config has {summarize(classes, LISTED)}"
    if moved:
        first = moved[0]
        raise CheckpointError(
            f"{_of(name)}classes in another order than in the config: {first!r} is label {trained.index(first)} of the "
            f"checkpoint and label {labels[first]} of the config. In order, {orders}. Set the classes of the config to "
            "those of the checkpoint"
        )
    numbered = any(all(map(str.isdecimal, names)) for names in (trained, classes))
    if numbered or tuple(trained) == tuple(classes):
        return ""
    return f"{_of(name)}class names that differ from those of the config: in order, {orders}"


def _state_dict(checkpoint: Mapping[str, Any]) -> Any:
    """The tensors of a checkpoint for ``load_state_dict``, with the versions of modules, if it has them."""
    tensors = {name.removeprefix("module."): value for name, value in unwrap_checkpoint(checkpoint).items()}
    return with_versions(tensors, checkpoint.get("state_dict"))


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers for several processes and for test-time augmentation."""
    inner: Any = model
    while is_model_wrapper(inner) or isinstance(inner, BaseTTAModel):
        inner = inner.module
    return inner


def copy_without_values(model: nn.Module) -> nn.Module:
    """Copy a model with all parameters and buffers on the meta device, which takes no memory for values."""
    memo: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        value = torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(value, requires_grad=tensor.requires_grad) if is_parameter else value
    return copy.deepcopy(model, memo)


def group_names(names: Iterable[str], others: Iterable[str], limit: int = 8) -> str:
    """``roi_head.mask_head (12 tensors), fc.bias``: names, grouped by the largest parts without any of ``others``."""
    names = list(names)
    known = {prefix for other in others for prefix in _prefixes(other)}
    parts = Counter(next((prefix for prefix in _prefixes(name) if prefix not in known), name) for name in names)
    listed = (part if part in names else f"{part} ({counted(count, 'tensor')})" for part, count in parts.items())
    return summarize(listed, limit)


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    for i in range(1, len(parts) + 1):
        yield ".".join(parts[:i])


@contextmanager
def _no_log() -> Iterator[None]:
    """Suppress mmengine's logger: the conversions log themselves again when the checkpoint is loaded."""
    logger = MMLogger.get_current_instance()
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _of(name: str) -> str:
    return f"checkpoint {name!r}: " if name else "the checkpoint: "
