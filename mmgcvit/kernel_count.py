"""Counts the GPU work of a model without a GPU: kernels, bytes moved, bytes saved for the backward pass.

The model runs on the meta device in eager mode. A view costs nothing; every other operation counts as one kernel that
reads its inputs and writes its outputs once (an expanded tensor counts at its unexpanded size). Fused attention counts
as one kernel in the forward and one in the backward pass. The figures are therefore lower bounds. They are the same on
every machine and can be tested: use them to compare implementations, and a GPU to measure time.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any
from unittest import mock

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from mmgcvit.compat import TorchDispatchMode, storage_id, tree_leaves
from mmgcvit.errors import BenchmarkError
from mmgcvit.utils.text import wide_console

# Operations that launch no kernel: views, and allocation without writing.
FREE = frozenset([
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze",
    "squeeze", "unbind", "split", "split_with_sizes", "chunk", "alias", "detach", "as_strided", "unfold",
    "narrow", "_reshape_alias", "unflatten", "flatten", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "lift_fresh",
])  # fmt: skip


@dataclass
class KernelCount:
    """Kernels and memory traffic of a forward pass or of a training step.

    Args:
        kernels: number of launches, by operation.
        moved: bytes read and written, by operation.
        kept: bytes saved for the backward pass, in addition to the parameters.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    kept: int = 0

    def add(self, operation: str, tensors: Sequence[Any]) -> None:
        """Count one kernel that reads and writes these tensors."""
        self.kernels[operation] += 1
        self.moved[operation] += sum(_bytes(t) for t in tensors if isinstance(t, Tensor))


def _bytes(tensor: Tensor) -> int:
    """Size of a tensor in memory, in bytes; expanded dimensions count once."""
    sizes = (n if stride else 1 for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return reduce(operator.mul, sizes, 1) * tensor.element_size()


class _Counting(TorchDispatchMode):
    """Dispatch mode that adds each operation to a count."""

    def __init__(self, count: KernelCount) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.count.add(name, tree_leaves((args, kwargs, result)))
        return result


def _attention(count: KernelCount) -> Callable[..., Tensor]:
    """Make a stand-in for fused attention on the meta device that counts one kernel per direction."""

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            batch, heads, tokens, _ = q.shape
            result = q.new_empty(batch, tokens, heads, v.shape[-1]).transpose(
                1, 2
            )  # same memory layout as the fused kernels
            ctx.save_for_backward(q, k, v, mask, result)
            count.add("attention", (q, k, v, mask, result))
            return result

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            *inputs, result = ctx.saved_tensors
            gradients = tuple(
                t.new_empty(t.shape) if needed else None for t, needed in zip(inputs, ctx.needs_input_grad, strict=True)
            )
            count.add("attention backward", (*inputs, result, gradient, *gradients))
            return gradients

    def fused(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **_: Any
    ) -> Tensor:
        return Attention.apply(query, key, value, attn_mask)

    return fused


@contextmanager
def _counted(count: KernelCount, parameters: set[int]) -> Iterator[None]:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[storage_id(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with mock.patch.object(F, "scaled_dot_product_attention", _attention(count)), _Counting(count), hooks:
        yield
    count.kept = sum(size for key, size in kept.items() if key not in parameters)


def count_kernels(
    build: Callable[[], nn.Module], shape: Sequence[int], train: bool = False, dtype: torch.dtype = torch.bfloat16
) -> KernelCount:
    """Count the kernels of a forward pass, or of a forward and backward pass from the sum of all outputs.

    Args:
        build: function that builds the model, which is then moved to the meta device.
        shape: shape (B, C, H, W) of the input.
        train: count a training step instead of a forward pass in evaluation mode.
        dtype: dtype of the parameters and the input.

    Raises:
        BenchmarkError: the model cannot run on the meta device.

    Examples:
        >>> sum(count_kernels(lambda: nn.Linear(4, 8), (2, 4)).kernels.values())
        1
    """
    model = build().to(device="meta", dtype=dtype)
    model.train(train)  # returns None for mmdet's backbones
    x = torch.empty(*shape, dtype=dtype, device="meta")
    parameters = {storage_id(p) for p in model.parameters()}

    def run() -> KernelCount:
        count = KernelCount()
        with torch.set_grad_enabled(train), _counted(count, parameters):
            outputs = model(x)
            if train:
                total: Any = sum(y.float().sum() for y in ([outputs] if isinstance(outputs, Tensor) else outputs))
                total.backward()
        model.zero_grad()
        return count

    try:
        run()  # fills the caches
        return run()
    except (RuntimeError, NotImplementedError) as error:
        hint = "" if dtype == torch.float32 else "; allowed for models that mix dtypes: --dtype float32"
        raise BenchmarkError(
            f"{type(model).__name__} cannot run on the meta device in {dtype}: {error}{hint}"
        ) from error


def print_kernel_counts(rows: Sequence[tuple[str, Sequence[int], KernelCount, KernelCount]], top: int = 5) -> None:
    """Print a table of models: name, input shape, forward pass, training step."""
    table = Table(title="kernels and memory traffic, counted on the meta device", title_justify="left")
    table.add_column("model", overflow="fold")
    for title in ("input", "forward kernels", "GB", "training kernels", "GB", "GB kept"):
        table.add_column(title, justify="right")
    for name, shape, forward, step in rows:
        moved = [f"{sum(c.moved.values()) / 1e9:.1f}" for c in (forward, step)]
        kernels = [str(sum(c.kernels.values())) for c in (forward, step)]
        size = "x".join(map(str, shape))
        table.add_row(name, size, kernels[0], moved[0], kernels[1], moved[1], f"{step.kept / 1e9:.2f}")
    console = wide_console()
    console.print(table)
    for name, _, _, step in rows if top else ():
        most = ", ".join(f"{key} {n / 1e9:.2f} GB in {step.kernels[key]}" for key, n in step.moved.most_common(top))
        console.print(f"{name}: {most}", highlight=False)
