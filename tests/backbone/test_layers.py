"""The parts of stem, stages and blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise, relative_error

from mmgcvit.backbone.layers import Downsample, GlobalQuery, MBConv, Stem, drop_path


def test_mbconv_is_its_formula():
    mbconv = randomise(MBConv(8))
    x = torch.randn(2, 5, 7, 8)
    y = F.gelu(F.conv2d(x.permute(0, 3, 1, 2), mbconv.depthwise.weight, padding=1, groups=8))
    scale = F.gelu(y.mean((2, 3)) @ mbconv.se.fc1.weight.T) @ mbconv.se.fc2.weight.T
    y = F.conv2d(y * scale.sigmoid()[:, :, None, None], mbconv.pointwise.weight[:, :, None, None])
    assert relative_error(mbconv(x), x + y.permute(0, 2, 3, 1)) < 1e-5
    assert all("bias" not in name for name, _ in mbconv.named_parameters())


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 8)])
def test_stem_and_downsample_round_up(size: tuple[int, int]):
    height, width = size
    assert Downsample(4, 8)(torch.randn(2, height, width, 4)).shape == (2, -(-height // 2), -(-width // 2), 8)
    assert Stem(3, 8)(torch.randn(2, height, width, 3)).shape == (2, -(-height // 4), -(-width // 4), 8)


@pytest.mark.parametrize(("reductions", "interpolation"), [(0, "bicubic"), (1, "bicubic"), (2, "bilinear")])
@pytest.mark.parametrize("size", [(8, 8), (3, 17), (1, 1)])
def test_global_query(reductions: int, interpolation: str, size: tuple[int, int]):
    query = randomise(GlobalQuery(8, 2, 4, reductions, interpolation))
    assert len(query.mbconvs) == max(reductions, 1)
    x = torch.randn(3, *size, 8)
    got = query(x)
    y = x
    for mbconv in query.mbconvs:
        y = mbconv(y)
        if reductions:
            y = F.max_pool2d(y.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
    if y.shape[1:3] != (4, 4):
        y = F.interpolate(y.permute(0, 3, 1, 2), (4, 4), mode=interpolation).permute(0, 2, 3, 1)
    assert got.shape == (3, 2, 16, 4)
    for head in range(2):
        assert torch.allclose(got[:, head], y.reshape(3, 16, 8)[..., 4 * head : 4 * head + 4], atol=1e-6)


@pytest.mark.parametrize("axis", [0, 2])
def test_drop_path(axis: int):
    torch.manual_seed(0)
    shape = [5, 6, 7, 3]
    shape[axis] = 4000
    x = torch.ones(shape)
    assert drop_path(x, 0.25, axis, training=False) is x
    assert drop_path(x, 0.0, axis, training=True) is x
    pictures = drop_path(x, 0.25, axis, training=True).movedim(axis, 0).flatten(1)
    assert torch.allclose(pictures.amin(1), pictures.amax(1))  # whole or not at all
    assert sorted(set(pictures[:, 0].tolist())) == pytest.approx([0.0, 1 / 0.75])
    assert abs((pictures[:, 0] == 0).float().mean() - 0.25) < 0.03
