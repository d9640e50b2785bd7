"""Loading of weights into models: :func:`load_pretrained`, ``init_cfg``, ``load_from`` and ``load_state_dict``.

Importing this module registers :func:`load_pretrained` and :func:`prepare_state_dict` with the backbone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmgcvit.backbone.gcvit import GCViT
from mmgcvit.backbone.pretrained_init import register_checkpoint_support
from mmgcvit.checkpoint.fit import LoadReport, is_unbuilt, match_state_dict
from mmgcvit.checkpoint.layouts import find_network, is_ours, split_state_dict, unwrap_checkpoint
from mmgcvit.checkpoint.reader import read_checkpoint, trust_checkpoints
from mmgcvit.checkpoint.sources import resolve_source
from mmgcvit.checkpoint.tao import find_tao_dino
from mmgcvit.compat import add_load_state_dict_pre_hook
from mmgcvit.errors import CheckpointError
from mmgcvit.utils.text import counted


def load_pretrained(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    ema: bool = False,
    map_location: str | torch.device = "cpu",
    prefix: str | None = None,
    partial: bool = False,
    trust_checkpoint: bool = False,
) -> LoadReport:
    """Load published or custom weights into a GC ViT, or into a model that contains one.

    Bias tables for other windows are resized bicubically, as in the authors' detection code. The first convolution of
    an RGB checkpoint is summed for one input channel, and repeated and rescaled for any other number, as in timm. The
    final norm of a classifier becomes the norm of the last map. A head is loaded into a classifier's head with the
    same number of classes.

    Args:
        model: a :class:`~mmgcvit.GCViT`, or a detector, segmentor or classifier that contains one.
        source: a file, a URL, a name from ``mmgcvit weights list``, or a state dict.
        ema: load the averaged weights of the file.
        map_location: device to read the file to; the parameters of the model stay on their device.
        prefix: prefix of the network in a file that contains several, e.g. 'student'.
        partial: accept a file with only some of the network's tensors; the others keep their values.
        trust_checkpoint: unpickle a file that the safe reader refuses. **It can run any code.**

    Returns:
        A report of what was loaded, resized, adapted and left out; it is also logged.

    Raises:
        CheckpointError: the file cannot be fetched or read, belongs to another network, or has fewer than 95 % of its
            tensors without ``partial``. The model is unchanged.
        ValueError: the model contains no GC ViT, or several.
    """
    backbones = [module for module in model.modules() if isinstance(module, GCViT)]
    if len(backbones) != 1:
        raise ValueError(f"model: a {type(model).__name__} with {len(backbones)} GCViT; allowed: one")
    _refuse_sharded(model)
    name = "" if isinstance(source, Mapping) else str(source)
    if prefix and not prefix.endswith((".", "/")):
        prefix += "."
    with trust_checkpoints(trust_checkpoint):
        checkpoint = source if isinstance(source, Mapping) else read_checkpoint(resolve_source(name), map_location)
    try:
        tensors = unwrap_checkpoint(checkpoint, ema)
        converted = split_state_dict(tensors, prefix, also=_own_names(backbones[0]))
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}" if name else str(error)) from error
    _, head = _classifier_head(_parent(model, backbones[0]))
    chosen, report = match_state_dict(backbones[0], converted, name, head, partial=partial)
    if prefix is None and find_tao_dino(tensors) is not None:
        report.notes.append("the file has a whole DINO of NVIDIA TAO: `mmgcvit convert-checkpoint` converts it")
    parameters = backbones[0].state_dict(keep_vars=True)
    parameters |= {} if head is None else {f"head.{key}": value for key, value in head.named_parameters()}
    with torch.no_grad():
        for key, value in chosen.items():
            parameters[key].copy_(value)
    _log(report)
    return report


def prepare_state_dict(backbone: GCViT, state_dict: MutableMapping[str, Tensor], prefix: str, log: bool = True) -> None:
    """Convert the backbone's part of a state dict to its names and shapes, in place.

    ``load_state_dict`` of a backbone, or of a model that contains one, calls this. The state dict of an identical
    network of ours is left unchanged, and so is one with some of its tensors (adapters, trained parameters only): torch
    reports what is missing. Tensors that other publishers do not have (norm0 to norm2) are filled with the current
    values of the backbone, so that a strict load passes; the log lists them. Norms and stages that the backbone does
    not build are removed.

    Args:
        backbone: the module that the state dict is about to be loaded into.
        state_dict: tensors by name, changed in place.
        prefix: name of the backbone in the model, with a dot; '' if it is the model.
        log: whether to log the report.

    Raises:
        CheckpointError: as :func:`~mmgcvit.checkpoint.fit.match_state_dict`, also with ``strict=False``.
    """
    parameters = backbone.state_dict()
    if not any(is_ours(name) for name in parameters):
        return  # flattened by FSDP, which loads the parameters itself
    given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    shapes = {name: getattr(value, "shape", None) for name, value in parameters.items()}
    own = {name for name, value in given.items() if name in shapes and getattr(value, "shape", None) == shapes[name]}
    others = [name for name in given if name not in own]
    unbuilt = [name for name in others if name not in shapes and is_unbuilt(name, backbone)]
    if len(own) == len(shapes) or (own and len(unbuilt) == len(others)):
        for name in unbuilt:
            del state_dict[prefix + name]
        missing = [name for name in shapes if name not in own]
        if missing and log and any(map(is_ours, own)):  # not for adapters
            _log(LoadReport("", "mmgcvit", (), loaded=sorted(own), left_initial=missing))
        return
    if not given:  # torch passes on only what is under the prefix: there may be a bare network, or no network at all
        if log:
            print_log(
                f"GCViT at {prefix.rstrip('.')!r}: the state dict has no weights for it, so that it keeps its values. "
                "Weights of the backbone alone are loaded into a whole model by init_cfg=dict(type='Pretrained', "
                "checkpoint=...) of its backbone, by mmgcvit.load_pretrained(model, file), or by load_state_dict after "
                "mmgcvit.checkpoint.accept_bare_network(model)",
                logger="current",
                level=logging.WARNING,
            )
        return
    converted = split_state_dict(given, also=_own_names(backbone))
    ours = converted.layout == "mmgcvit" and not converted.prefix
    chosen, report = match_state_dict(backbone, converted, check_values=not ours)
    for name in given:
        # torch reports unexpected tensors in a state dict of our own.
        if not ours or name in chosen:
            del state_dict[prefix + name]
    for name, value in chosen.items():
        state_dict[prefix + name] = value
    if not ours:
        for name in report.left_initial:
            if re.match(r"norm\d\.", name):
                state_dict[prefix + name] = parameters[name]
    if log and not (ours and report.is_exact):
        _log(report)


def _own_names(backbone: GCViT) -> set[str]:
    """All names in the backbone's state dict; a subclass may have additional ones."""
    return set(backbone.state_dict())


def _classifier_head(model: nn.Module) -> tuple[str, nn.Linear] | tuple[str, None]:
    """Last linear layer of a classifier and its name, ``head`` (ours) or ``head.fc`` (mmpretrain); else ('', None)."""
    modules = dict(model.named_modules())
    for name in ("head", "head.fc"):
        head = modules.get(name)
        if isinstance(head, nn.Linear):
            return name, head
    return "", None


def _parent(model: nn.Module, backbone: GCViT) -> nn.Module:
    """The direct parent of the backbone in ``model``; the backbone itself if it has none."""
    parents = (module for module in model.modules() if any(child is backbone for child in module.children()))
    return next(parents, backbone)


def sharded_part(model: nn.Module) -> str:
    """Class name of a module or parameter that is sharded over processes; '' if there is none."""
    names = (type(part).__name__ for part in (*model.modules(), *model.parameters()))
    kinds = ("FullyShardedDataParallel", "MMFullyShardedDataParallel", "FSDPModule", "DTensor", "FlatParameter")
    return next((name for name in names if name in kinds), "")


def _refuse_sharded(model: nn.Module) -> None:
    """Raise a CheckpointError if parameters are sharded over processes: there are no full tensors to copy into."""
    if sharded := sharded_part(model):
        raise CheckpointError(f"the model is already sharded ({sharded}): load the weights before wrapping it")


def _log(report: LoadReport) -> None:
    print_log(str(report), logger="current", level=logging.INFO if report.is_exact else logging.WARNING)


def accept_bare_network(model: nn.Module) -> None:
    """Let ``load_state_dict`` of a whole model accept the weights of a GC ViT alone.

    All published classifier checkpoints contain the network without the prefix that it has in a detector, segmentor or
    classifier (``backbone.``). After this call, ``model.load_state_dict`` and mmengine's ``load_checkpoint``
    (``load_from`` in a config) find such a network and load it into the model's backbone, with its head if the model
    is a classifier. Everything is checked before anything is loaded, so an error leaves the model unchanged.

    :class:`~mmgcvit.GCViTClassifier` calls this itself; :func:`mmgcvit.load_pretrained` and ``init_cfg`` of the
    backbone never need it. Without it, the backbone in a detector sees only the part of a state dict under its own
    prefix, and raises a :class:`~mmgcvit.errors.CheckpointError` if there is none.

    Args:
        model: a module that contains any number of GC ViTs, at any depth. Repeated calls have no effect.
    """
    for module in model.modules():
        if any(isinstance(child, GCViT) for child in module.children()):
            add_load_state_dict_pre_hook(module, _move_bare_network)


def _move_bare_network(module: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: object) -> None:
    """Load-state-dict pre-hook of a backbone's parent: adds the backbone's prefix to a network without one."""
    names = [name for name, child in module.named_children() if isinstance(child, GCViT)]
    given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    if len(names) != 1:
        return
    if not any(name.startswith(f"{names[0]}.") for name in given):
        _move(module, names[0], state_dict, prefix, given)
    # Work on a copy, before any part of the model is loaded: an error leaves the whole model unchanged.
    backbone: Any = getattr(module, names[0])
    prepare_state_dict(backbone, dict(state_dict), f"{prefix}{names[0]}.", log=False)


def _move(
    module: nn.Module, backbone: str, state_dict: MutableMapping[str, Tensor], prefix: str, given: Mapping[str, Any]
) -> None:
    try:
        tensors = unwrap_checkpoint(given)
        _, before = find_network(tensors)
    except CheckpointError:
        return  # not a GC ViT: the backbone reports it
    head_name, head = _classifier_head(module)
    moved = {name: value for name, value in tensors.items() if name.startswith(before)}
    for name in tensors.keys() & given.keys() & moved.keys():
        del state_dict[prefix + name]
    for name, value in moved.items():
        if head is None or not name.startswith(f"{before}head"):
            state_dict[f"{prefix}{backbone}.{name[len(before) :]}"] = value
    if head is not None:
        theirs = split_state_dict(tensors, before).backbone
        own = head.state_dict()
        found = {name: theirs[f"head.{name}"] for name in own if f"head.{name}" in theirs}
        if any(value.shape != own[name].shape for name, value in found.items()):
            print_log(
                f"GCViT: head of {counted(len(found['weight']), 'class')} in the state dict, {head.out_features} in "
                "the model: skipped",
                logger="current",
                level=logging.WARNING,
            )
            # A strict load passes. On the meta device (complete.py) there are no values to keep: torch compares.
            found = found if head.weight.is_meta else own
        for name, value in found.items():
            state_dict[f"{prefix}{head_name}.{name}"] = value


register_checkpoint_support(load_pretrained, prepare_state_dict)

# Former names, kept for one release
locate = resolve_source
