"""Window attention compared with an explicit formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error

from mmgcvit import kernels
from mmgcvit.backbone.attention import WindowAttention
from mmgcvit.backbone.bias import resize_bias_table
from mmgcvit.backbone.windows import window_layout
from mmgcvit.kernels import dispatch, reference

CHANNELS, HEADS, WINDOW = 12, 3, 3
TOKENS, HEAD_DIM = WINDOW**2, CHANNELS // HEADS
IMPLEMENTATIONS = [dispatch.REFERENCE, dispatch.EAGER, dispatch.CPU]


def gather_bias(table: torch.Tensor, window: int) -> torch.Tensor:
    ((bias,),) = reference.position_biases([table], [(window, window)], window, table.dtype)
    return bias


def test_bias_is_table_entry_at_offset_of_each_pair():
    w = 3
    table = torch.randn((2 * w - 1) ** 2, 2)
    bias = gather_bias(table, w)
    assert bias.shape == (2, w * w, w * w)
    for i in range(w):
        for j in range(w):
            for k in range(w):
                for m in range(w):
                    offset = (i - k + w - 1) * (2 * w - 1) + j - m + w - 1
                    assert torch.equal(bias[:, i * w + j, k * w + m], table[offset])


def formula(attention: WindowAttention, x: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
    """Compute softmax(q k^T / sqrt(d) + b) v for each window and head separately, zero-padded to the full window."""
    batch, height, width, _ = x.shape
    padded = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
    bias = gather_bias(attention.relative_position_bias_table, WINDOW)
    out = torch.zeros_like(padded)
    for image in range(batch):
        for top in range(0, height, WINDOW):
            for left in range(0, width, WINDOW):
                window = padded[image, top : top + WINDOW, left : left + WINDOW].reshape(TOKENS, CHANNELS)
                rows = (attention.kv if attention.is_global else attention.qkv)(window).reshape(
                    TOKENS, HEADS, -1, HEAD_DIM
                )
                heads = []
                for head in range(HEADS):
                    k, v = rows[:, head, -2], rows[:, head, -1]
                    q = query[image, head] if attention.is_global else rows[:, head, 0]
                    heads.append((q @ k.T / HEAD_DIM**0.5 + bias[head]).softmax(-1) @ v)
                y = attention.proj(torch.cat(heads, 1)).reshape(WINDOW, WINDOW, CHANNELS)
                out = out.clone()
                out[image, top : top + WINDOW, left : left + WINDOW] = y
    return out[:, :height, :width]


def run(
    attention: WindowAttention,
    x: torch.Tensor,
    query: torch.Tensor | None,
    ops: kernels.Kernels,
    limit: int | None = None,
) -> torch.Tensor:
    """Apply attention to a whole map."""
    layout = window_layout(tuple(x.shape), WINDOW, x.device, limit)
    queries = None if query is None else layout.expand_query(query)
    packs = []
    for part, pack in zip(layout.pack(x), layout.packs, strict=True):
        if pack.padding_rows is not None:
            part = part.index_fill(0, pack.padding_rows, 0)
        packs.append(attention(part, pack, queries, None, ops))
    return layout.unpack(packs, *x.shape[1:3])


@pytest.mark.parametrize("ops", IMPLEMENTATIONS, ids=["reference", "eager", "cpu"])
@pytest.mark.parametrize("limit", [None, 200])
@pytest.mark.parametrize("shape", [(2, 6, 9), (1, 7, 6), (3, 5, 4), (2, 2, 1), (1, 3, 3)])
@pytest.mark.parametrize("is_global", [False, True])
def test_equals_formula(is_global: bool, shape: tuple[int, ...], limit: int | None, ops: kernels.Kernels):
    """Outputs and gradients."""
    attention = randomise(WindowAttention(CHANNELS, HEADS, WINDOW, is_global)).double()
    x = torch.randn(*shape, CHANNELS, dtype=torch.double, requires_grad=True)
    query = torch.randn(shape[0], HEADS, TOKENS, HEAD_DIM, dtype=torch.double, requires_grad=True)
    query = query if is_global else None
    with torch.no_grad():
        assert relative_error(run(attention, x, query, ops, limit), formula(attention, x, query)) < 1e-12
    got, wanted = run(attention, x, query, ops, limit), formula(attention, x, query)
    assert relative_error(got, wanted) < 1e-12
    inputs = [x, *attention.parameters()] + ([query] if is_global else [])
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((wanted * weight).sum(), inputs),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("ops", IMPLEMENTATIONS, ids=["reference", "eager", "cpu"])
def test_negligible_padding_weight_gives_no_nan(ops: kernels.Kernels):
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, False)
    table = attention.relative_position_bias_table
    with torch.no_grad():
        table.fill_(-1e4)
        table[(2 * WINDOW - 1) ** 2 // 2] = 0  # each token attends to itself
    x = torch.randn(2, 1, 2, CHANNELS, requires_grad=True)
    run(attention, x, None, ops).sum().backward()
    assert x.grad.isfinite().all()
    assert table.grad.isfinite().all()


@pytest.mark.parametrize("ops", IMPLEMENTATIONS, ids=["reference", "eager", "cpu"])
@pytest.mark.parametrize("size", [(2, 3), (3, 2), (1, 1)])
@pytest.mark.parametrize("entry", [-300.0, 110.0, 300.0])
def test_tables_with_large_value_range(entry: float, size: tuple[int, int], ops: kernels.Kernels):
    """The weight of the padding token depends on its own positions, not on the largest entry of the table."""
    attention = randomise(WindowAttention(CHANNELS, HEADS, WINDOW, False)).double()
    with torch.no_grad():
        attention.relative_position_bias_table.zero_()
        attention.relative_position_bias_table[0] = entry
    x = torch.randn(2, *size, CHANNELS, dtype=torch.double)
    assert relative_error(run(attention, x, None, ops), formula(attention, x, None)) < 1e-12


def test_bias_gradient_saves_no_attention_scores():
    """On a CPU, the memory saved for the backward pass does not grow with the squared number of tokens per window."""
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    window = 24
    attention = WindowAttention(CHANNELS, HEADS, window, False)
    layout = window_layout((2, window, window, CHANNELS), window, torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(torch.randn(2 * window**2, CHANNELS), layout.packs[0], ops=dispatch.CPU)
    assert max(kept) < window**4 * HEADS * 4 / 2


@pytest.mark.parametrize("ops", IMPLEMENTATIONS, ids=["reference", "eager", "cpu"])
def test_bias_and_query_are_shared_by_all_windows(monkeypatch, ops: kernels.Kernels):
    seen = {}
    real = F.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        seen.update(query=q, key=k, bias=kwargs["attn_mask"])
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, is_global=True)
    query = torch.randn(1, HEADS, TOKENS, HEAD_DIM)
    run(attention, torch.randn(1, 3 * WINDOW, WINDOW, CHANNELS), query, ops)
    assert seen["query"].shape == seen["key"].shape == (3, HEADS, TOKENS, HEAD_DIM)
    assert seen["query"].data_ptr() == query.data_ptr()
    assert seen["query"].stride(0) == 0
    assert seen["bias"].shape == (1, HEADS, TOKENS, TOKENS)


@pytest.mark.parametrize("ops", IMPLEMENTATIONS, ids=["reference", "eager", "cpu"])
@pytest.mark.parametrize("size", [(3, 3), (4, 5)])
def test_dropout_only_in_training(size: tuple[int, int], ops: kernels.Kernels):
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, False, attn_drop_rate=0.5, drop_rate=0.5)
    x = torch.randn(3, *size, CHANNELS)
    assert not torch.equal(run(attention, x, None, ops), run(attention, x, None, ops))
    attention.eval()
    assert torch.equal(run(attention, x, None, ops), run(attention, x, None, ops))


def test_resize_bias_table():
    table = torch.randn(13 * 13, 4)
    assert torch.allclose(resize_bias_table(table, 7), table, atol=1e-6)
    assert resize_bias_table(table.half(), 12).shape == (23 * 23, 4)
    assert resize_bias_table(table.half(), 12).dtype is torch.half
    assert torch.allclose(resize_bias_table(torch.ones(9, 1), 5), torch.ones(81, 1))
    for rows in (168, 196):
        with pytest.raises(ValueError, match=f"{rows} rows fits no window"):
            resize_bias_table(torch.zeros(rows, 4), 7)
