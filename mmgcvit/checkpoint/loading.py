"""Loading weights into models: by a call, by ``init_cfg``, by ``load_from``, by ``load_state_dict``."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from mmgcvit.backbone.gcvit import GCViT
from mmgcvit.checkpoint.errors import CheckpointError
from mmgcvit.checkpoint.fit import LoadReport, fit
from mmgcvit.checkpoint.layouts import find_network, is_ours, take_apart, weights_of
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.weights import fetch

SCHEMES = ("gcvit://", "timm://")


def load_pretrained(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    ema: bool = False,
    map_location: str | torch.device = "cpu",
    prefix: str | None = None,
) -> LoadReport:
    """Load published (or one's own) weights into a GC ViT or into a model that has one.

    Bias tables of other windows are resized bicubically, as the authors do for detection. A first convolution for RGB
    is summed for one channel, repeated and scaled for others, as timm does. A classifier's final norm becomes the norm
    of the last map; a head is loaded into a classifier's head of as many classes.

    Args:
        model: a :class:`GCViT`, or a detector, segmentor or classifier with one.
        source: a file, a URL, a name of ``mmgcvit weights list``, or a state dict.
        ema: take the averaged weights of the file.
        map_location: where the file is read to; the model's parameters stay where they are.
        prefix: where in the file the network stands, if there are several.

    Returns:
        What was loaded, resized, adapted, and left; it is logged too.

    Raises:
        CheckpointError: the file cannot be had or read, or is not of this network; the model is unchanged.
        ValueError: the model has no GC ViT, or several.
    """
    backbones = [module for module in model.modules() if isinstance(module, GCViT)]
    if len(backbones) != 1:
        raise ValueError(f"model: a {type(model).__name__} with {len(backbones)} GCViT; allowed: one")
    _refuse_sharded(model)
    name = "" if isinstance(source, Mapping) else str(source)
    checkpoint = source if isinstance(source, Mapping) else read_checkpoint(locate(name), map_location)
    try:
        converted = take_apart(weights_of(checkpoint, ema), prefix, also=_own_names(backbones[0]))
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}" if name else str(error)) from error
    _, head = _classifier_head(_parent(model, backbones[0]))
    chosen, report = fit(backbones[0], converted, name, head)
    parameters = backbones[0].state_dict(keep_vars=True)
    parameters |= {} if head is None else {f"head.{key}": value for key, value in head.named_parameters()}
    with torch.no_grad():
        for key, value in chosen.items():
            parameters[key].copy_(value)
    _log(report)
    return report


def locate(source: str) -> Path:
    """The file of a name, a URL or a path."""
    if source.startswith((*SCHEMES, "http://", "https://")):
        return fetch(source)
    return Path(source)


def prepare_state_dict(backbone: GCViT, state_dict: MutableMapping[str, Tensor], prefix: str, log: bool = True) -> None:
    """Bring what a state dict has for the backbone into its names and shapes, in place. A load-state-dict pre-hook.

    Our own state dict of the same network is left untouched. With others' weights, what they do not have (norm0 to
    norm2) is filled with the backbone's own values, so that a strict load passes; the log names it.

    Raises:
        CheckpointError: as :func:`~mmgcvit.checkpoint.fit.fit`; mmengine's ``strict=False`` does not hide it.
    """
    parameters = backbone.state_dict()
    if not any(is_ours(name) for name in parameters):
        return  # flattened by FSDP, which loads its own way
    given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    if all(
        name in given and getattr(given[name], "shape", None) == getattr(value, "shape", None)
        for name, value in parameters.items()
    ):
        return
    if not given:
        raise CheckpointError(f"the state dict has nothing for the GCViT at {prefix.rstrip('.')!r}")
    converted = take_apart(given, also=_own_names(backbone))
    ours = converted.layout == "mmgcvit" and not converted.prefix
    chosen, report = fit(backbone, converted, check_values=not ours)
    for name in given:
        # Our own dict keeps what it has beyond the network, for torch to complain about.
        if not ours or name in chosen:
            del state_dict[prefix + name]
    for name, value in chosen.items():
        state_dict[prefix + name] = value
    if not ours:
        for name in report.left_initial:
            if re.match(r"norm\d\.", name):
                state_dict[prefix + name] = parameters[name]
    if log and not (ours and report.is_plain):
        _log(report)


def _own_names(backbone: GCViT) -> set[str]:
    """Everything in the state dict of the backbone: a user's subclass may have more than the network."""
    return set(backbone.state_dict())


def _classifier_head(model: nn.Module) -> tuple[str, nn.Linear] | tuple[str, None]:
    """The last linear map of a classifier, ``head`` (ours) or ``head.fc`` (mmpretrain), None for other models."""
    modules = dict(model.named_modules())
    for name in ("head", "head.fc"):
        if isinstance(modules.get(name), nn.Linear):
            return name, modules[name]
    return "", None


def _parent(model: nn.Module, backbone: GCViT) -> nn.Module:
    """The module that has the backbone, inside whatever wraps it; the backbone itself if none has."""
    parents = (module for module in model.modules() if any(child is backbone for child in module.children()))
    return next(parents, backbone)


def _refuse_sharded(model: nn.Module) -> None:
    """A model that is spread over processes has no whole parameters to copy into."""
    sharded = [
        type(part).__name__
        for part in (*model.modules(), *model.parameters())
        if type(part).__name__ in ("FullyShardedDataParallel", "DTensor", "FlatParameter")
    ]
    if sharded:
        raise CheckpointError(f"the model is sharded already ({sharded[0]}): load the weights before wrapping it")


def _log(report: LoadReport) -> None:
    print_log(str(report), logger="current", level=logging.INFO if report.is_plain else logging.WARNING)


def _move_bare_network(module: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Put a network that stands bare in a state dict under the name that a model has for its backbone. A pre-hook.

    So that ``load_from`` and ``load_state_dict`` of a whole model take a publisher's file, which has no ``backbone.``.
    """
    names = [name for name, child in module.named_children() if isinstance(child, GCViT)]
    given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    if len(names) != 1:
        return
    if not any(name.startswith(f"{names[0]}.") for name in given):
        _move(module, names[0], state_dict, prefix, given)
    # Before anything of the model is loaded, not when it is the backbone's turn: an error leaves all as it was.
    prepare_state_dict(getattr(module, names[0]), dict(state_dict), f"{prefix}{names[0]}.", log=False)


def _move(
    module: nn.Module, backbone: str, state_dict: MutableMapping[str, Tensor], prefix: str, given: Mapping[str, Any]
) -> None:
    try:
        tensors = weights_of(given)
        _, before = find_network(tensors)
    except CheckpointError:
        return  # nothing of ours: the backbone will say so
    head_name, head = _classifier_head(module)
    moved = {name: value for name, value in tensors.items() if name.startswith(before)}
    for name in tensors.keys() & given.keys() & moved.keys():
        del state_dict[prefix + name]
    for name, value in moved.items():
        if head is None or not name.startswith(f"{before}head"):
            state_dict[f"{prefix}{backbone}.{name[len(before) :]}"] = value
    if head is not None:
        theirs = take_apart(tensors, before).backbone
        own = head.state_dict()
        found = {name: theirs[f"head.{name}"] for name in own if f"head.{name}" in theirs}
        if any(value.shape != own[name].shape for name, value in found.items()):
            print_log(
                f"GCViT: head of {len(found['weight'])} classes in the state dict, {head.out_features} in the "
                "model: left out",
                logger="current",
                level=logging.WARNING,
            )
            found = own
        for name, value in found.items():
            state_dict[f"{prefix}{head_name}.{name}"] = value


def _watch_parents(module: nn.Module, _: str, child: nn.Module | None) -> None:
    """Whatever model gets a GC ViT gets the hook above with it: there is no other way from a backbone to its model."""
    if isinstance(child, GCViT):
        hooks = module._load_state_dict_pre_hooks.values()
        if not any(getattr(hook, "hook", None) is _move_bare_network for hook in hooks):
            module._register_load_state_dict_pre_hook(_move_bare_network, with_module=True)


def register() -> None:
    """Make mmengine's CheckpointLoader know the published weights by name, and models take bare networks."""
    register_module_module_registration_hook(_watch_parents)
    for scheme in SCHEMES:
        CheckpointLoader.register_scheme(
            prefixes=scheme,
            force=True,
            loader=lambda filename, map_location=None: read_checkpoint(fetch(filename), map_location or "cpu"),
        )


register()
