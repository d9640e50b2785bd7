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
    x = torch.arange(batch * height * width * 2).float().reshape(batch, height, width, 2)
    grid = WindowGrid(height, width, window)
    parts = [grid.cut(x, region) for region in grid.regions]
    assert sum(part.numel() for part in parts) == x.numel()  # nothing is padded
    for b, i, j in [(0, 0, 0), (batch - 1, height - 1, width - 1), (batch // 2, height // 2, width // 3)]:
        (n,) = (
            n
            for n, r in enumerate(grid.regions)
            if 0 <= i - r.top < r.rows * r.height and 0 <= j - r.left < r.columns * r.width
        )
        region = grid.regions[n]
        # a window is smaller than the others where an edge cuts it off
        assert region.height == min(window, height - i // window * window)
        assert region.width == min(window, width - j // window * window)
        row, y = divmod(i - region.top, region.height)
        column, z = divmod(j - region.left, region.width)
        token = y * region.width + z
        single = region.rows * region.columns == 1
        place = (b, token, 0) if single else (row * region.columns + column, token, b)
        assert torch.equal(parts[n][place], x[b, i, j])
    assert torch.equal(grid.merge(parts), x)


@pytest.mark.parametrize(("size", "regions"), [((8, 12), 1), ((9, 12), 2), ((8, 13), 2), ((9, 13), 4), ((3, 2), 1)])
def test_regions(size: tuple[int, int], regions: int):
    assert len(WindowGrid(*size, 4).regions) == regions


@pytest.mark.parametrize("size", [(4, 4), (3, 2)])
def test_a_map_of_one_window_is_not_copied(size: tuple[int, int]):
    x = torch.randn(3, *size, 5)
    grid = WindowGrid(*size, 4)
    windows = grid.cut(x, grid.regions[0])
    assert windows.data_ptr() == grid.merge([windows]).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (4, 4)), ((4, 8), (4, 8)), ((5, 3), (8, 4))])
def test_padding_is_zero_and_right_and_bottom(size: tuple[int, int], padded: tuple[int, int]):
    x = torch.ones(2, *size, 3)
    y = pad_to_multiple(x, 4)
    assert y.shape == (2, *padded, 3)
    assert torch.equal(y[:, : size[0], : size[1]], x)
    assert y.sum() == x.sum()
