"""The backbone in torchvision, segmentation_models.pytorch, transformers and the Hub: each trains a step.

segmentation_models.pytorch and transformers are optional: their tests are skipped where they are not installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import randomise
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import EntryNotFoundError
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from mmgcvit.integrations.hub import HubGCViT
from mmgcvit.integrations.torchvision import GCViTWithFPN
from mmgcvit.timm import MODELS

TINY = dict(embed_dims=8, depths=(2, 1, 2, 2), num_heads=(1, 1, 2, 2), window_size=(4, 4, 4, 2))


def train_a_step(model: torch.nn.Module, loss: torch.Tensor) -> None:
    """Every parameter gets a gradient, and a step of the optimizer changes the weights."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    assert loss.isfinite()
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    before = next(iter(model.parameters())).detach().clone()
    optimizer.step()
    assert not torch.equal(before, next(iter(model.parameters())))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 90, 130, generator=torch.Generator().manual_seed(0))


def targets(count: int = 2) -> list[dict[str, torch.Tensor]]:
    boxes = torch.tensor([[10.0, 10, 60, 60], [30, 20, 90, 80]])
    masks = torch.zeros(2, 90, 130, dtype=torch.uint8)
    masks[:, 20:60, 30:60] = 1
    return [dict(boxes=boxes, labels=torch.tensor([1, 2]), masks=masks) for _ in range(count)]


def test_torchvision_mask_rcnn(images: torch.Tensor):
    torch.manual_seed(0)
    model = MaskRCNN(GCViTWithFPN(TINY, out_channels=16), num_classes=3, min_size=64, max_size=128)
    train_a_step(model, sum(model(list(images), targets()).values()))
    predictions = model.eval()([images[0], images[1, :, :70, :50]])
    assert [sorted(p) for p in predictions] == [["boxes", "labels", "masks", "scores"]] * 2


def test_torchvision_retinanet(images: torch.Tensor):
    torch.manual_seed(0)
    backbone = GCViTWithFPN(TINY, out_channels=16, extra_blocks=LastLevelP6P7(16, 16), out_indices=(1, 2, 3))
    assert list(backbone(images)) == ["0", "1", "2", "p6", "p7"]
    anchors = AnchorGenerator(tuple((x, int(x * 1.3)) for x in (16, 32, 64, 128, 256)), ((0.5, 1.0, 2.0),) * 5)
    model = RetinaNet(backbone, num_classes=3, anchor_generator=anchors, min_size=64, max_size=128)
    train_a_step(model, sum(model(list(images), targets()).values()))


def test_torchvision_backbone_loads_weights(tmp_path: Path):
    torch.manual_seed(0)
    source = GCViTWithFPN(TINY, out_channels=16)
    torch.save(source.body.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(1)
    loaded = GCViTWithFPN(TINY, tmp_path / "weights.pth", out_channels=16)
    torch.testing.assert_close(loaded.body.state_dict(), source.body.state_dict())


def test_hub_model_is_saved_and_loaded_exactly(tmp_path: Path, images: torch.Tensor):
    model = HubGCViT(TINY, pad="window", out_indices=(1, 3)).eval()
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {file.name for file in tmp_path.iterdir()}
    loaded = HubGCViT.from_pretrained(tmp_path).eval()
    assert loaded.arch == model.arch
    assert (loaded.pad, loaded.out_indices) == ("window", (1, 3))
    with torch.no_grad():
        for a, b in zip(loaded(images), model(images), strict=True):
            assert torch.equal(a, b)


@pytest.fixture
def uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that gets the files uploaded to the Hub, of which nothing else is called."""
    folder = tmp_path / "uploaded"

    def create_repo(_: HfApi, repo_id: str, **__: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(_: HfApi, *, repo_id: str, folder_path: Path, **__: object) -> str:
        assert repo_id == "somebody/gcvit"
        shutil.copytree(folder_path, folder)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def create_commit(_: HfApi, *, repo_id: str, operations: list, **__: object) -> str:
        assert repo_id == "somebody/gcvit"
        for operation in operations:
            (folder / operation.path_in_repo).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(operation.path_or_fileobj, folder / operation.path_in_repo)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def load(*_: object, **__: object) -> ModelCard:
        raise EntryNotFoundError("a new repository has no README.md")

    for method in (create_repo, upload_folder, create_commit):
        monkeypatch.setattr(HfApi, method.__name__, method)
    monkeypatch.setattr(ModelCard, "load", load)
    return folder


def test_hub_model_is_pushed_whole(uploaded: Path, images: torch.Tensor):
    model = randomise(HubGCViT(TINY, pad="stage", out_indices=(0, 2))).eval()
    assert model.push_to_hub("somebody/gcvit").startswith("https://huggingface.co/somebody/gcvit")
    assert {file.name for file in uploaded.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    card = ModelCard((uploaded / "README.md").read_text(encoding="utf-8"))
    assert card.data.library_name == "mmgcvit"
    assert {"gcvit", "backbone"} <= set(card.data.tags)
    loaded = HubGCViT.from_pretrained(uploaded).eval()
    with torch.no_grad():
        for a, b in zip(loaded(images), model(images), strict=True):
            assert torch.equal(a, b)


SMP_DECODERS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "UPerNet", "Segformer")


@pytest.mark.parametrize("decoder", SMP_DECODERS)
def test_every_decoder_of_segmentation_models(decoder: str, images: torch.Tensor):
    smp = pytest.importorskip("segmentation_models_pytorch")

    torch.manual_seed(0)
    tiny = dict(TINY, depths=(1, 1, 1, 1))
    model = getattr(smp, decoder)(f"tu-{MODELS[0]}", encoder_weights=None, classes=3, arch=tiny)
    x = torch.nn.functional.pad(images, (0, 160 - 130, 0, 96 - 90))  # smp requires multiples of 32
    logits = model(x)
    assert logits.shape == (2, 3, 96, 160)
    train_a_step(model, torch.nn.functional.cross_entropy(logits, torch.randint(0, 3, (2, 96, 160))))


@pytest.mark.parametrize("decoder", ["DeepLabV3", "DeepLabV3Plus", "PAN"])
def test_decoders_that_dilate_the_encoder_are_refused(decoder: str):
    smp = pytest.importorskip("segmentation_models_pytorch")

    with pytest.raises(ValueError, match=r"output_stride=(8|16); allowed: 32"):
        getattr(smp, decoder)(f"tu-{MODELS[0]}", encoder_weights=None, classes=3)


def reload(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


def test_transformers_backbone_is_saved_and_loaded_exactly(tmp_path: Path, images: torch.Tensor):
    transformers = pytest.importorskip("transformers")
    from mmgcvit.integrations.huggingface import GCViTBackbone, GCViTConfig

    config = GCViTConfig(arch=TINY, pad="window", out_features=["stage1", "stage4"])
    model = transformers.AutoBackbone.from_config(config).eval()
    assert model.channels == [8, 64]
    model.save_pretrained(tmp_path)
    loaded = GCViTBackbone.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        maps = [m(images, output_hidden_states=True) for m in (model, loaded)]
        assert model(images).hidden_states is None
        assert len(model(images, return_dict=False)) == 1
    assert [tuple(y.shape) for y in maps[0].feature_maps] == [(2, 8, 23, 33), (2, 64, 3, 5)]
    assert all(torch.equal(a, b) for a, b in zip(maps[0].feature_maps, maps[1].feature_maps, strict=True))
    assert len(maps[0].hidden_states) == 2


def transformers_backbone() -> torch.nn.Module:
    from mmgcvit.integrations.huggingface import GCViTBackbone, GCViTConfig

    return GCViTBackbone(GCViTConfig(arch=TINY, pad="stage", out_indices=[1, 3]))


def transformers_upernet() -> torch.nn.Module:
    import transformers

    from mmgcvit.integrations.huggingface import GCViTConfig

    config = transformers.UperNetConfig(
        backbone_config=GCViTConfig(arch=TINY, out_indices=[0, 1, 2, 3]), num_labels=3, hidden_size=16,
        auxiliary_in_channels=32, auxiliary_channels=8,
    )  # fmt: skip
    return transformers.UperNetForSemanticSegmentation(config)


@pytest.mark.parametrize("build", [transformers_backbone, transformers_upernet])
def test_transformers_models_are_pushed_whole(
    build: Callable[[], torch.nn.Module], uploaded: Path, images: torch.Tensor
):
    pytest.importorskip("transformers")

    model = randomise(build()).eval()
    assert model.push_to_hub("somebody/gcvit").startswith("https://huggingface.co/somebody/gcvit")
    assert {file.name for file in uploaded.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    loaded = type(model).from_pretrained(uploaded).eval()
    with torch.no_grad():
        a, b = (m(images, return_dict=False) for m in (loaded, model))
    for got, wanted in zip(a[0], b[0], strict=True):
        assert torch.equal(got, wanted)


def test_transformers_backbone_loads_published_layouts(tmp_path: Path):
    pytest.importorskip("transformers")
    import timm

    from mmgcvit.integrations.huggingface import GCViTBackbone, GCViTConfig

    theirs = timm.create_model("gcvit_xxtiny")
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = GCViTBackbone(GCViTConfig(arch="xxtiny"))
    model.load_published(str(tmp_path / "timm.pth"))
    torch.testing.assert_close(
        model.backbone.stages[0].blocks[0].mlp.fc1.weight, theirs.stages[0].blocks[0].mlp.fc1.weight
    )


def test_transformers_upernet(tmp_path: Path, images: torch.Tensor):
    pytest.importorskip("transformers")

    torch.manual_seed(0)
    model = transformers_upernet()
    train_a_step(model, model(images, labels=torch.randint(0, 3, (2, 90, 130))).loss)
    model.eval()
    with torch.no_grad():
        assert torch.equal(reload(model, tmp_path)(images).logits, model(images).logits)


def test_transformers_mask2former(tmp_path: Path, images: torch.Tensor):
    transformers = pytest.importorskip("transformers")
    from mmgcvit.integrations.huggingface import GCViTConfig

    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(
        backbone_config=GCViTConfig(arch=TINY, out_indices=[0, 1, 2, 3]),
        num_labels=3, num_queries=5, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, encoder_feedforward_dim=32, dim_feedforward=32, train_num_points=64,
    )  # fmt: skip
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    masks = [torch.randint(0, 2, (2, 90, 130)).float() for _ in range(2)]
    train_a_step(model, model(images, mask_labels=masks, class_labels=[torch.tensor([0, 1])] * 2).loss)
    model.eval()
    with torch.no_grad():
        a, b = reload(model, tmp_path)(images), model(images)
    assert torch.equal(a.masks_queries_logits, b.masks_queries_logits)
