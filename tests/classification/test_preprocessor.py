"""Preprocessing of uint8 batches to the network's input."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.loader import PrefetchLoader
from timm.data.mixup import FastCollateMixup

from mmgcvit import ClassificationPreprocessor

MIX = dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0.1)


def batch(size: int = 4) -> dict:
    inputs = torch.randint(0, 256, (size, 3, 40, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return dict(inputs=inputs, targets=torch.arange(size) % 3, sample_idx=torch.arange(size))


def test_normalises_like_timm():
    image = Image.fromarray(batch()["inputs"][0].permute(1, 2, 0).numpy())
    timm = create_transform(input_size=(40, 36), crop_pct=1.0, crop_mode="squash")(image)
    ours = ClassificationPreprocessor()(batch())["inputs"][0]
    assert torch.allclose(ours, timm, atol=1e-6)
    assert torch.equal(ClassificationPreprocessor()(dict(inputs=timm[None]))["inputs"][0], timm)  # already normalised


def test_erasing_and_mixing_only_in_training():
    processor = ClassificationPreprocessor(num_classes=3, erasing=dict(probability=1.0, mode="pixel"), mixup=MIX)
    plain = ClassificationPreprocessor()(batch())
    calm = processor(batch(), training=False)
    assert torch.equal(calm["inputs"], plain["inputs"])
    assert torch.equal(calm["targets"], plain["targets"])
    np.random.seed(0)
    mixed = processor(batch(), training=True)
    assert mixed["targets"].shape == (4, 3)
    assert torch.allclose(mixed["targets"].sum(1), torch.ones(4))
    assert mixed["targets"].min() >= 0.1 / 3 - 1e-6
    assert not torch.equal(mixed["inputs"], plain["inputs"])
    erased = ClassificationPreprocessor(erasing=dict(probability=1.0, mode="pixel"))(batch(), training=True)
    changed = (erased["inputs"] != plain["inputs"]).any(1).float().mean((1, 2))
    assert ((changed > 0.01) & (changed < 0.5)).all()
    assert torch.equal(erased["targets"], plain["targets"])


@pytest.mark.parametrize("seed", range(6))  # covers mixup and cutmix
def test_mixing_normalising_and_erasing_equal_timm(seed: int):
    """Compares with timm's collate function and prefetcher on the same random numbers; they round mixtures to bytes."""
    data = batch()
    collate = FastCollateMixup(**MIX, num_classes=3)
    pairs = [(image.numpy(), int(target)) for image, target in zip(data["inputs"], data["targets"], strict=True)]
    np.random.seed(seed)
    random.seed(seed)
    loader = PrefetchLoader([collate(pairs)], device=torch.device("cpu"), re_prob=1.0, re_mode="const")
    wanted, targets = next(iter(loader))

    processor = ClassificationPreprocessor(num_classes=3, erasing=dict(probability=1.0, mode="const"), mixup=MIX)
    np.random.seed(seed)
    random.seed(seed)
    found = processor(data, training=True)
    assert torch.allclose(found["targets"], targets)
    assert torch.equal(found["inputs"] == 0, wanted == 0)  # the same erased rectangle in each image
    assert (wanted == 0).any()
    half = (0.51 / 255 / torch.tensor([0.229, 0.224, 0.225])).view(1, 3, 1, 1)
    assert ((found["inputs"] - wanted).abs() <= half).all()


def test_mixing_rejects_odd_batches():
    processor = ClassificationPreprocessor(num_classes=3, mixup=MIX)
    with pytest.raises(ValueError, match=r"a batch of 3 images; allowed with mixup.*drop_last=True"):
        processor(batch(3), training=True)
    assert processor(batch(3), training=False)["inputs"].shape == (3, 3, 40, 36)
    with pytest.raises(ValueError, match="num_classes=None; allowed with mixup"):
        ClassificationPreprocessor(mixup=MIX)
