"""Detection of maps of the backbone that no other part of a model uses.

Each map of the backbone has a norm of its own, and the last one a stage. The parameters of a map that nothing uses get
no gradient, at which DistributedDataParallel stops in the second iteration without naming them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmgcvit.backbone import GCViT
from mmgcvit.compat import tree_leaves
from mmgcvit.errors import UsageError

SIDE = 64  # image side in pixels for which neck and heads are called


def require_used_maps(model: Any) -> None:
    """Check that a model under DistributedDataParallel uses every map of its backbone.

    Models that are not wrapped, or with ``find_unused_parameters``, are accepted.

    Raises:
        UsageError: a map is not used; the message has the lines of the config to change.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters or model.static_graph:
        return
    inner = model.module
    backbone = getattr(inner, "backbone", None)
    if not isinstance(backbone, GCViT):
        return
    used = used_maps(inner)
    unused = [i for i in range(len(backbone.out_indices)) if i not in used and _is_trained(backbone, i)]
    if unused:
        raise UsageError(
            f"model.backbone: out_indices={backbone.out_indices}, but no part of the model uses the maps of stages "
            f"{', '.join(str(backbone.out_indices[i]) for i in unused)}. Training in several processes needs a "
            f"gradient for every parameter. Set {'; '.join(_changes(inner, backbone, unused))} (or "
            "find_unused_parameters=True, which is slower)"
        )


def used_maps(model: nn.Module) -> set[int]:
    """Indices of the backbone's maps on which the outputs of a model depend.

    Neck and decode heads are called on small maps, and the gradients tell which of them the outputs depend on. The
    heads of a detector are assumed to use all outputs of its neck. A classifier uses the last map.
    """
    backbone: Any = model.backbone
    parameter = next(model.parameters())
    maps = tuple(
        torch.zeros(
            1, channels, SIDE // stride, SIDE // stride, device=parameter.device, dtype=parameter.dtype
        ).requires_grad_()
        for channels, stride in zip(backbone.out_channels, backbone.out_strides, strict=True)
    )
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # so that no statistics change
    try:
        with torch.enable_grad():
            outputs = [output.float().sum() for output in tree_leaves(_outputs(model, maps)) if output.requires_grad]
            gradients = torch.autograd.grad(torch.stack(outputs).sum(), maps, allow_unused=True)
    except Exception:  # a neck or head with other inputs: the run itself will show whether they are used
        return set(range(len(maps)))
    finally:
        for module, mode in modes:
            module.training = mode
    return {i for i, gradient in enumerate(gradients) if gradient is not None}


def _outputs(model: Any, maps: tuple[Tensor, ...]) -> Any:
    features = model.neck(maps) if isinstance(getattr(model, "neck", None), nn.Module) else maps
    if isinstance(getattr(model, "head", None), nn.Linear):
        return features[-1]
    outputs: list[Any] = []
    previous: list[Any] = []
    for name, head in _decode_heads(model):
        cascaded = name.startswith("decode_head[") and previous
        outputs.append(head(features, previous[-1]) if cascaded else head(features))
        previous = [outputs[-1]]
    return outputs or features


def _decode_heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the heads of a segmentor with their names in the config."""
    for name in ("decode_head", "auxiliary_head"):
        part = getattr(model, name, None)
        if isinstance(part, nn.ModuleList):
            yield from ((f"{name}[{i}]", head) for i, head in enumerate(part))
        elif isinstance(part, nn.Module):
            yield name, part


def _changes(model: nn.Module, backbone: Any, unused: Sequence[int]) -> list[str]:
    """Values of the config without the unused maps."""
    count = len(backbone.out_indices)
    kept = [i for i in range(count) if i not in unused]
    lines = [f"model.backbone.out_indices={tuple(backbone.out_indices[i] for i in kept)}"]
    neck: Any = getattr(model, "neck", None)
    name, start = "model.neck", 0
    if isinstance(neck, nn.Sequential):
        name, neck = "model.neck[0]", neck[0]
    if neck is not None:
        if isinstance(getattr(neck, "in_channels", None), (list, tuple)):
            lines.append(f"{name}.in_channels={[backbone.out_channels[i] for i in kept]}")
        if start := getattr(neck, "start_level", 0):
            lines.append(f"{name}.start_level={start - sum(i < start for i in unused)}")
        if getattr(neck, "end_level", -1) != -1:
            lines.append(f"{name}.end_level=-1")
    for name, head in _decode_heads(model):
        index = getattr(head, "in_index", None)
        if index is None:
            continue
        given = [i % count for i in (index if isinstance(index, (list, tuple)) else [index])]
        taken = [place for place in given if place + start not in unused]
        places = [place - sum(start <= i < place + start for i in unused) for place in taken]
        lines.append(f"model.{name}.in_index={places if isinstance(index, (list, tuple)) else places[0]}")
        if len(taken) < len(given):
            lines.append(f"model.{name}.in_channels={[backbone.out_channels[i] for i in taken]}")
    return lines


def _is_trained(backbone: Any, index: int) -> bool:
    return any(p.requires_grad for p in getattr(backbone, f"norm{backbone.out_indices[index]}").parameters())
