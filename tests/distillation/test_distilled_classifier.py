"""A classifier with a teacher: its losses, what it trains and saves, and whole runs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from classification_run import COLOURS, config, make_tree
from conftest import TINY, randomise
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from teachers import NAME, network, save

from mmgcvit import GCViT, GCViTClassifier, apis, load_pretrained
from mmgcvit.checkpoint.complete import load_complete
from mmgcvit.distillation import DistilledClassifier
from mmgcvit.errors import UsageError
from mmgcvit.tasks import find_task


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("teacher"))


def build(file: str, **arguments) -> DistilledClassifier:
    cfg = dict(
        type="mmgcvit.DistilledClassifier",
        backbone=dict(arch=TINY),
        data_preprocessor=dict(type="mmgcvit.ClassificationPreprocessor", mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 1)),
        teacher=dict(name=NAME, checkpoint=file),
        logits=dict(temperature=3.0),
        num_classes=3,
    )
    model = MODELS.build(cfg | arguments)
    model.init_weights()
    return randomise(model)


def batch(size: int = 3) -> dict:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (size, 3, 70, 50), dtype=torch.uint8, generator=generator)
    return dict(inputs=images, targets=torch.arange(size) % 3, sample_idx=torch.arange(size))


def test_losses(file: str):
    """Each loss by another formula, with the teacher's own normalisation of the bytes."""
    model = build(file, features=dict(weight=0.25, stages=(2, 3), layers=(-2, -1)), label_weight=0.5).eval()
    data = model.data_preprocessor(batch())
    found = model(**data, mode="loss")
    assert found.keys() == {"loss_label", "loss_logits", "loss_features"}
    plain = GCViTClassifier(dict(arch=TINY), num_classes=3).eval()
    load_complete(plain, model.state_dict())
    with torch.no_grad():
        logits = plain(data["inputs"])
        teacher = network()
        mean, std = (torch.tensor(teacher.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
        images = (batch()["inputs"] / 255 - mean) / std
        soft = (teacher(images) / 3).softmax(1)
        divergence = (soft * (soft.log() - (logits / 3).log_softmax(1))).sum(1).mean()
        maps = teacher.forward_intermediates(images, indices=[-2, -1], intermediates_only=True)
        features = model.feature_loss(plain.backbone(data["inputs"], (2, 3)), maps)
    torch.testing.assert_close(found["loss_logits"], 9 * divergence, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss_features"], features, rtol=1e-4, atol=1e-5)
    wanted = 0.5 * torch.nn.functional.cross_entropy(logits, data["targets"])
    torch.testing.assert_close(found["loss_label"], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(**data, mode="predict"), logits.softmax(1), rtol=1e-4, atol=1e-5)


def test_only_the_student_is_trained(file: str):
    model = build(file, features=dict())
    model.train()
    teacher = model.teacher.load()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = build_optim_wrapper(model, dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1)))
    sum(model(**model.data_preprocessor(batch(), True), mode="loss").values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    optimizer.step()
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    trained = {id(p) for group in optimizer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters()}
    assert not trained & {id(p) for p in teacher.parameters()}


def test_state_dict_is_that_of_a_classifier(file: str):
    model, plain = build(file), GCViTClassifier(dict(arch=TINY), num_classes=3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())  # strict
    average = ExponentialMovingAverage(model)
    assert average.module.teacher is model.teacher
    assert sum(p.numel() for p in average.parameters()) == sum(p.numel() for p in plain.parameters())
    with_adapter = build(file, features=dict())
    others = with_adapter.state_dict().keys() - plain.state_dict().keys()
    assert others == {"feature_loss.adapters.0.weight", "feature_loss.adapters.0.bias"}
    assert load_complete(plain, with_adapter.state_dict()).unused == sorted(others, reverse=True)
    assert load_complete(with_adapter, plain.state_dict()).missing == []  # predictions do not need the adapter
    assert find_task(model) is find_task(plain)


def test_mixed_targets_and_no_targets(file: str):
    """Mixup's targets are probabilities; without labels the teacher's logits are enough."""
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6]])
    model = build(file).eval()
    inputs = model.data_preprocessor(batch())["inputs"]
    wanted = -(mixed * model(inputs).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model(inputs, mixed, mode="loss")["loss_label"], wanted)
    with pytest.raises(ValueError, match="targets=None; allowed in mode 'loss'"):
        model(inputs, mode="loss")
    assert build(file, label_weight=0.0)(inputs, mode="loss").keys() == {"loss_logits"}


def test_backbone_without_labels(file: str, tmp_path: Path):
    """There is no head: the file is a backbone for any model, and no classifier."""
    model = build(file, logits=None, features=dict(), label_weight=0.0, num_classes=1000)
    assert model(model.data_preprocessor(batch())["inputs"], mode="loss").keys() == {"loss_features"}
    assert not any(name.startswith("head") for name in model.state_dict())
    with pytest.raises(UsageError, match=r"mode='predict'; allowed: 'loss', as a model .* has no head"):
        model.test_step(batch())
    torch.save({"state_dict": model.state_dict()}, tmp_path / "pretrained.pth")
    backbone = GCViT(arch=TINY)
    assert "norm3.weight" in load_pretrained(backbone, tmp_path / "pretrained.pth").loaded
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
    with pytest.raises(ValueError, match="lacks head"):
        load_complete(GCViTClassifier(dict(arch=TINY), num_classes=3), model.state_dict())


def test_contradictions(file: str):
    with pytest.raises(UsageError, match=r"'test_resnet' has 1000 classes, but num_classes=3; allowed"):
        build(file, teacher=dict(name=NAME))
    with pytest.raises(UsageError, match="logits=None, features=None, so the teacher would not be used; allowed"):
        build(file, logits=None)
    with pytest.raises(UsageError, match="label_weight=-1; allowed: a number >= 0"):
        build(file, label_weight=-1)
    with pytest.raises(UsageError, match=r"stages=\(2, 3\) with layers=\(-1,\); allowed: stages that end with 3"):
        build(file, features=dict(stages=(2, 3)))
    with pytest.raises(UsageError, match=r"teacher: layers=\[-2\]; allowed in features only"):
        build(file, teacher=dict(name=NAME, layers=[-2]))
    with pytest.raises(UsageError, match=r"teacher: in_chans=3, but the backbone has in_channels=4; allowed"):
        build(file, backbone=dict(arch=TINY, in_channels=4))
    for name in ("mean", "std"):
        with pytest.raises(UsageError, match=rf"teacher: {name} of 2 values for in_chans=3; allowed: 1 or one per"):
            build(file, teacher={"name": NAME, "checkpoint": file, name: (0.5, 0.4)})
    with pytest.raises(
        UsageError, match="data_preprocessor=BaseDataPreprocessor has no mean and std, which are needed"
    ):
        build(file, data_preprocessor=None)


def distilled(tree: Path, work_dir: Path, file: str, **more):
    """Config of a run with a teacher."""
    cfg = config(tree, work_dir, workers=0, **more)
    cfg.model.update(type="mmgcvit.DistilledClassifier", teacher=dict(name=NAME, checkpoint=file),
                     logits=dict(temperature=2.0), features=dict(), label_weight=0.5)  # fmt: skip
    return cfg


def test_run_resumes_exactly_and_is_tested_without_its_teacher(tmp_path: Path):
    tree = make_tree(tmp_path / "colours", train=4)
    file = save(tmp_path, names=tuple(COLOURS))
    whole = apis.train(distilled(tree, tmp_path / "whole", file)).model.state_dict()
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "iter_4.pth").rename(tmp_path / "cut" / "iter_4.pth")
    cfg = distilled(tree, tmp_path / "cut", file)
    cfg.experiment_name += "-cut"
    resumed = apis.train(cfg, resume=str(tmp_path / "cut" / "iter_4.pth")).model.state_dict()
    assert not any("teacher" in name for name in whole)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name

    Path(file).unlink()  # a test does not need the teacher
    checkpoint = str(tmp_path / "whole" / "iter_6.pth")
    plain = config(tree, tmp_path / "plain", workers=0)
    results = apis.test(plain, checkpoint)
    taught = distilled(tree, tmp_path / "test", file)
    taught.experiment_name += "-test"
    assert apis.test(taught, checkpoint) == results
    again = distilled(tree, tmp_path / "again", file)
    again.experiment_name += "-again"
    with pytest.raises(UsageError, match=r"test_resnet-3\.pth"):
        apis.train(again)


def test_teacher_with_classes_in_another_order(tmp_path: Path):
    tree = make_tree(tmp_path / "colours", train=4)
    cfg = distilled(tree, tmp_path / "run", save(tmp_path, names=("green", "blue", "red")))
    with pytest.raises(UsageError, match="classes in another order than in the config: 'green' is label 0"):
        apis.train(cfg)


def test_run_without_labels_and_validation(tmp_path: Path):
    tree = make_tree(tmp_path / "colours", train=4)
    cfg = distilled(tree, tmp_path / "run", save(tmp_path), epochs=1)
    cfg.model.update(logits=None, label_weight=0.0, num_classes=1000)
    cfg.model.data_preprocessor.pop("mixup")
    for name in ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"):
        cfg[name] = None
    model = apis.train(cfg).model
    assert not hasattr(model, "head")
    init_default_scope("mmengine")
    copy.deepcopy(model)
