"""Window attention against the formula written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error

from mmgcvit.backbone.attention import WindowAttention, gather_bias, resize_bias_table

CHANNELS, HEADS, WINDOW = 12, 3, 2
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


def formula(attention: WindowAttention, x: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
    """Each window, picture and head on its own; softmax(q k^T / sqrt(d) + b) v."""
    windows, tokens, pictures, _ = x.shape
    bias = gather_bias(attention.relative_position_bias_table, WINDOW)
    out = torch.zeros_like(x)
    for window in range(windows):
        for picture in range(pictures):
            part = x[window, :, picture]
            rows = (attention.kv if attention.is_global else attention.qkv)(part)
            rows = rows.reshape(tokens, HEADS, -1, HEAD_DIM)
            for head in range(HEADS):
                if attention.is_global:
                    # a map of a single window has its pictures where others have their windows
                    q = query[picture if pictures > 1 or len(query) == 1 else window, head]
                    k, v = rows[:, head, 0], rows[:, head, 1]
                else:
                    q, k, v = rows[:, head, 0], rows[:, head, 1], rows[:, head, 2]
                weights = (q @ k.T / HEAD_DIM**0.5 + bias[head]).softmax(-1)
                out[window, :, picture, head * HEAD_DIM : (head + 1) * HEAD_DIM] = weights @ v
    return attention.proj(out)


@pytest.mark.parametrize(("windows", "pictures", "queries"), [(5, 2, 2), (5, 1, 1), (3, 1, 3)])
@pytest.mark.parametrize("is_global", [False, True])
def test_equals_the_formula(is_global: bool, windows: int, pictures: int, queries: int):
    attention = randomise(WindowAttention(CHANNELS, HEADS, WINDOW, is_global))
    x = torch.randn(windows, TOKENS, pictures, CHANNELS)
    query = torch.randn(queries, HEADS, TOKENS, HEAD_DIM) if is_global else None
    with torch.no_grad():
        assert relative_error(attention(x, query), formula(attention, x, query)) < 1e-5


def test_the_global_query_is_not_copied_per_window(monkeypatch):
    seen = {}
    real = F.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        seen.update(query=q, key=k, bias=kwargs["attn_mask"])
        return real(q, k, v, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, is_global=True)
    query = torch.randn(2, HEADS, TOKENS, HEAD_DIM)
    attention(torch.randn(7, TOKENS, 2, CHANNELS), query)
    assert seen["query"].shape == seen["key"].shape == (7, 2 * HEADS, TOKENS, HEAD_DIM)
    assert seen["query"].data_ptr() == query.data_ptr()
    assert seen["query"].stride(0) == 0
    assert seen["bias"].shape == (1, 2 * HEADS, TOKENS, TOKENS)  # one for all windows


def test_dropout_acts_in_training_only():
    attention = WindowAttention(CHANNELS, HEADS, WINDOW, False, attn_drop_rate=0.5, drop_rate=0.5)
    x = torch.randn(3, TOKENS, 2, CHANNELS)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_resize_bias_table():
    table = torch.randn(13 * 13, 4)
    assert torch.allclose(resize_bias_table(table, 7), table, atol=1e-6)
    assert resize_bias_table(table.half(), 12).shape == (23 * 23, 4)
    assert resize_bias_table(table.half(), 12).dtype is torch.half
    assert torch.allclose(resize_bias_table(torch.ones(9, 1), 5), torch.ones(81, 1))
    for rows in (168, 196):
        with pytest.raises(ValueError, match=f"{rows} rows fits no window"):
            resize_bias_table(torch.zeros(rows, 4), 7)
