"""Shared fixtures and helpers: a tiny arch, and models whose parameters all have random values."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import _utils

# First, so that mmcv finds operators where it has no compiled ones.
import mmgcvit  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))  # at the end: some tools are named like modules

# When a Runner is garbage-collected, the workers of its data loaders are not notified; torch waits for each before
# killing it.
_utils.MP_STATUS_CHECK_INTERVAL = 0.1  # seconds, instead of 5

TINY = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window_size=(2, 2, 4, 2), layer_scale=1e-5)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Set every parameter to a random value with a visible effect, including norms, biases, tables and layer scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "gamma" in name:
                parameter.copy_(0.5 + 0.2 * noise)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim <= 1 or "bias_table" in name:
                parameter.copy_(0.3 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)
    return model


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest absolute difference relative to the largest absolute value."""
    assert got.shape == wanted.shape, f"{tuple(got.shape)} against {tuple(wanted.shape)}"
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


def loss_of(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weighted sum of all maps with a different weight for each element."""
    return sum((m * torch.linspace(-1, 1, m.numel(), dtype=m.dtype).reshape(m.shape)).sum() for m in maps)


@pytest.fixture
def tiny_model():
    """Factory of tiny GCViTs in evaluation mode; passes keyword arguments on."""
    from mmgcvit.backbone import GCViT

    def build(**kwargs):
        torch.manual_seed(0)
        return randomise(GCViT(**{"arch": TINY, **kwargs})).eval()

    return build


@pytest.fixture(scope="session")
def classifier():
    """A tiny GC ViT classifier of five classes with random values everywhere."""
    from mmgcvit import GCViTClassifier

    return randomise(GCViTClassifier(dict(arch=TINY), num_classes=5)).eval()


@pytest.fixture(scope="session")
def authors_dict(classifier) -> dict[str, torch.Tensor]:
    """The classifier's tensors under the authors' names."""
    from checkpoint_fixtures import authors_names

    return authors_names(classifier.state_dict(), TINY)


@pytest.fixture(scope="session")
def files(tmp_path_factory, classifier, authors_dict) -> dict[str, Path]:
    """Checkpoint files of the classifier, one per layout."""
    from checkpoint_fixtures import write_all

    return write_all(tmp_path_factory.mktemp("checkpoints"), classifier.state_dict(), authors_dict, TINY["embed_dims"])


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Messages logged by mmengine's current logger."""
    from mmengine.logging import MMLogger

    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    logger, handler = MMLogger.get_current_instance(), Keep()
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
