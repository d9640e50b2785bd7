"""Loading into classifiers, detectors and segmentors that contain a GC ViT."""

from __future__ import annotations

import copy

import pytest
import torch
from checkpoint_fixtures import Detector, assert_loaded, unchanged
from conftest import TINY
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from mmgcvit import GCViT, GCViTClassifier, compat, load_pretrained
from mmgcvit.checkpoint import CheckpointError, accept_bare_network


def test_load_state_dict_into_a_classifier(authors_dict, files, classifier):
    from safetensors.torch import load_file

    for state in (authors_dict, load_file(files["timm"]), {f"module.{k}": v for k, v in authors_dict.items()}):
        model = GCViTClassifier(dict(arch=TINY), num_classes=5)
        model.load_state_dict(state)
        for name, value in classifier.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("layout", ["nvidia", "nvidia-detection", "mmgcvit"])
def test_load_checkpoint_of_mmengine(files, classifier, logged, layout: str):
    """Like ``load_from`` in a config, with strict=False."""
    model = Detector()
    accept_bare_network(model)
    load_checkpoint(model, str(files[layout]), map_location="cpu", logger="current")
    assert_loaded(model.backbone, classifier)
    if layout == "nvidia":
        assert any("weights from a state dict (layout nvidia" in m and "(head)" in m for m in logged)


@pytest.mark.parametrize("accepts", [True, False])
def test_state_dict_without_the_network(classifier, tmp_path, logged, accepts: bool):
    """As in torch, ``strict=False`` takes weights of other parts; a warning says that the backbone gets none."""
    model = Detector()
    if accepts:
        accept_bare_network(model)
    check = unchanged(model.backbone)
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    torch.save({"neck.weight": torch.full_like(model.neck.weight, 3)}, tmp_path / "neck.pth")
    for name in ("resnet.pth", "neck.pth"):
        logged.clear()
        load_checkpoint(model, str(tmp_path / name), logger="current")
        assert sum("GCViT at 'backbone': the state dict has no weights for it" in m for m in logged) == 1
    assert model.neck.weight.eq(3).all()
    check()
    with pytest.raises(RuntimeError, match=r"Missing key.*backbone\.stem"):
        model.load_state_dict(torch.load(tmp_path / "neck.pth"))


@pytest.mark.parametrize("accepts", [True, False])
def test_partial_state_dict(classifier, logged, accepts: bool):
    """Some of the network's own tensors, all of the right shape: adapters, or trained parameters only."""
    model = Detector()
    if accepts:
        accept_bare_network(model)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    state = {f"backbone.{k}": v + 1 for k, v in before.items() if "mlp" not in k}
    model.load_state_dict(state, strict=False)
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, before[name] + ("mlp" not in name))
    assert any("loaded: 162 tensors\n  left at initial values: 32 tensors (stages (32))" in m for m in logged)
    # With one tensor that does not fit, it is no part of this network.
    state["backbone.stem.conv.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(CheckpointError, match="embed_dims 8 in the file, 16 in the model"):
        model.load_state_dict(state, strict=False)


def test_bare_network_in_whole_model(files, authors_dict, logged):
    """The backbone sees only its part of the state dict; the warning names the alternatives."""
    model = Detector()
    check = unchanged(model.backbone)
    for load in (
        lambda: model.load_state_dict(authors_dict, strict=False),
        lambda: load_checkpoint(model, str(files["nvidia"]), map_location="cpu", logger="current"),
    ):
        logged.clear()
        load()
        assert any("mmgcvit.load_pretrained(model, file)" in m and "accept_bare_network" in m for m in logged)
    check()


def test_accept_bare_network_affects_only_its_model(authors_dict, classifier):
    """Other models are unaffected, and a repeated call has no effect."""
    model, other = nn.ModuleDict({"module": Detector()}), Detector()
    for _ in range(2):
        accept_bare_network(model)
    assert len(compat.load_state_dict_pre_hooks(model["module"])) == 1
    assert compat.load_state_dict_pre_hooks(model) == compat.load_state_dict_pre_hooks(other) == []
    assert compat.load_state_dict_pre_hooks(nn.Sequential(GCViT(TINY))) == []
    model.load_state_dict({f"module.{k}": v for k, v in authors_dict.items()}, strict=False)
    assert_loaded(model["module"].backbone, classifier)


def test_model_with_hooks_is_copied_and_pickled(classifier, tmp_path, authors_dict):
    model = Detector()
    accept_bare_network(model)
    model = copy.deepcopy(model)
    torch.save(model, tmp_path / "model.pth")
    for got in (model, torch.load(tmp_path / "model.pth", weights_only=False)):
        load_checkpoint(got, _saved(authors_dict, tmp_path), logger="current")
        assert_loaded(got.backbone, classifier)


def _saved(state: dict, folder) -> str:
    torch.save(state, folder / "bare.pth")
    return str(folder / "bare.pth")


@pytest.mark.parametrize(("package", "config"), [
    ("mmdet", "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"),
    ("mmseg", None),
])  # fmt: skip
def test_init_cfg_inside_detectors_and_segmentors(package: str, config: str | None, files, classifier):
    pytest.importorskip("mmcv._ext")
    pytest.importorskip(package)
    init_cfg = dict(type="Pretrained", checkpoint=str(files["nvidia"]))
    backbone = dict(type="GCViT", arch=TINY, init_cfg=init_cfg)
    channels = [16, 32, 64, 128]
    if package == "mmdet":
        from mmdet.utils import register_all_modules
        from mmengine.hub import get_config

        register_all_modules()
        cfg = get_config(config).model
        cfg.backbone, cfg.neck.in_channels = backbone, channels
    else:
        from mmseg.utils import register_all_modules

        register_all_modules()
        norm = dict(type="BN")
        cfg = dict(
            type="mmseg.EncoderDecoder",
            backbone=backbone,
            train_cfg=dict(),
            test_cfg=dict(mode="whole"),
            decode_head=dict(
                type="UPerHead",
                in_channels=channels,
                in_index=[0, 1, 2, 3],
                channels=16,
                num_classes=3,
                norm_cfg=norm,
                pool_scales=(1, 2),
            ),
        )
    model = MODELS.build(cfg)
    model.init_weights()
    assert_loaded(model.backbone, classifier)
    # and without init_cfg, through load_state_dict of the whole model
    accept_bare_network(model)
    model.backbone.stem.conv.weight.data.zero_()
    load_checkpoint(model, str(files["nvidia"]), logger="current")
    assert_loaded(model.backbone, classifier)


def test_load_from_reports_skipped_heads(logged, tmp_path):
    """For a fine-tuned detector with another number of classes, with mmengine's own loading."""
    pytest.importorskip("mmcv._ext")
    pytest.importorskip("mmdet")
    from conftest import ROOT
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    cfg = Config.fromfile(ROOT / "configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py").model
    ten = MODELS.build(cfg)
    torch.save(dict(state_dict=ten.state_dict()), tmp_path / "ten.pth")
    cfg.roi_head.bbox_head.num_classes = 3
    three = MODELS.build(cfg)
    load_checkpoint(three, str(tmp_path / "ten.pth"), logger="current")
    (message,) = [m for m in logged if "do not match exactly" in m]
    assert "size mismatch for roi_head.bbox_head.fc_cls.weight" in message
    assert "size mismatch for roi_head.bbox_head.fc_cls.bias" in message
    for name, value in ten.state_dict().items():
        if "fc_cls" not in name:
            assert torch.equal(three.state_dict()[name], value), name


def test_heads_of_wrapped_and_of_other_classifiers(authors_dict, files, classifier, logged):
    model = GCViTClassifier(dict(arch=TINY), num_classes=5)
    assert load_pretrained(nn.ModuleDict({"module": model}), files["nvidia"]).is_exact
    assert torch.equal(model.head.weight, classifier.head.weight)
    model.head = nn.Linear(7, 5)
    report = load_pretrained(model, files["nvidia"])
    assert report.notes == ["head: 5 classes of 128 channels in the file, 5 of 7 in the model: skipped"]
    other = GCViTClassifier(dict(arch=TINY), num_classes=4)
    before = other.head.weight.clone()
    other.load_state_dict(authors_dict)
    assert torch.equal(other.head.weight, before)
    assert "GCViT: head of 5 classes in the state dict, 4 in the model: skipped" in logged
