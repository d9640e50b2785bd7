"""Equality with what the published implementations compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomise, relative_error
from foreign import NVIDIA, TIMM, from_keras, rename

from mmgcvit.backbone import GCViT

PEERS = Path(__file__).resolve().parents[3] / "shared" / "data" / "peers"
needs_peers = pytest.mark.skipif(not PEERS.is_dir(), reason="the recorded answers of the publishers' code are not here")

PEER_HEADS = (1, 2, 4, 8)
PEER_ARCH = dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=PEER_HEADS, mlp_ratio=3, layer_scale=1e-5)
TOLERANCE = 1e-4


def answers(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """Size -> name -> tensor."""
    sizes: dict[str, dict[str, torch.Tensor]] = {}
    with np.load(PEERS / name) as file:
        for key in file.files:
            size, part = key.split("/")
            sizes.setdefault(size, {})[part] = torch.from_numpy(file[key]).float()
    return sizes


def load(model: GCViT, state: dict[str, torch.Tensor], absent: tuple[str, ...] = ()) -> GCViT:
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == set(absent)
    return model.eval()


@needs_peers
def test_authors_classification():
    file = torch.load(PEERS / "authors_classification.pth.tar", weights_only=False)
    model = load(GCViT(PEER_ARCH, out_indices=(3,)), rename(file["state_dict"], NVIDIA, PEER_HEADS))
    for size in answers("authors_classification.npz").values():
        with torch.no_grad():
            (features,) = model(size["input"])
        assert relative_error(features, size["norm"]) <= TOLERANCE
        logits = features.mean((2, 3)) @ file["state_dict"]["head.weight"].T + file["state_dict"]["head.bias"]
        assert relative_error(logits, size["logits"]) <= TOLERANCE


@needs_peers
def test_authors_detection_at_sizes_that_need_padding():
    state = torch.load(PEERS / "authors_detection.pth", weights_only=True)["state_dict"]
    state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    model = GCViT(PEER_ARCH, window_size=(12, 12, 12, 12), pad="window", global_query_reductions=(3, 2, 1, 0))
    load(model, rename(state, NVIDIA, PEER_HEADS))
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
    keras = from_keras(str(PEERS / "tfgcvit.h5"))
    model = GCViT(PEER_ARCH, pad="stage", global_query_interpolation="bilinear")
    load(model, rename(keras, NVIDIA, PEER_HEADS), absent=("norm0", "norm1", "norm2"))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1.001e-5
    before_downsampling: list[torch.Tensor] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, args, output: before_downsampling.append(output))
    sizes = answers("tfgcvit.npz")
    assert len(sizes) == 3
    for size in sizes.values():
        before_downsampling.clear()
        with torch.no_grad():
            maps = model(size["input"].permute(0, 3, 1, 2))
        for i, features in enumerate(before_downsampling):
            assert relative_error(features[..., :8], size[f"stage{i}"]) <= TOLERANCE, f"stage {i}"
        features = maps[3].permute(0, 2, 3, 1)
        assert relative_error(features[..., :8], size["norm"]) <= TOLERANCE
        logits = features.mean((1, 2)) @ keras["head.weight"].T + keras["head.bias"]
        assert relative_error(logits, size["logits"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["xxtiny", "tiny", "small"])
def test_timm(name: str):
    timm = pytest.importorskip("timm", minversion="1.0.31")
    theirs = randomise(timm.create_model(f"gcvit_{name}")).eval()
    state = theirs.state_dict()
    ours = GCViT(name)
    load(ours, rename(state, TIMM, ours.arch.num_heads), absent=("norm0", "norm1", "norm2"))
    # timm has no norm behind the first three maps: what the stages give is compared there.
    stages: list[torch.Tensor] = []
    for stage in ours.stages:
        stage.register_forward_hook(lambda module, args, output: stages.append(output.permute(0, 3, 1, 2)))
    # Pictures of quite different contrast: a query that reached another picture's windows would show.
    scale = torch.tensor([0.3, 1.0, 3.0]).reshape(3, 1, 1, 1)
    pictures = scale * torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = ours(pictures)[3]
        wanted, maps = theirs.forward_intermediates(pictures)
        logits = theirs.forward_head(wanted)
    assert len(maps) == 4
    for i in range(3):
        assert relative_error(stages[i], maps[i]) <= TOLERANCE, f"stage {i}"
    assert relative_error(features, wanted) <= TOLERANCE
    ours_logits = features.mean((2, 3)) @ state["head.fc.weight"].T + state["head.fc.bias"]
    assert relative_error(ours_logits, logits) <= TOLERANCE
