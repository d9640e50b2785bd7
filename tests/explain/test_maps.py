"""Feature maps, class activation maps, and their place in the original image, against computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from mmgcvit import GCViTClassifier
from mmgcvit.errors import UsageError
from mmgcvit.explain import cam, feature_maps, pca_colours
from mmgcvit.explain.drawing import on_image, sheet
from mmgcvit.explain.maps import main_stage, stage_with_places
from mmgcvit.tasks.base import CamTarget, NetworkInput, TrainedModel
from mmgcvit.tasks.classification.cam import class_target


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def target(classifier: GCViTClassifier) -> CamTarget:
    place = NetworkInput(images(1, 3, 97, 135), (97, 135))
    return class_target(TrainedModel(classifier, tuple("abcde"), ()), place, None)


def test_maps_of_all_stages(tiny_model, classifier: GCViTClassifier):
    image = images(2, 3, 50, 83)
    model = tiny_model()
    for found, wanted in zip(feature_maps(model, image), model(image), strict=True):
        torch.testing.assert_close(found, wanted)
    found = feature_maps(classifier, image)
    assert [x.shape[1:] for x in found] == [(16, 13, 21), (32, 7, 11), (64, 4, 6), (128, 2, 3)]
    torch.testing.assert_close(found[3], classifier.backbone(image)[0])
    assert not any(m._forward_hooks for m in classifier.modules())


def test_colours_are_principal_components():
    features = images(6, 9, 11)
    features[0] *= 20  # the first component
    colours = pca_colours(features, 8, 10)
    assert colours.shape == (9, 11, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    red = np.clip(colours[:8, :10, 0], 0.02, 0.98).ravel()
    assert abs(np.corrcoef(red, features[0, :8, :10].numpy().ravel())[0, 1]) > 0.98
    np.testing.assert_allclose(pca_colours(3 * features + 1, 8, 10), colours, atol=1e-5)
    other = features.clone()
    other[:, 8:] = 99  # padding has no effect on the colours of the image
    np.testing.assert_allclose(pca_colours(other, 8, 10)[:8, :10], colours[:8, :10], atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 1, 1), (2, 3, 4), (1, 7, 2)])
def test_colours_of_little(shape: tuple[int, ...]):
    colours = pca_colours(images(*shape))
    assert colours.shape == (*shape[1:], 3)
    assert np.isfinite(colours).all()
    assert (pca_colours(torch.ones(shape)) == 0.5).all()


def test_gradcam_of_a_linear_head(classifier: GCViTClassifier, target: CamTarget):
    """The gradient of a class score is the weight of the class, the same at every position."""
    pytest.importorskip("pytorch_grad_cam")
    image = images(1, 3, 97, 135)
    label = int(classifier(image).argmax())
    wanted = torch.einsum("c,chw->hw", classifier.head.weight[label], classifier.backbone(image)[0][0]).detach()
    wanted = (wanted.clamp(min=0) / wanted.max())[None, None]
    wanted -= wanted.min()
    extent = (wanted.shape[2] * 32, wanted.shape[3] * 32)
    wanted = F.interpolate(wanted, extent, mode="bilinear")[0, 0, :97, :135].numpy()
    for method in ("gradcam", "hirescam"):  # a constant gradient
        found = cam(classifier, image, target, method, 3)
        assert found.shape == (97, 135)
        np.testing.assert_allclose(found, wanted / wanted.max() * found.max(), atol=2e-3)
    assert all(p.requires_grad for p in classifier.parameters())
    assert not any(m._forward_hooks for m in classifier.modules())


def test_eigencam_has_a_definite_sign(classifier: GCViTClassifier, target: CamTarget):
    pytest.importorskip("pytorch_grad_cam")
    image = images(1, 3, 128, 192)
    found = cam(classifier, image, target, "eigencam", 1)
    features = feature_maps(classifier, image)[1][0].flatten(1).T
    features = (features - features.mean(0)).double()
    values = features @ torch.linalg.eigh(features.T @ features)[1][:, -1]
    values = (values if values.max() > -values.min() else -values).clamp(min=0).unflatten(0, (16, 24))
    wanted = F.interpolate((values / values.max())[None, None], (128, 192), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(found, wanted / wanted.max(), atol=2e-3)


def test_local_targets_need_local_gradients(tiny_model):
    """A target that depends on a corner: HiResCAM is zero elsewhere."""
    pytest.importorskip("pytorch_grad_cam")
    model, image = tiny_model(), images(1, 3, 96, 160)
    corner = CamTarget(model, lambda maps: maps[:, :5, :5].square().sum(), "corner")
    corner = CamTarget(lambda x: [model(x)[1][0]], corner.score, "corner")
    assert main_stage(model, image, corner) == 1
    found = cam(model, image, corner, "hirescam", 1)
    assert found[:40, :40].max() == pytest.approx(1, abs=1e-4)
    assert found[56:].max() == found[:, 56:].max() == 0
    with pytest.raises(UsageError, match=r"stage=0 for hirescam: the gradient of 'corner' is zero"):
        cam(model, image, corner, "hirescam", 0)
    nothing = CamTarget(lambda x: [model(x)[1][0]], lambda maps: (0 * maps).sum(), "nothing")
    with pytest.raises(UsageError, match="the gradient of 'nothing' is zero"):
        main_stage(model, image, nothing)


def test_frozen_backbones_have_maps(target: CamTarget):
    pytest.importorskip("pytorch_grad_cam")
    model = GCViTClassifier(dict(arch=TINY, frozen_stages=4), num_classes=5).eval()
    image = images(1, 3, 64, 64)
    score = CamTarget(model, lambda logits: logits[2], "third")
    assert cam(model, image, score, "gradcam", 2).max() > 0
    assert not model.backbone.stem.conv.weight.requires_grad
    assert model.head.weight.requires_grad


def test_wrong_arguments(classifier: GCViTClassifier, target: CamTarget):
    with pytest.raises(UsageError, match=r"method='x'; allowed: gradcam, hirescam, eigencam"):
        cam(classifier, images(1, 3, 64, 64), target, "x", 3)
    pytest.importorskip("pytorch_grad_cam")
    with pytest.raises(UsageError, match=r"stage=4; allowed: 0 to 3"):
        cam(classifier, images(1, 3, 64, 64), target, "gradcam", 4)


@pytest.mark.parametrize(("size", "stage"), [((32, 32), 1), ((97, 135), 3), ((96, 135), 2), ((5, 900), 0)])
def test_stages_of_small_images(size: tuple[int, int], stage: int):
    assert stage_with_places(images(1, 3, *size), 3) == stage


@pytest.mark.parametrize("zoom", [1, 3])
def test_places_in_the_original_image(zoom: int):
    """A resized image that is cropped on the left, at the bottom, and padded on the right."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4)  # tokens of 8 pixels
    place = NetworkInput(torch.zeros(1, 3, 20, 32), (20, 28), scale=(2.0, 0.5), offset=(-4.0, 0.0))
    found = on_image(values, 8, place, (48, 16), zoom)
    assert found.shape == (48 * zoom, 16 * zoom)
    seen = found[::zoom, ::zoom]
    assert np.isnan(seen[:, :2]).all()  # 2 x 2 pixels are cut off
    assert np.isnan(seen[40:]).all()
    for y, x in ((0, 2), (15, 5), (16, 6), (39, 15), (20, 9)):
        assert seen[y, x] == values[int((y + 0.5) / 2 // 8), int((2 * (x + 0.5) - 4) // 8)]
    assert on_image(np.stack([values] * 3, 2), 8, place, (48, 16), zoom, smooth=True).shape == (48 * zoom, 16 * zoom, 3)


def test_sheet_of_different_sizes():
    from PIL import Image

    figures = [Image.new("RGB", size, colour) for size, colour in (((720, 90), "red"), ((30, 360), "lime"))]
    found = np.asarray(sheet([*figures, figures[0]], 2))
    assert found.shape == (360 + 45 + 3 * 6, 360 + 30 + 3 * 6, 3)
    assert found[6, 6].tolist() == [255, 0, 0]
    assert found[6, 6 + 360 + 6].tolist() == [0, 255, 0]
    assert found[6 + 360 + 6, 6].tolist() == [255, 0, 0]
