"""Attention weights and global queries of a GC ViT, captured by hooks while the network runs.

Nothing is captured, and nothing costs time, outside :func:`capture_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmgcvit.backbone import GCViT
from mmgcvit.backbone.attention import WindowAttention
from mmgcvit.backbone.windows import Pack, Region, Span, merge_regions
from mmgcvit.errors import UsageError
from mmgcvit.kernels import reference
from mmgcvit.utils.capture import is_eager

WRAPPERS = ("_orig_mod", "module")  # attributes under which torch.compile and DDP keep the model


@dataclass(frozen=True)
class AttentionMap:
    """Attention weights of one block for a batch of images.

    Windows, tokens and regions are those of :mod:`mmgcvit.backbone.windows`. The padding of a window that an edge of
    the map cuts off is the last key; it stands for all padding tokens of the window.

    Attributes:
        stage: index of the stage.
        block: index of the block in its stage.
        is_global: global attention: the query is the global query, not computed from the window.
        stride: side of a token in pixels of the network's input.
        height, width: tokens of the map that cover the image; padding on the right and at the bottom is not counted.
        regions: the parts of the map with windows of one size each.
        weights: for each region (B, windows, heads, tokens, keys): softmax(q k^T / sqrt(d) + bias) of each query token
            over the keys of its window. ``keys`` is the number of tokens, plus one in windows that are padded.
        query: the global query, (B, heads, window * window, d); None for local attention.
    """

    stage: int
    block: int
    is_global: bool
    stride: int
    height: int
    width: int
    regions: tuple[Region, ...]
    weights: tuple[Tensor, ...]
    query: Tensor | None

    def received(self) -> Tensor:
        """Return the attention that each token receives: the mean over all queries of its window, (B, heads, H, W).

        In a global block these are the queries of the global query, so that this is the attention of the global query
        over the image. A window and its padding sum to 1.
        """
        return self._map([w.mean(3)[..., : r.height * r.width] for w, r in self._parts()])

    def of_token(self, row: int, column: int) -> Tensor:
        """Return the attention of the query at one token over its window, (B, heads, H, W); zero in other windows.

        In a global block this is the token of the global query with this position in the window.

        Raises:
            UsageError: the token is outside the map.
        """
        self.window_of(row, column)
        parts = []
        for weights, r in self._parts():
            part = torch.zeros_like(weights[:, :, :, 0, : r.height * r.width])
            y, x = row - r.top, column - r.left
            if 0 <= y < r.grid_h * r.height and 0 <= x < r.grid_w * r.width:
                window = y // r.height * r.grid_w + x // r.width
                token = y % r.height * r.width + x % r.width
                part[:, window] = weights[:, window, :, token, : r.height * r.width]
            parts.append(part)
        return self._map(parts)

    def window_of(self, row: int, column: int) -> tuple[slice, slice]:
        """Return the rows and columns of the map that are in the window of a token.

        Raises:
            UsageError: the token is outside the map.
        """
        for name, value, size in (("row", row, self.height), ("column", column, self.width)):
            if not 0 <= value < size:
                raise UsageError(f"{name}={value}; allowed for a map of {self.height} x {self.width}: 0 to {size - 1}")
        window = self.regions[0].window
        top, left = row // window * window, column // window * window
        return slice(top, min(top + window, self.height)), slice(left, min(left + window, self.width))

    def outside(self) -> Tensor:
        """Return the share of each token's attention that goes to padding of any kind, (B, heads, H, W)."""
        shape = (1, max(r.top + r.grid_h * r.height for r in self.regions), self._full_width, 1)
        image = self.weights[0].new_zeros(shape)
        image[:, : self.height, : self.width] = 1
        parts = []
        for weights, r in self._parts():
            inside = r.cut(image)[..., 0]  # [windows, tokens]
            # [B, windows, heads, queries, keys] x [windows, 1, keys, 1] -> [B, windows, heads, queries]
            parts.append(1 - (weights[..., : r.height * r.width] @ inside[:, None, :, None])[..., 0])
        return self._map(parts)

    @property
    def _full_width(self) -> int:
        return max(r.left + r.grid_w * r.width for r in self.regions)

    def _parts(self) -> Iterator[tuple[Tensor, Region]]:
        return zip(self.weights, self.regions, strict=True)

    def _map(self, parts: Sequence[Tensor]) -> Tensor:
        """Assemble values of tokens, (B, windows, heads, tokens) per region, to a map (B, heads, H, W)."""
        windows = [part.flatten(0, 1).transpose(1, 2) for part in parts]  # [B * windows, tokens, heads]
        return merge_regions(windows, self.regions)[:, : self.height, : self.width].permute(0, 3, 1, 2)


def find_backbone(model: nn.Module) -> GCViT:
    """Return the GC ViT of a model: the model itself, its ``backbone``, or the only one in it.

    Raises:
        UsageError: there is none, or there are several and none of them is the ``backbone``.
    """
    found: dict[str, GCViT] = {}
    for name, module in model.named_modules():
        if isinstance(module, GCViT):
            found[".".join(part for part in name.split(".") if part not in WRAPPERS)] = module
    for name in ("", "backbone"):
        if name in found:
            return found[name]
    if len(found) == 1:
        return next(iter(found.values()))
    kind, count = type(model).__name__, f"{len(found)} GC ViTs ({', '.join(found)})" if found else "no GC ViT"
    raise UsageError(f"model {kind}: has {count}; allowed: models with a GC ViT (as backbone, if several)")


def check_index(name: str, value: int, count: int) -> int:
    """Return an index of a stage or a block.

    Raises:
        UsageError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise UsageError(f"{name}={value!r}; allowed: 0 to {count - 1}")
    return value


@contextmanager
def capture_attention(
    model: nn.Module, stage: int | None = None, block: int | None = None
) -> Iterator[dict[tuple[int, int], AttentionMap]]:
    """Capture the attention of blocks while the block of code runs.

    The outputs of the network are the same up to rounding: the captured blocks are computed by plain PyTorch instead of
    the faster kernels. A compiled model runs eagerly meanwhile. Weights are captured without a gradient, and without
    the dropout of attention weights.

    Args:
        model: a GC ViT, or a model with one.
        stage: index of the stage; None for all stages.
        block: index of the block in its stage; None for all blocks.

    Yields:
        A dict that has, after each forward pass of the backbone, the :class:`AttentionMap` of this pass for each
        (stage, block).

    Raises:
        UsageError: the model has no GC ViT, or no such stage or block; or the model is compiled, with torch before 2.6.

    Examples:
        >>> with capture_attention(detector, stage=2) as maps:
        ...     detector.test_step(data)
        >>> maps[2, 1].received()  # (B, heads, H, W)
    """
    backbone = find_backbone(model)
    stages = range(len(backbone.stages)) if stage is None else [check_index("stage", stage, len(backbone.stages))]
    maps: dict[tuple[int, int], AttentionMap] = {}
    with ExitStack() as stack:
        stack.enter_context(_eagerly(model))
        recorder = _Recorder(backbone, maps)
        stack.callback(recorder.remove)
        for i in stages:
            depth = len(backbone.stages[i].blocks)
            for j in range(depth) if block is None else [check_index(f"block of stage {i}", block, depth)]:
                recorder.watch(i, j)
        yield maps


def attention_maps(model: nn.Module, image: Tensor, stage: int, block: int) -> AttentionMap:
    """Return the attention of one block for a batch of images.

    The backbone runs in evaluation mode, without gradients.

    Args:
        model: a GC ViT, or a model with one.
        image: (B, in_channels, H, W), the input of the backbone.
        stage: index of the stage.
        block: index of the block in its stage. Blocks with even indices attend locally, those with odd ones globally.

    Raises:
        UsageError: the model has no GC ViT, or no such stage or block; or the model is compiled, with torch before 2.6.

    Examples:
        >>> found = attention_maps(GCViT("xxtiny"), torch.randn(1, 3, 224, 224), stage=2, block=1)
        >>> found.received().shape
        torch.Size([1, 8, 14, 14])
    """
    backbone = find_backbone(model)
    modes = {module: module.training for module in backbone.modules()}
    try:
        backbone.eval()
        with torch.no_grad(), capture_attention(model, stage, block) as maps:
            backbone(image)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return maps[stage, block]


@contextmanager
def _eagerly(model: nn.Module) -> Iterator[None]:
    """Run compiled modules eagerly: compiled code does not call hooks that are added later."""
    if hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    if any(hasattr(m, "_orig_mod") or vars(m).get("_compiled_call_impl") for m in model.modules()):
        raise UsageError(f"torch {torch.__version__} cannot run a compiled model eagerly; allowed: the model itself")
    yield


class _Recorder:
    """Hooks that record the attention of some blocks during a forward pass of the backbone."""

    def __init__(self, backbone: GCViT, maps: dict[tuple[int, int], AttentionMap]) -> None:
        self.backbone, self.maps = backbone, maps
        self.parts: dict[tuple[int, int], dict[int, list[Tensor]]] = {}
        self.regions: dict[int, dict[int, Region]] = {}  # of each stage, by index
        self.queries: dict[int, Tensor] = {}  # of each stage
        self.running = False  # a backward pass may run blocks again
        self.handles = [
            backbone.register_forward_pre_hook(self._begin),
            backbone.register_forward_hook(self._end),
        ]

    def watch(self, stage: int, block: int) -> None:
        """Record this block."""
        part: Any = self.backbone.stages[stage]
        self.handles.append(part.blocks[block].attn.register_forward_pre_hook(self._attention(stage, block)))
        if part.query is not None and stage not in self.regions:
            self.handles.append(part.query.register_forward_hook(self._query(stage)))
        self.regions[stage] = {}

    def remove(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()

    def _begin(self, _: nn.Module, __: Any) -> None:
        if not is_eager():
            raise RuntimeError("attention cannot be captured while a graph is traced, exported or transformed")
        self.running = True
        self.parts.clear()
        self.queries.clear()
        for regions in self.regions.values():
            regions.clear()

    def _query(self, stage: int) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, query: Tensor) -> None:
            if self.running:
                self.queries[stage] = query.detach()

        return keep

    def _attention(self, stage: int, block: int) -> Callable[..., None]:
        def keep(attention: Any, arguments: tuple) -> None:
            if self.running:
                x, pack, queries = arguments[:3]
                parts = self.parts.setdefault((stage, block), {})
                for span, weights in _weights(attention, x, pack, queries):
                    self.regions[stage][span.index] = span.region
                    parts.setdefault(span.index, []).append(weights)

        return keep

    def _end(self, _: nn.Module, arguments: tuple, __: Any) -> None:
        self.running = False
        batch, _, height, width = arguments[0].shape
        self.maps.clear()
        for (stage, block), parts in sorted(self.parts.items()):
            stride = 4 * 2**stage
            regions = self.regions[stage]
            is_global = self.backbone.stages[stage].blocks[block].attn.is_global
            self.maps[stage, block] = AttentionMap(
                stage=stage,
                block=block,
                is_global=is_global,
                stride=stride,
                height=-(-height // stride),
                width=-(-width // stride),
                regions=tuple(regions[index] for index in sorted(regions)),
                weights=tuple(torch.cat(parts[index]).unflatten(0, (batch, -1)) for index in sorted(parts)),
                query=self.queries[stage] if is_global else None,
            )
        self.parts.clear()


@torch.no_grad()
def _weights(
    attention: WindowAttention, x: Tensor, pack: Pack, queries: Sequence[Tensor] | None
) -> Iterator[tuple[Span, Tensor]]:
    """Compute the attention weights of packed windows, (windows, heads, tokens, keys) for each span, at least float32.

    For the arguments see :meth:`WindowAttention.forward`.
    """
    qkv = (attention.kv if attention.is_global else attention.qkv)(x)
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    sizes = [(span.region.height, span.region.width) for span in pack.spans]
    table = attention.relative_position_bias_table
    (biases,) = reference.position_biases([table], sizes, attention.window, torch.promote_types(table.dtype, dtype))
    parts = qkv.split([span.num_rows for span in pack.spans])
    for span, rows, bias in zip(pack.spans, parts, biases, strict=True):
        query = None
        if attention.is_global and queries is not None:
            query = queries[span.index]
            if not span.is_whole and query.shape[0] > 1:
                query = query[span.first : span.first + span.count]
        windows = rows.unflatten(0, (span.count, span.rows_per_window))  # [rows, C] -> [windows, tokens, C]
        q, k, _ = reference.split_heads(windows, query, attention.num_heads)
        tokens = span.region.height * span.region.width  # without the row that represents padding
        scores = (q[:, :, :tokens].to(dtype) * q.shape[-1] ** -0.5) @ k.to(dtype).mT
        yield span, (scores + bias[:, :tokens].to(dtype)).softmax(-1)
