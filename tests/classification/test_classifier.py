"""The classifier."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY, randomise
from mmengine.registry import MODELS
from test_gcvit import PUBLISHED_PARAMETERS

from mmgcvit import GCViTClassifier, load_pretrained


@pytest.mark.parametrize("arch", PUBLISHED_PARAMETERS)
def test_parameters(arch: str):
    with torch.device("meta"):
        model = GCViTClassifier(dict(arch=arch))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS[arch]


def test_modes():
    model = randomise(MODELS.build(dict(type="GCViTClassifier", backbone=dict(arch=TINY), num_classes=5))).eval()
    images = torch.randn(3, 3, 70, 50)
    logits = model(images)
    assert logits.shape == (3, 5)
    assert torch.allclose(model(images, mode="predict"), logits.softmax(1))
    targets = torch.tensor([0, 4, 2])
    wanted = -logits.log_softmax(1)[torch.arange(3), targets].mean()
    assert torch.allclose(model(images, targets, mode="loss")["loss"], wanted)
    soft = torch.nn.functional.one_hot(targets, 5).float()
    assert torch.allclose(model(images, soft, mode="loss")["loss"], wanted)


def test_every_parameter_gets_a_gradient():
    model = randomise(GCViTClassifier(dict(arch=TINY), num_classes=5, drop_rate=0.5))
    model(torch.randn(2, 3, 64, 64), torch.tensor([1, 2]), mode="loss")["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_backbone_in_mmpretrain_classifier(classifier, files):
    """The backbone with mmpretrain's neck and head: computes a loss, and equal outputs with the same weights."""
    pytest.importorskip("mmpretrain")
    from mmpretrain.models import build_classifier
    from mmpretrain.structures import DataSample

    model = build_classifier(
        dict(
            type="ImageClassifier",
            backbone=dict(type="GCViT", arch=TINY, out_indices=(3,)),
            neck=dict(type="GlobalAveragePooling"),
            head=dict(type="LinearClsHead", num_classes=5, in_channels=128, loss=dict(type="CrossEntropyLoss")),
        )
    )
    report = load_pretrained(model, files["nvidia"])
    assert "head.weight" in report.loaded
    images, targets = torch.randn(3, 3, 64, 64), torch.tensor([0, 4, 2])
    samples = [DataSample().set_gt_label(int(target)) for target in targets]
    with torch.no_grad():
        expected = classifier(images, targets, mode="loss")["loss"]
        assert torch.allclose(model.eval()(images, samples, mode="loss")["loss"], expected, atol=1e-5)
        found = torch.stack([sample.pred_score for sample in model(images, samples, mode="predict")])
        assert torch.allclose(found, classifier(images, mode="predict"), atol=1e-5)
    model.train()(images, samples, mode="loss")["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_classes=0; allowed: an integer >= 1"):
        GCViTClassifier(dict(arch=TINY), num_classes=0)
    with pytest.raises(ValueError, match="drop_rate=1; allowed"):
        GCViTClassifier(dict(arch=TINY), drop_rate=1)
    with pytest.raises(ValueError, match=r"out_indices=\(0, 2\); allowed for a classifier: a tuple that ends with 3"):
        GCViTClassifier(dict(arch=TINY, out_indices=(0, 2)))
    model = GCViTClassifier(dict(arch=TINY), num_classes=5)
    with pytest.raises(ValueError, match="targets=None; allowed in mode 'loss'"):
        model(torch.randn(1, 3, 8, 8), mode="loss")
    with pytest.raises(ValueError, match="mode='train'; allowed: 'tensor', 'loss', 'predict'"):
        model(torch.randn(1, 3, 8, 8), mode="train")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights(smoothing: float):
    """An image counts as much as its class, a mixed one as much as the mean of its classes; one-hot targets agree."""
    weights = [1.0, 4.0, 0.5]
    arguments = dict(backbone=dict(arch=TINY), num_classes=3, label_smoothing=smoothing)
    model = randomise(GCViTClassifier(**arguments, class_weight=weights)).eval()
    assert "class_weight" not in model.state_dict()
    images, targets = torch.randn(4, 3, 40, 36), torch.tensor([0, 1, 2, 1])
    scores = model(images).log_softmax(1)
    smooth = (1 - smoothing) * torch.nn.functional.one_hot(targets, 3) + smoothing / 3
    each = -(smooth * scores).sum(1)
    count = torch.tensor(weights)[targets]
    torch.testing.assert_close(model(images, targets, mode="loss")["loss"], (each * count).sum() / count.sum())
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.2, 0.2, 0.6], [0.0, 0.0, 1.0]])
    count = mixed @ torch.tensor(weights)
    wanted = -((mixed * scores).sum(1) * count).sum() / count.sum()
    torch.testing.assert_close(model(images, mixed, mode="loss")["loss"], wanted)
    plain = GCViTClassifier(**arguments).eval()
    plain.load_state_dict(model.state_dict())
    equal = GCViTClassifier(**arguments, class_weight=[2.0] * 3).eval()
    equal.load_state_dict(model.state_dict())
    for target in (targets, mixed):
        torch.testing.assert_close(equal(images, target, mode="loss"), plain(images, target, mode="loss"))


def test_class_weights_keep_smoothed_probabilities():
    """The best prediction for an image is its smoothed target, whatever the weights; with torch's it is not."""
    model = GCViTClassifier(dict(arch=TINY), num_classes=3, label_smoothing=0.3, class_weight=[1.0, 50.0, 1.0])
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]).log().requires_grad_()
    model._weighted_loss(logits, torch.tensor([0, 1]), model.class_weight).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 0.0, 2.0]])
def test_bad_class_weights(weights: list[float]):
    with pytest.raises(ValueError, match=r"class_weight=\[.*; allowed: num_classes=3 numbers above 0"):
        GCViTClassifier(dict(arch=TINY), num_classes=3, class_weight=weights)
