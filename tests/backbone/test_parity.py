"""Equality with the outputs of the published implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import randomise, relative_error
from peer_files import PEER_ARCH, peer_answers, write_peer_file

from mmgcvit import GCViT, GCViTClassifier, load_pretrained

TOLERANCE = 1e-4


def test_authors_classification(tmp_path: Path):
    model = GCViTClassifier(dict(arch=PEER_ARCH), num_classes=10).eval()
    report = load_pretrained(model, write_peer_file("classification", tmp_path))
    assert report.layout == "nvidia"
    assert report.is_exact
    for size in peer_answers("authors_classification").values():
        with torch.no_grad():
            assert relative_error(model.backbone(size["input"])[0], size["norm"]) <= TOLERANCE
            assert relative_error(model(size["input"]), size["logits"]) <= TOLERANCE


def test_authors_detection_at_sizes_that_need_padding(tmp_path: Path):
    model = GCViT(PEER_ARCH, window_size=(12, 12, 12, 12), pad="window", global_query_reductions=(3, 2, 1, 0)).eval()
    report = load_pretrained(model, write_peer_file("detection", tmp_path))
    assert report.layout == "nvidia-detection"
    assert report.is_exact
    sizes = peer_answers("authors_detection")
    assert len(sizes) == 2
    for size in sizes.values():
        with torch.no_grad():
            maps = model(size["input"])
        for i, features in enumerate(maps):
            assert relative_error(features[:, :8], size[f"stage{i}"]) <= TOLERANCE, f"stage {i}"


def test_tfgcvit_at_sizes_that_need_padding(tmp_path: Path):
    model = GCViTClassifier(
        dict(arch=PEER_ARCH, pad="stage", global_query_interpolation="bilinear"), num_classes=10
    ).eval()
    report = load_pretrained(model, write_peer_file("tfgcvit", tmp_path))
    assert report.layout == "keras"
    assert report.is_exact
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1.001e-5
    before_downsampling: list[torch.Tensor] = []
    for stage in model.backbone.stages:
        stage.register_forward_hook(lambda module, args, output: before_downsampling.append(output))
    sizes = peer_answers("tfgcvit")
    assert len(sizes) == 3
    for size in sizes.values():
        before_downsampling.clear()
        with torch.no_grad():
            images = size["input"].permute(0, 3, 1, 2)
            logits = model(images)
        for i, features in enumerate(before_downsampling):
            assert relative_error(features[..., :8], size[f"stage{i}"]) <= TOLERANCE, f"stage {i}"
        assert relative_error(logits, size["logits"]) <= TOLERANCE
        with torch.no_grad():
            (features,) = model.backbone(images)
        assert relative_error(features[:, :8], size["norm"].permute(0, 3, 1, 2)) <= TOLERANCE


@pytest.mark.parametrize("name", ["xxtiny", "xtiny", "tiny", "small", "base"])
def test_timm(name: str):
    timm = pytest.importorskip("timm", minversion="1.0.31")
    theirs = randomise(timm.create_model(f"gcvit_{name}")).eval()
    ours = GCViTClassifier(dict(arch=name)).eval()
    report = load_pretrained(ours, theirs.state_dict())
    assert (report.layout, report.arch) == ("timm", (name,))
    assert report.is_exact
    # timm has no norm after the first three stages, so the outputs of these stages are compared.
    stages: list[torch.Tensor] = []
    for stage in ours.backbone.stages:
        stage.register_forward_hook(lambda module, args, output: stages.append(output.permute(0, 3, 1, 2)))
    # Images with very different contrast reveal a global query that leaks into the windows of another image.
    scale = torch.tensor([0.3, 1.0, 3.0]).reshape(3, 1, 1, 1)
    images = scale * torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, maps = theirs.forward_intermediates(images)
        logits = theirs.forward_head(wanted)
        assert relative_error(ours(images), logits) <= TOLERANCE
        assert len(maps) == 4
        for i in range(3):
            assert relative_error(stages[i], maps[i]) <= TOLERANCE, f"stage {i}"
        assert relative_error(ours.backbone(images)[0], wanted) <= TOLERANCE
