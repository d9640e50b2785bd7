"""Equality with what the published implementations compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomise, relative_error

from mmgcvit import GCViT, GCViTClassifier, load_pretrained

PEERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "peers"
needs_peers = pytest.mark.skipif(not PEERS.is_dir(), reason="the recorded answers of the publishers' code are not here")

PEER_ARCH = dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), mlp_ratio=3, layer_scale=1e-5)
TOLERANCE = 1e-4


def answers(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """Size -> name -> tensor."""
    sizes: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(PEERS / name) as file:
        for key in file.files:
            size, part = key.split("/")
            sizes.setdefault(size, {})[part] = torch.from_numpy(file[key]).float()
    return sizes


@needs_peers
def test_authors_classification():
    model = GCViTClassifier(dict(arch=PEER_ARCH), num_classes=10).eval()
    report = load_pretrained(model, PEERS / "authors_classification.pth.tar")
    assert report.layout == "nvidia"
    assert report.is_plain
    for size in answers("authors_classification.npz").values():
        with torch.no_grad():
            assert relative_error(model.backbone(size["input"])[0], size["norm"]) <= TOLERANCE
            assert relative_error(model(size["input"]), size["logits"]) <= TOLERANCE


@needs_peers
def test_authors_detection_at_sizes_that_need_padding():
    model = GCViT(PEER_ARCH, window_size=(12, 12, 12, 12), pad="window", global_query_reductions=(3, 2, 1, 0)).eval()
    report = load_pretrained(model, PEERS / "authors_detection.pth")
    assert report.layout == "nvidia-detection"
    assert report.is_plain
    sizes = answers("authors_detection.npz")
    assert len(sizes) == 2
    for size in sizes.values():
        with torch.no_grad():
            maps = model(size["input"])
        for i, features in enumerate(maps):
            assert relative_error(features[:, :8], size[f"stage{i}"]) <= TOLERANCE, f"stage {i}"


@needs_peers
def test_tfgcvit_at_sizes_that_need_padding():
    pytest.importorskip("h5py")
    model = GCViTClassifier(
        dict(arch=PEER_ARCH, pad="stage", global_query_interpolation="bilinear"), num_classes=10
    ).eval()
    report = load_pretrained(model, PEERS / "tfgcvit.h5")
    assert report.layout == "keras"
    assert report.is_plain
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1.001e-5
    before_downsampling: list[torch.Tensor] = []
    for stage in model.backbone.stages:
        stage.register_forward_hook(lambda module, args, output: before_downsampling.append(output))
    sizes = answers("tfgcvit.npz")
    assert len(sizes) == 3
    for size in sizes.values():
        before_downsampling.clear()
        with torch.no_grad():
            pictures = size["input"].permute(0, 3, 1, 2)
            logits = model(pictures)
        for i, features in enumerate(before_downsampling):
            assert relative_error(features[..., :8], size[f"stage{i}"]) <= TOLERANCE, f"stage {i}"
        assert relative_error(logits, size["logits"]) <= TOLERANCE
        with torch.no_grad():
            (features,) = model.backbone(pictures)
        assert relative_error(features[:, :8], size["norm"].permute(0, 3, 1, 2)) <= TOLERANCE


@pytest.mark.parametrize("name", ["xxtiny", "xtiny", "tiny", "small", "base"])
def test_timm(name: str):
    timm = pytest.importorskip("timm", minversion="1.0.31")
    theirs = randomise(timm.create_model(f"gcvit_{name}")).eval()
    ours = GCViTClassifier(dict(arch=name)).eval()
    report = load_pretrained(ours, theirs.state_dict())
    assert (report.layout, report.arch) == ("timm", (name,))
    assert report.is_plain
    # timm has no norm behind the first three maps: what the stages give is compared there.
    stages: list[torch.Tensor] = []
    for stage in ours.backbone.stages:
        stage.register_forward_hook(lambda module, args, output: stages.append(output.permute(0, 3, 1, 2)))
    # Pictures of quite different contrast: a query that reached another picture's windows would show.
    scale = torch.tensor([0.3, 1.0, 3.0]).reshape(3, 1, 1, 1)
    pictures = scale * torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, maps = theirs.forward_intermediates(pictures)
        logits = theirs.forward_head(wanted)
        assert relative_error(ours(pictures), logits) <= TOLERANCE
        assert len(maps) == 4
        for i in range(3):
            assert relative_error(stages[i], maps[i]) <= TOLERANCE, f"stage {i}"
        assert relative_error(ours.backbone(pictures)[0], wanted) <= TOLERANCE
