"""Conversion of NVIDIA TAO's DINO to mmdet's DINO."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from checkpoint_fixtures import authors_names
from conftest import ROOT, TINY, randomise
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tao_dino import TaoDetector
from torch import Tensor, nn

from mmgcvit import GCViT
from mmgcvit.checkpoint import CheckpointError
from mmgcvit.checkpoint.tao import TaoDino, TaoSettings, convert_tao_dino, find_tao_dino

SIZES = [(150, 117), (101, 160)]
BODY = "model.model.backbone.0.body."


def tao_detector(stages: tuple[int, ...] = (1, 2, 3), seed: int = 0, **options: Any) -> TaoDetector:
    """Build TAO's DINO with random values everywhere, over a tiny GC ViT."""
    torch.manual_seed(seed)
    backbone = GCViT(TINY, out_indices=stages, pad="window")
    model = randomise(TaoDetector(backbone, tuple(16 * 2**i for i in stages), **options), seed).eval()
    for layer in (*model.model.model.bbox_embed, model.model.model.transformer.enc_out_bbox_embed):
        layer.layers[-1].weight.data *= 0.3  # boxes inside of the limits of mmdet
        layer.layers[-1].bias.data *= 0.3
    return model


def tao_names(model: TaoDetector) -> dict[str, Tensor]:
    """The state dict with the backbone under the authors' names, as TAO saves it."""
    state = model.state_dict()
    body = {name[len(BODY) :]: value for name, value in state.items() if name.startswith(BODY)}
    norms = {name: body.pop(name) for name in list(body) if name.startswith("norm")}
    body = authors_names(body, TINY) | norms
    return {f"{BODY}{name}": value for name, value in body.items()} | {
        name: value for name, value in state.items() if not name.startswith(BODY)
    }


def mmdet_detector(converted: TaoDino) -> nn.Module:
    """Build the config of this repository with the converted settings, and load the converted tensors strictly."""
    pytest.importorskip("mmdet")
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    config = Config.fromfile(ROOT / "configs/detection/dino-4scale_gcvit-tiny_8xb2-12e_coco.py")
    config.merge_from_dict(dict(model=copy.deepcopy(converted.model)))
    model = MODELS.build(config.model)
    model.load_state_dict(converted.state_dict, strict=True)
    return model.eval()


def predict(model: nn.Module, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Scores and boxes of mmdet's DINO for all layers, as those of :class:`TaoDetector`."""
    from mmdet.structures import DetDataSample

    samples = [
        DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=tuple(images.shape[2:]))) for size in sizes
    ]
    outputs = model.forward_transformer(model.extract_feat(images), samples)
    outputs = {name: value for name, value in outputs.items() if name in ("hidden_states", "references")}
    return model.bbox_head(**outputs)


def batch(sizes: list[tuple[int, int]]) -> Tensor:
    """Random images, padded with zeros."""
    images = torch.zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    return images


def differ(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> float:
    """Largest difference of scores and boxes."""
    return max((a - b).abs().max().item() for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(shared=True, classes=3, levels=5),
        dict(stages=(0, 1, 2, 3), levels=5, points=(2, 4), layers=(1, 2), seed=1),
        dict(stages=(2, 3), levels=2, queries=9),
    ],
)
@torch.no_grad()
def test_equal_outputs(options: dict):
    """Batch of two odd sizes with padding: mmdet's scores and boxes of each layer are those of TAO's layout."""
    theirs = tao_detector(**options)
    converted = convert_tao_dino(tao_names(theirs), keep_background=True)
    ours = mmdet_detector(converted)
    images = batch(SIZES)
    wanted = theirs(images, SIZES)
    assert wanted[1].min() > 0.002
    assert wanted[1].max() < 0.998
    assert wanted[1].std() > 0.1
    assert differ(predict(ours, images, SIZES), wanted) < 2e-4
