"""Window attention against the formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error

from mmgcvit.backbone import attention as attention_module
from mmgcvit.backbone.attention import WindowAttention, gather_bias, resize_bias_table

CHANNELS, HEADS, WINDOW = 12, 3, 3
TOKENS, HEAD_DIM = WINDOW**2, CHANNELS // HEADS


def test_gather_bias_is_the_table_at_each_pairs_offset():
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


def formula(
    attention: WindowAttention, x: torch.Tensor, query: torch.Tensor | None, height: int, width: int
) -> torch.Tensor:
    """Each window, picture and head on its own, zero-padded to the whole window; softmax(q k^T / sqrt(d) + b) v."""
    windows, _, pictures, _ = x.shape
    padded = x.new_zeros(windows, WINDOW, WINDOW, pictures, CHANNELS)
    padded[:, :height, :width] = x.unflatten(1, (height, width))
    padded = padded.flatten(1, 2)
    bias = gather_bias(attention.relative_position_bias_table, WINDOW)
    outs = []
    for window in range(windows):
        for picture in range(pictures):
            rows = (attention.kv if attention.is_global else attention.qkv)(padded[window, :, picture])
            rows = rows.reshape(TOKENS, HEADS, -1, HEAD_DIM)
            heads = []
            for head in range(HEADS):
                if attention.is_global:
                    # a region of a single window has its pictures where others have their windows
                    q = query[picture if pictures > 1 or len(query) == 1 else window, head]
                    k, v = rows[:, head, 0], rows[:, head, 1]
                else:
                    q, k, v = rows[:, head, 0], rows[:, head, 1], rows[:, head, 2]
                weights = (q @ k.T / HEAD_DIM**0.5 + bias[head]).softmax(-1)
                heads.append(weights @ v)
            outs.append(torch.cat(heads, 1))
    out = torch.stack(outs).reshape(windows, pictures, WINDOW, WINDOW, CHANNELS)
    return attention.proj(out[:, :, :height, :width].flatten(2, 3).transpose(1, 2))


def run(
    attention: WindowAttention, x: torch.Tensor, query: torch.Tensor | None, height: int, width: int
) -> torch.Tensor:
    """The attention on windows of height x width, of whose query it gets what belongs to their tokens."""
    if query is not None:
        query = query.unflatten(2, (WINDOW, WINDOW))[:, :, :height, :width].flatten(2, 3)
    return attention(x, query, (height, width))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("scores", "bias"), [(2**19, 2**22), (1, 1), (100, 200)])
@pytest.mark.parametrize("size", [(3, 3), (2, 3), (3, 1), (1, 2)])
@pytest.mark.parametrize(("windows", "pictures", "queries"), [(5, 2, 2), (5, 1, 1), (3, 1, 3)])
@pytest.mark.parametrize("is_global", [False, True])
def test_equals_the_formula(
    monkeypatch,
    is_global: bool,
    windows: int,
    pictures: int,
    queries: int,
    size: tuple[int, int],
    scores: int,
    bias: int,
    grad: bool,
):
    """With its gradients, however much is worked on at a time."""
    monkeypatch.setattr(attention_module, "SCORES", scores)
    monkeypatch.setattr(attention_module, "BIAS", bias)
    attention = randomise(WindowAttention(CHANNELS, HEADS, WINDOW, is_global)).double()
    x = torch.randn(windows, size[0] * size[1], pictures, CHANNELS, dtype=torch.double, requires_grad=grad)
    query = torch.randn(queries, HEADS, TOKENS, HEAD_DIM, dtype=torch.double, requires_grad=grad)
    query = query if is_global else None
    with torch.set_grad_enabled(grad):
        got, wanted = run(attention, x, query, *size), formula(attention, x, query, *size)
    assert relative_error(got, wanted) < 1e-12
    if grad:
        inputs = [x, *attention.parameters()] + ([query] if is_global else [])
        weight = torch.randn_like(got)
        for a, b in zip(
            torch.autograd.grad((got * weight).sum(), inputs),
            torch.autograd.grad((wanted * weight).sum(), inputs),
            strict=True,
        ):
            assert (a - b).abs().max() < 1e-10


def test_padding_far_less_likely_than_the_rest_gives_no_nan():
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, False)
    table = attention.relative_position_bias_table
    with torch.no_grad():
        table.fill_(-1e4)
        table[(2 * WINDOW - 1) ** 2 // 2] = 0  # each token sees itself
    x = torch.randn(2, 2, 1, CHANNELS, requires_grad=True)
    run(attention, x, None, 1, 2).sum().backward()
    assert x.grad.isfinite().all()
    assert table.grad.isfinite().all()


@pytest.mark.parametrize("size", [(2, 3), (3, 2), (1, 1)])
@pytest.mark.parametrize("entry", [-300.0, 110.0, 300.0])
def test_a_table_of_any_spread(entry: float, size: tuple[int, int]):
    """What the padding's token weighs is told by its own places, not by the table's largest entry."""
    attention = randomise(WindowAttention(CHANNELS, HEADS, WINDOW, False)).double()
    with torch.no_grad():
        attention.relative_position_bias_table.zero_()
        attention.relative_position_bias_table[0] = entry
    x = torch.randn(2, size[0] * size[1], 1, CHANNELS, dtype=torch.double)
    assert relative_error(run(attention, x, None, *size), formula(attention, x, None, *size)) < 1e-12


def test_calls_that_share_a_bias(monkeypatch):
    attention = randomise(WindowAttention(CHANNELS, HEADS, WINDOW, False))
    x = torch.randn(6, TOKENS, 2, CHANNELS)
    wanted = run(attention, x, None, WINDOW, WINDOW)
    made, real, shared = [], WindowAttention.bias, []
    monkeypatch.setattr(WindowAttention, "bias", lambda *args: made.append(args) or real(*args))
    got = torch.cat([attention(part, None, (WINDOW, WINDOW), shared) for part in x.split(2)])
    assert len(made) == 1
    assert relative_error(got, wanted) < 1e-6
    gradients = [
        torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), attention.parameters())
        for y in (got, wanted)
    ]
    for a, b in zip(*gradients, strict=True):
        assert relative_error(a, b) < 1e-5


def test_the_gradient_of_the_bias_keeps_no_scores():
    """What is kept for the backward pass does not grow with the square of the window."""
    kept = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    window = 24
    attention = WindowAttention(CHANNELS, HEADS, window, False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(torch.randn(2, window**2, 1, CHANNELS), None, (window, window))
    assert max(kept) < window**4 * HEADS * 4 / 2


def test_the_global_query_is_not_copied_per_window(monkeypatch):
    seen = {}
    real = F.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        seen.update(query=q, key=k, bias=kwargs["attn_mask"])
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, is_global=True)
    query = torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    attention(torch.randn(7, TOKENS, 2, CHANNELS), query, (WINDOW, WINDOW))
    assert seen["query"].shape == seen["key"].shape == (7, 2 * HEADS, TOKENS, HEAD_DIM)
    assert seen["query"].data_ptr() == query.data_ptr()
    assert seen["query"].stride(0) == 0
    assert seen["bias"].shape == (1, 2 * HEADS, TOKENS, TOKENS)  # one for all windows


def test_dropout_acts_in_training_only():
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, False, attn_drop_rate=0.5, drop_rate=0.5)
    x = torch.randn(3, TOKENS, 2, CHANNELS)
    assert not torch.equal(run(attention, x, None, WINDOW, WINDOW), run(attention, x, None, WINDOW, WINDOW))
    attention.eval()
    assert torch.equal(run(attention, x, None, WINDOW, WINDOW), run(attention, x, None, WINDOW, WINDOW))


def test_resize_bias_table():
    table = torch.randn(13 * 13, 4)
    assert torch.allclose(resize_bias_table(table, 7), table, atol=1e-6)
    assert resize_bias_table(table.half(), 12).shape == (23 * 23, 4)
    assert resize_bias_table(table.half(), 12).dtype is torch.half
    assert torch.allclose(resize_bias_table(torch.ones(9, 1), 5), torch.ones(81, 1))
    for rows in (168, 196):
        with pytest.raises(ValueError, match=f"{rows} rows fits no window"):
            resize_bias_table(torch.zeros(rows, 4), 7)
