"""Preprocessors of detectors and segmentors for any number of channels."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS

from mmgcvit.errors import UsageError

KINDS = (("mmdet", "DetDataPreprocessor", {}), ("mmseg", "SegDataPreProcessor", dict(size=(48, 64))))


def build(library: str, kind: str, ours: bool = True, **arguments):
    module = pytest.importorskip(f"{library}.models")
    return MODELS.build(dict(type=f"mmgcvit.{kind}", **arguments)) if ours else getattr(module, kind)(**arguments)


def batch(library: str, channels: int) -> dict:
    structures = pytest.importorskip(f"{library}.structures")
    generator = torch.Generator().manual_seed(0)
    shapes = ((40, 51), (37, 64))
    inputs = [torch.randint(0, 256, (channels, *shape), generator=generator, dtype=torch.uint8) for shape in shapes]
    kind = structures.DetDataSample if library == "mmdet" else structures.SegDataSample
    samples = [kind(metainfo=dict(img_shape=shape, ori_shape=shape)) for shape in shapes]
    if library == "mmdet":
        from mmengine.structures import InstanceData

        for sample in samples:
            sample.gt_instances = InstanceData()
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize(("library", "kind", "size"), KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_librarys_for_one_and_three_channels(library: str, kind: str, size: dict, channels: int):
    arguments = dict(mean=[90.0, 100.0, 110.0][:channels], std=[50.0, 60.0, 70.0][:channels], **size)
    arguments["bgr_to_rgb"] = channels == 3
    expected = build(library, kind, False, **arguments)(batch(library, channels), True)
    got = build(library, kind, **arguments)(batch(library, channels), True)
    torch.testing.assert_close(got["inputs"], expected["inputs"])
    for mine, theirs in zip(got["data_samples"], expected["data_samples"], strict=True):
        assert mine.metainfo == theirs.metainfo


@pytest.mark.parametrize(("library", "kind", "size"), KINDS)
@pytest.mark.parametrize("channels", [4, 6])
def test_every_channel_has_its_own_statistics(library: str, kind: str, size: dict, channels: int):
    mean, std = [10.0 * i for i in range(channels)], [5.0 + i for i in range(channels)]
    data = batch(library, channels)
    first = data["inputs"][0].float()
    got = build(library, kind, mean=mean, std=std, **size)(batch(library, channels), True)["inputs"]
    assert got.shape[:2] == (2, channels)
    for i in range(channels):
        torch.testing.assert_close(got[0, i, :40, :51], (first[i] - mean[i]) / std[i])
    assert not got[0, :, 40:].any()  # padded after normalizing
    reversed_ = build(library, kind, mean=mean, std=std, bgr_to_rgb=True, **size)(batch(library, channels), True)
    torch.testing.assert_close(reversed_["inputs"][0, 0, :40, :51], (first[2] - mean[0]) / std[0])
    torch.testing.assert_close(reversed_["inputs"][0, 3, :40, :51], (first[3] - mean[3]) / std[3])


@pytest.mark.parametrize(("library", "kind", "size"), KINDS)
def test_wrong_arguments(library: str, kind: str, size: dict):
    for arguments, says in (
        (dict(mean=[1.0, 2.0], std=[1.0]), r"mean=\[1.0, 2.0\], std=\[1.0\]; allowed: as many values in both"),
        (dict(mean=[1.0]), "std=None; allowed: as many values in both, or None"),
        (dict(bgr_to_rgb=True, rgb_to_bgr=True), "allowed: one of them"),
    ):
        with pytest.raises(UsageError, match=says):
            build(library, kind, **arguments, **size)
    with pytest.raises(
        UsageError, match=r"images have 3 channels as loaded, mean and std 4 values; allowed: one value"
    ):
        build(library, kind, mean=[1.0] * 4, std=[1.0] * 4, **size)(batch(library, 3))
    with pytest.raises(UsageError, match=r"bgr_to_rgb=True or rgb_to_bgr=True with 1 channel"):
        build(library, kind, mean=[1.0], std=[1.0], bgr_to_rgb=True, **size)(batch(library, 1))
