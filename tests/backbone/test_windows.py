"""Padding, cutting and merging."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgcvit.backbone.windows import WindowGrid, pad_to_multiple


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), height=st.integers(1, 20), width=st.integers(1, 20), window=st.integers(1, 8))
def test_every_token_is_where_it_belongs_and_comes_back(batch: int, height: int, width: int, window: int):
    x = torch.arange(1, batch * height * width * 2 + 1).float().reshape(batch, height, width, 2)
    grid = WindowGrid(height, width, window)
    windows = grid.partition(x)
    rows, columns = -(-height // window), -(-width // window)
    single = rows == columns == 1
    assert windows.shape == ((batch, window**2, 1, 2) if single else (rows * columns, window**2, batch, 2))
    assert grid.divides == (height % window == 0 and width % window == 0)
    for b, i, j in [(0, 0, 0), (batch - 1, height - 1, width - 1), (batch // 2, height // 2, width // 3)]:
        token = i % window * window + j % window
        place = (b, token, 0) if single else (i // window * columns + j // window, token, b)
        assert torch.equal(windows[place], x[b, i, j])
    assert (windows == 0).sum() == batch * 2 * ((rows * columns * window**2) - height * width)  # the padding
    assert torch.equal(grid.merge(windows), x)


def test_a_map_of_one_window_is_not_copied():
    x = torch.randn(3, 4, 4, 5)
    assert WindowGrid(4, 4, 4).partition(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (4, 4)), ((4, 8), (4, 8)), ((5, 3), (8, 4))])
def test_padding_is_zero_and_right_and_bottom(size: tuple[int, int], padded: tuple[int, int]):
    x = torch.ones(2, *size, 3)
    y = pad_to_multiple(x, 4)
    assert y.shape == (2, *padded, 3)
    assert torch.equal(y[:, : size[0], : size[1]], x)
    assert y.sum() == x.sum()
