"""Window attention with its bias in one Triton kernel per direction, for GPUs in eager mode.

torch's fused attention writes the gradient of the bias once per window, and another kernel sums it. Here each program
sums over a group of windows before it writes. Used only under :func:`mmgcvit.kernels.enabled`: no GPU has been timed.

The kernels also run on a CPU, in Triton's interpreter: set ``TRITON_INTERPRET=1`` before Triton is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr, tensor

from mmgcvit.kernels import reference
from mmgcvit.kernels.products import differentiable

MAX_BLOCK = 64  # queries and keys that a program holds at a time; half as many in float32
MAX_DIM = 64  # channels of a head; all variants of GC ViT have 32
PROGRAMS = 1024  # of a backward pass, if there are that many windows
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INTERPRETED_DTYPES = DTYPES[:2]  # the interpreter multiplies the bits of bfloat16 numbers (triton-lang/triton #11584)


@triton.jit
def _load(matrix: tensor, rows: tensor, stride: tensor, tokens: tensor, DIM: constexpr, WIDTH: constexpr) -> tensor:
    """Load rows of a matrix (tokens, DIM), with zeros beyond its edges: (rows, WIDTH)."""
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < tokens) & (columns[None, :] < DIM)
    return tl.load(matrix + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(
    matrix: tensor, values: tensor, rows: tensor, stride: tensor, tokens: tensor, DIM: constexpr, WIDTH: constexpr
) -> None:  # fmt: skip
    """Store rows of a matrix (tokens, DIM), the counterpart of :func:`_load`."""
    columns = tl.arange(0, WIDTH)
    inside = (rows[:, None] < tokens) & (columns[None, :] < DIM)
    tl.store(matrix + rows[:, None] * stride + columns[None, :], values, mask=inside)


@triton.jit
def _scores(
    q: tensor, k: tensor, bias: tensor, rows: tensor, keys: tensor, bias_row: tensor, tokens: tensor, scale: tensor,
    PRECISION: constexpr,
) -> tensor:  # fmt: skip
    """Compute q k^T * scale + bias in float32; minus infinity for keys beyond the window: (rows, keys)."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    inside = (rows[:, None] < tokens) & (keys[None, :] < tokens)
    added = tl.load(bias + rows[:, None] * bias_row + keys[None, :], mask=inside, other=0.0)
    return tl.where(keys[None, :] < tokens, scores + added.to(tl.float32), float("-inf"))


@triton.jit
def _forward(
    q: tensor, q_window: tensor, q_head: tensor, q_token: tensor, qkv: tensor, bias: tensor, bias_head: tensor,
    bias_row: tensor, out: tensor, logsumexp: tensor, tokens: tensor, scale: tensor,
    HEADS: constexpr, PARTS: constexpr, DIM: constexpr, WIDTH: constexpr, BLOCK: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """Attention of a block of queries of one window and head; the softmax is computed online, over blocks of keys.

    Grid: (windows, heads, blocks of queries). ``out`` is (windows, tokens, heads, DIM), ``logsumexp`` that of the
    scores, (windows, heads, tokens).
    """
    window, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    k = qkv + ((window * tokens * HEADS + head) * PARTS + PARTS - 2) * DIM
    queries = _load(q + window * q_window + head * q_head, rows, q_token, tokens, DIM, WIDTH)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    result = tl.zeros([BLOCK, WIDTH], tl.float32)
    for start in range(0, tokens, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        block = _load(k, keys, HEADS * PARTS * DIM, tokens, DIM, WIDTH)
        values = _load(k + DIM, keys, HEADS * PARTS * DIM, tokens, DIM, WIDTH)
        scores = _scores(queries, block, bias + head * bias_head, rows, keys, bias_row, tokens, scale, PRECISION)
        larger = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp(scores - larger[:, None])
        shrink = tl.exp(largest - larger)
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        largest = larger
    result = (result / total[:, None]).to(queries.dtype)
    _store(out + (window * tokens * HEADS + head) * DIM, result, rows, HEADS * DIM, tokens, DIM, WIDTH)
    tl.store(logsumexp + (window * HEADS + head) * tokens + rows, largest + tl.log(total), mask=rows < tokens)


@triton.jit
def _backward_queries(
    q: tensor, q_window: tensor, q_head: tensor, q_token: tensor, qkv: tensor, bias: tensor, bias_head: tensor,
    bias_row: tensor, out: tensor, logsumexp: tensor, gradient: tensor, delta: tensor, d_q: tensor,
    d_window: tensor, d_head: tensor, d_token: tensor, d_qkv: tensor, d_bias: tensor, windows: tensor,
    windows_per_group: tensor, tokens: tensor, scale: tensor,
    HEADS: constexpr, PARTS: constexpr, DIM: constexpr, WIDTH: constexpr, BLOCK: constexpr, PRECISION: constexpr,
    SINGLE: constexpr,
) -> None:  # fmt: skip
    """Gradients of a block of queries and of their bias, for one head and the windows of one group in turn.

    Grid: (groups, heads, blocks of queries). ``d_bias`` is (groups, heads, tokens, tokens) float32 zeros. If a window
    is a single block (SINGLE), also the gradients of keys and values; otherwise those need ``delta``, the product of
    output and gradient of each query, (windows, heads, tokens), which is written here.
    """
    group, head = tl.program_id(0), tl.program_id(1)
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    stride = HEADS * PARTS * DIM
    d_bias += (group * HEADS + head).to(tl.int64) * tokens * tokens
    d_bias_block = tl.zeros([BLOCK, BLOCK], tl.float32)
    first = group.to(tl.int64) * windows_per_group
    for index in range(0, tl.minimum(windows_per_group, windows - first)):
        window = first + index
        of_rows = (window * HEADS + head) * tokens + rows
        of_output = (window * tokens * HEADS + head) * DIM
        of_keys = ((window * tokens * HEADS + head) * PARTS + PARTS - 2) * DIM
        queries = _load(q + window * q_window + head * q_head, rows, q_token, tokens, DIM, WIDTH)
        g = _load(gradient + of_output, rows, HEADS * DIM, tokens, DIM, WIDTH)
        lse = tl.load(logsumexp + of_rows, mask=rows < tokens, other=0.0)
        if not SINGLE:
            output = _load(out + of_output, rows, HEADS * DIM, tokens, DIM, WIDTH)
            product = tl.sum(output.to(tl.float32) * g.to(tl.float32), 1)
            tl.store(delta + of_rows, product, mask=rows < tokens)
        d_queries = tl.zeros([BLOCK, WIDTH], tl.float32)
        for start in range(0, tokens, BLOCK):
            keys = start + tl.arange(0, BLOCK)
            k = _load(qkv + of_keys, keys, stride, tokens, DIM, WIDTH)
            v = _load(qkv + of_keys + DIM, keys, stride, tokens, DIM, WIDTH)
            scores = _scores(queries, k, bias + head * bias_head, rows, keys, bias_row, tokens, scale, PRECISION)
            weights = tl.exp(scores - lse[:, None])
            d_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
            if SINGLE:
                product = tl.sum(weights * d_weights, 1)
            d_scores = weights * (d_weights - product[:, None])
            d_queries += tl.dot(d_scores.to(k.dtype), k, input_precision=PRECISION)
            if SINGLE:
                d_bias_block += d_scores
                d_k = tl.dot(tl.trans(d_scores.to(k.dtype)), queries, input_precision=PRECISION) * scale
                d_v = tl.dot(tl.trans(weights.to(k.dtype)), g, input_precision=PRECISION)
                _store(d_qkv + of_keys, d_k.to(k.dtype), keys, stride, tokens, DIM, WIDTH)
                _store(d_qkv + of_keys + DIM, d_v.to(k.dtype), keys, stride, tokens, DIM, WIDTH)
            else:  # No other program adds to this block, so the order of the sum is always the same.
                inside = (rows[:, None] < tokens) & (keys[None, :] < tokens)
                tl.atomic_add(d_bias + rows[:, None] * tokens + keys[None, :], d_scores, mask=inside, sem="relaxed")
        d_queries = (d_queries * scale).to(queries.dtype)
        _store(d_q + window * d_window + head * d_head, d_queries, rows, d_token, tokens, DIM, WIDTH)
    if SINGLE:
        inside = (rows[:, None] < tokens) & (rows[None, :] < tokens)
        columns = tl.arange(0, BLOCK)
        tl.store(d_bias + rows[:, None] * tokens + columns[None, :], d_bias_block, mask=inside)


@triton.jit
def _backward_keys(
    q: tensor, q_window: tensor, q_head: tensor, q_token: tensor, qkv: tensor, bias: tensor, bias_head: tensor,
    bias_row: tensor, logsumexp: tensor, gradient: tensor, delta: tensor, d_qkv: tensor, tokens: tensor, scale: tensor,
    HEADS: constexpr, PARTS: constexpr, DIM: constexpr, WIDTH: constexpr, BLOCK: constexpr, PRECISION: constexpr,
) -> None:  # fmt: skip
    """Gradients of a block of keys and values of one window and head; grid: (windows, heads, blocks of keys)."""
    window, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    keys = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    stride = HEADS * PARTS * DIM
    of_keys = ((window * tokens * HEADS + head) * PARTS + PARTS - 2) * DIM
    k = _load(qkv + of_keys, keys, stride, tokens, DIM, WIDTH)
    v = _load(qkv + of_keys + DIM, keys, stride, tokens, DIM, WIDTH)
    d_k = tl.zeros([BLOCK, WIDTH], tl.float32)
    d_v = tl.zeros([BLOCK, WIDTH], tl.float32)
    for start in range(0, tokens, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        of_rows = (window * HEADS + head) * tokens + rows
        queries = _load(q + window * q_window + head * q_head, rows, q_token, tokens, DIM, WIDTH)
        g = _load(gradient + (window * tokens * HEADS + head) * DIM, rows, HEADS * DIM, tokens, DIM, WIDTH)
        lse = tl.load(logsumexp + of_rows, mask=rows < tokens, other=0.0)
        product = tl.load(delta + of_rows, mask=rows < tokens, other=0.0)
        scores = _scores(queries, k, bias + head * bias_head, rows, keys, bias_row, tokens, scale, PRECISION)
        weights = tl.exp(scores - lse[:, None])
        d_v += tl.dot(tl.trans(weights.to(k.dtype)), g, input_precision=PRECISION)
        d_scores = weights * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - product[:, None])
        d_k += tl.dot(tl.trans(d_scores.to(k.dtype)), queries, input_precision=PRECISION)
    _store(d_qkv + of_keys, (d_k * scale).to(k.dtype), keys, stride, tokens, DIM, WIDTH)
    _store(d_qkv + of_keys + DIM, d_v.to(k.dtype), keys, stride, tokens, DIM, WIDTH)


#: Whether Triton interprets the kernels on the CPU.
INTERPRETED = not isinstance(_forward, triton.JITFunction)


def supports(qkv: Tensor, query: Tensor | None, bias: Tensor, num_heads: int, dropout: float = 0.0) -> bool:
    """Whether the kernels can compute :func:`window_attention` of these arguments."""
    dim = qkv.shape[2] // (num_heads * (3 if query is None else 2))
    tensors = [qkv, bias] if query is None else [qkv, bias, query]
    return (
        (qkv.device.type == "cuda" or (INTERPRETED and qkv.device.type == "cpu"))
        and qkv.dtype in (INTERPRETED_DTYPES if INTERPRETED else DTYPES)
        and all(t.dtype == qkv.dtype and type(t) is Tensor for t in tensors)
        and qkv.numel() > 0
        and dim <= MAX_DIM
        and not dropout
    )


def attention(qkv: Tensor, windows: Sequence[reference.Windows], num_heads: int, dropout: float = 0.0) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.attention`."""
    return reference.attention(qkv, windows, num_heads, dropout, window_attention)


def window_attention(qkv: Tensor, query: Tensor | None, bias: Any, num_heads: int, dropout: float = 0.0) -> Tensor:
    """See :func:`mmgcvit.kernels.reference.window_attention`, which runs where :func:`supports` is false."""
    if not supports(qkv, query, bias, num_heads, dropout):
        return reference.window_attention(qkv, query, bias, num_heads, dropout)
    return WindowAttention.apply(qkv, query, bias, num_heads)


class WindowAttention(torch.autograd.Function):
    """Attention that saves its inputs, its output and the logsumexp of the scores for the backward pass."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, query: Tensor | None, bias: Tensor, num_heads: int) -> Tensor:
        """See :func:`window_attention`."""
        qkv = qkv.contiguous()
        windows, tokens, _ = qkv.shape
        q, k, v = reference.split_heads(qkv, query, num_heads)
        out = qkv.new_empty(windows, tokens, num_heads * v.shape[-1])
        logsumexp = qkv.new_empty(windows, num_heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(qkv, query, bias, out, logsumexp)
        ctx.num_heads = num_heads
        constants = _constants(qkv, k)
        grid = (windows, num_heads, triton.cdiv(tokens, constants["BLOCK"]))
        with torch.cuda.device_of(qkv):
            _forward[grid](
                *_operands(q, qkv, bias), out, logsumexp, tokens, k.shape[-1] ** -0.5, **constants, num_warps=4
            )
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        qkv, query, bias, out, logsumexp = ctx.saved_tensors
        heads = ctx.num_heads
        if torch.is_grad_enabled():  # a second derivative may follow
            return *differentiable(lambda *inputs: _plain(heads, *inputs), (qkv, query, bias), gradient), None
        gradient = gradient.contiguous()
        windows, tokens, _ = qkv.shape
        d_qkv, delta = torch.empty_like(qkv), torch.empty_like(logsumexp)
        q, k, _ = reference.split_heads(qkv, query, heads)
        d_query = None if query is None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
        d_q = reference.split_heads(d_qkv, d_query, heads)[0]
        constants, scale = _constants(qkv, k), k.shape[-1] ** -0.5
        blocks = triton.cdiv(tokens, constants["BLOCK"])
        per_group = triton.cdiv(windows, max(1, PROGRAMS // (heads * blocks)))
        groups = triton.cdiv(windows, per_group)
        d_bias = bias.new_zeros(groups, heads, tokens, tokens, dtype=torch.float32)
        operands, warps = _operands(q, qkv, bias), 4 if qkv.dtype == torch.float32 else 8
        with torch.cuda.device_of(qkv):
            _backward_queries[groups, heads, blocks](
                *operands, out, logsumexp, gradient, delta, d_q, *d_q.stride()[:3], d_qkv, d_bias, windows, per_group,
                tokens, scale, **constants, SINGLE=blocks == 1, num_warps=warps,
            )  # fmt: skip
            if blocks > 1:
                _backward_keys[windows, heads, blocks](
                    *operands, logsumexp, gradient, delta, d_qkv, tokens, scale, **constants, num_warps=warps
                )
        if d_query is not None and query.shape != d_query.shape:  # one query for all windows
            d_query = d_query.sum(0, keepdim=True)
        return d_qkv, d_query, d_bias.sum(0).to(bias.dtype), None


def _operands(q: Tensor, qkv: Tensor, bias: Tensor) -> tuple[Any, ...]:
    """The first arguments of each kernel; the last dimension of each tensor must be contiguous."""
    q, bias = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, bias))
    return q, *q.stride()[:3], qkv, bias, *bias.stride()[:2]


def _constants(qkv: Tensor, k: Tensor) -> dict[str, Any]:
    """Constants and options with which the kernels are compiled.

    With these blocks and numbers of warps, heads of 32 channels in bfloat16 spill no registers on a GPU of compute
    capability 9.0, as its compiler says; they have not been tuned on a GPU.
    """
    heads, tokens, dim = k.shape[1:]
    block = MAX_BLOCK // 2 if qkv.dtype == torch.float32 else MAX_BLOCK
    block = min(block, max(16, triton.next_power_of_2(tokens)))
    return dict(
        HEADS=heads,
        PARTS=qkv.shape[2] // (heads * dim),
        DIM=dim,
        WIDTH=max(16, triton.next_power_of_2(dim)),
        BLOCK=block,
        PRECISION="tf32" if _allows_tf32() else "ieee",
        num_stages=1 if tokens <= block else 2,  # a single block cannot be pipelined
    )


def _allows_tf32() -> bool:
    """Whether float32 products may be computed in TF32; from torch 2.9 on, reading the older setting may raise."""
    settings = torch.backends.cuda.matmul
    return settings.fp32_precision == "tf32" if hasattr(settings, "fp32_precision") else settings.allow_tf32


def _plain(heads: int, qkv: Tensor, query: Tensor | None, bias: Tensor) -> Tensor:
    """The same by operations that can be differentiated any number of times."""
    return reference.plain_attention(*reference.split_heads(qkv, query, heads), bias).transpose(1, 2).flatten(2)
