"""Padding, packing and unpacking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from mmgcvit.backbone.windows import pad_to_multiple, split_into_regions, window_layout

CPU = torch.device("cpu")
SIZES = st.integers(1, 20)


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 3), height=SIZES, width=SIZES, window=st.integers(1, 8),
       limit=st.sampled_from([None, 1, 40, 10**6]))  # fmt: skip
def test_tokens_are_packed_in_order(batch: int, height: int, width: int, window: int, limit: int | None):
    x = torch.arange(batch * height * width * 2).float().reshape(batch, height, width, 2)
    layout = window_layout(tuple(x.shape), window, CPU, limit)
    packs = layout.pack(x)
    assert [len(p) for p in packs] == [sum(s.num_rows for s in pack.spans) for pack in layout.packs]
    for b, i, j in [(0, 0, 0), (batch - 1, height - 1, width - 1), (batch // 2, height // 2, width // 3)]:
        (n,) = (
            n
            for n, r in enumerate(layout.regions)
            if 0 <= i - r.top < r.grid_h * r.height and 0 <= j - r.left < r.grid_w * r.width
        )
        region = layout.regions[n]
        # windows cut off by an edge are smaller
        assert region.height == min(window, height - i // window * window)
        assert region.width == min(window, width - j // window * window)
        assert region.is_padded == (region.height * region.width < window**2)
        row, y = divmod(i - region.top, region.height)
        column, z = divmod(j - region.left, region.width)
        number = (b * region.grid_h + row) * region.grid_w + column
        ((part, pack, span),) = (
            (part, pack, span)
            for part, pack in zip(packs, layout.packs, strict=True)
            for span in pack.spans
            if span.index == n and span.first <= number < span.first + span.count
        )
        first = span.start + (number - span.first) * region.num_rows
        assert torch.equal(part[first + y * region.width + z], x[b, i, j])
        if region.is_padded:
            assert first + region.num_rows - 1 in pack.padding_rows.tolist()
    padding = sum(0 if pack.padding_rows is None else len(pack.padding_rows) for pack in layout.packs)
    assert padding == batch * sum(r.num_windows for r in layout.regions if r.is_padded)
    assert torch.equal(layout.unpack(list(packs), *x.shape[1:3]), x)
    layout.unpack(packs, *x.shape[1:3])
    assert packs == []


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        (None, [[4, 2, 2, 1]]),
        (80, [[4, 2, 2, 1]]),  # 64 + 26 + 18 + 7 rows are fewer than 1.5 * 80
        (40, [[2], [2], [2], [2], [1]]),  # 64 / 40 rounds to two packs, the edges fit into one each
        (24, [[1], [1], [2], [2], [2], [1]]),  # 64 / 24 rounds to three packs, of one or two windows
        (1, [[1]] * 9),  # no pack has less than a window
    ],
)
def test_packs_are_even(limit: int | None, sizes: list[list[int]]):
    """Windows per pack and region of a map of 10 x 11 tokens, 2 x 2 full windows."""
    layout = window_layout((1, 10, 11, 1), 4, CPU, limit)
    assert [[span.count for span in pack.spans] for pack in layout.packs] == sizes
    for pack in layout.packs:
        assert [span.is_whole for span in pack.spans] == [
            span.count == layout.regions[span.index].num_windows for span in pack.spans
        ]


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), height=SIZES, width=SIZES, limit=st.sampled_from([None, 40]))
def test_per_row_values_match_images(batch: int, height: int, width: int, limit: int | None):
    layout = window_layout((batch, height, width, 2), 3, CPU, limit)
    images = torch.arange(batch).float()
    packs = layout.pack(images.view(-1, 1, 1, 1).expand(-1, height, width, 2))
    for pack, rows, tokens in zip(layout.packs, layout.per_row(images), packs, strict=True):
        real = torch.ones(len(tokens), dtype=torch.bool)
        if pack.padding_rows is not None:
            real[pack.padding_rows] = False
        assert torch.equal(rows[real], tokens[real, 0])


@pytest.mark.parametrize("limit", [None, 100])
def test_padding_rows_pass_no_gradients(limit: int | None):
    x = torch.randn(2, 5, 7, 3, dtype=torch.double, requires_grad=True)
    layout = window_layout(tuple(x.shape), 4, CPU, limit)
    packs = layout.pack(x)
    assert torch.autograd.gradcheck(lambda x: layout.unpack(layout.pack(x), *x.shape[1:3]), (x,))
    weights = [torch.randn_like(p) for p in packs]
    y = layout.unpack([p * w for p, w in zip(packs, weights, strict=True)], *x.shape[1:3])
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, layout.unpack(list(weights), *x.shape[1:3]))


@pytest.mark.parametrize(("size", "regions"), [((8, 12), 1), ((9, 12), 2), ((8, 13), 2), ((9, 13), 4), ((3, 2), 1)])
def test_regions(size: tuple[int, int], regions: int):
    assert len(split_into_regions(*size, 4)) == regions


def test_single_window_map_is_not_copied():
    x = torch.randn(3, 4, 4, 5)
    layout = window_layout(tuple(x.shape), 4, CPU)
    (rows,) = layout.pack(x)
    assert rows.data_ptr() == layout.unpack([rows], *x.shape[1:3]).data_ptr() == x.data_ptr()


def test_query_of_single_image_is_not_copied():
    layout = window_layout((1, 8, 12, 6), 4, CPU)
    query = torch.randn(1, 2, 16, 3)
    (expanded,) = layout.expand_query(query)
    assert expanded.data_ptr() == query.data_ptr()


def test_queries_are_expanded_to_windows_of_their_image():
    layout = window_layout((2, 8, 7, 6), 4, CPU)
    query = torch.randn(2, 2, 16, 3)
    full, edge = layout.expand_query(query)
    assert full.shape == (4, 2, 16, 3)
    assert edge.shape == (4, 2, 4 * 3 + 1, 3)
    for window in range(4):  # two windows of each image in each region
        image = window // 2
        assert torch.equal(full[window], query[image])
        assert torch.equal(edge[window, :, :-1], query[image].unflatten(1, (4, 4))[:, :, :3].flatten(1, 2))


def test_layouts_are_cached_except_for_fake_tensors():
    arguments = ((2, 9, 9, 4), 4, CPU, None)
    assert window_layout(*arguments) is window_layout(*arguments)
    with FakeTensorMode():
        assert window_layout(*arguments) is not window_layout(*arguments)
    with torch.inference_mode():
        rows = window_layout((2, 11, 9, 4), 4, CPU, None).packs[0].padding_rows
    assert not rows.is_inference()


@pytest.mark.parametrize(("size", "padded"), [((1, 1), (4, 4)), ((4, 8), (4, 8)), ((5, 3), (8, 4))])
def test_zero_padding_at_right_and_bottom(size: tuple[int, int], padded: tuple[int, int]):
    x = torch.ones(2, *size, 3)
    y = pad_to_multiple(x, 4)
    assert y.shape == (2, *padded, 3)
    assert torch.equal(y[:, : size[0], : size[1]], x)
    assert y.sum() == x.sum()
