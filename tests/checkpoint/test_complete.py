"""Comparison of checkpoints with models: missing parts, shapes, values, class names."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TINY
from torch import nn

from mmgcvit import GCViTClassifier
from mmgcvit.checkpoint.complete import class_names, compare_classes, compare_weights, group_names, require_complete
from mmgcvit.errors import CheckpointError


class Detector(nn.Module):
    """Parts named like those of a detector; a shared layer, statistics, a constant and a buffer that is not saved."""

    def __init__(self, classes: int = 2, mask: bool = True, auxiliary: int = 3) -> None:
        super().__init__()
        self.neck = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = nn.ModuleDict(dict(fc=nn.Linear(4, 4), fc_cls=nn.Linear(4, classes)))
        if mask:
            self.roi_head.mask_head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, classes))
        self.auxiliary_head = nn.Linear(4, auxiliary)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.roi_head.bbox_head.fc.weight
        self.register_buffer("project", torch.arange(4.0))
        self.register_buffer("anchors", torch.ones(2), persistent=False)


def parts(model: nn.Module, **more: torch.Tensor) -> dict:
    return dict(state_dict={**model.state_dict(), **more})


def test_same_model():
    model = Detector()
    before = copy.deepcopy(model.state_dict())
    report = require_complete(model, parts(Detector()))
    assert report.is_exact
    assert len(report.loaded) == len(before)
    assert str(report) == f"{len(before)} tensors loaded"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    bare = {f"module.{name}": value for name, value in model.state_dict().items()}
    assert require_complete(nn.ModuleDict(dict(a=model))["a"], bare).is_exact


def test_comparison_does_not_change_how_the_checkpoint_is_loaded():
    """Loading copies values into the parameters, to which an optimizer refers."""
    model, state = Detector(), Detector().state_dict()
    parameters = {name: id(value) for name, value in model.named_parameters()}
    require_complete(model, dict(state_dict=state))
    model.load_state_dict(state)
    assert {name: id(value) for name, value in model.named_parameters()} == parameters
    assert all(value.data_ptr() != state[name].data_ptr() for name, value in model.state_dict().items())


def test_missing_parts():
    with pytest.raises(CheckpointError, match=r"^checkpoint 'a.pth': does not belong to the model of the config: "
                       r"it lacks roi_head.mask_head \(4 tensors\); allowed: a checkpoint with all"):  # fmt: skip
        require_complete(Detector(), parts(Detector(mask=False)), "a.pth")
    state = Detector().state_dict()
    for name in ("neck.1.num_batches_tracked", "project", "tied.weight"):  # not trained, or a second name
        del state[name]
    assert require_complete(Detector(), state).optional == ["project"]
    del state["neck.1.running_mean"], state["roi_head.bbox_head.fc.bias"]
    with pytest.raises(CheckpointError, match=r"it lacks neck.1.running_mean, roi_head.bbox_head.fc.bias; "):
        require_complete(Detector(), state)


def test_other_shapes():
    with pytest.raises(CheckpointError, match=(
            r"it has other shapes: roi_head.bbox_head.fc_cls.weight \(5, 4\), in the model \(2, 4\), "
            r"roi_head.bbox_head.fc_cls.bias \(5,\), in the model \(2,\); ")):  # fmt: skip
        require_complete(Detector(mask=False), parts(Detector(5, mask=False)))
    report = compare_weights(Detector(), parts(Detector(5, mask=False), extra=torch.ones(1)))
    assert list(report.reshaped) == ["roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"]
    assert report.missing == [f"roi_head.mask_head.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")]
    assert report.unused == ["extra"]
    assert str(report) == (
        "13 tensors loaded; left at initial values: roi_head.mask_head (4 tensors); not used by the model: extra; left "
        "at initial values because the shape differs: roi_head.bbox_head.fc_cls.weight (5, 4), in the model (2, 4), "
        "roi_head.bbox_head.fc_cls.bias (5,), in the model (2,)"
    )


def test_the_message_for_another_model_is_short():
    def build(name: str, side: int) -> nn.ModuleDict:
        return nn.ModuleDict({f"{part}_{i}": nn.Linear(side, side) for part in (name, "both") for i in range(9)})

    model, other = build("own", 4), build("other", 5)
    content = dict(state_dict=other.state_dict(), meta=dict(dataset_meta=dict(classes=tuple("abcdefgh"))))
    with pytest.raises(CheckpointError) as error:
        require_complete(model, content, "a.pth")
    assert str(error.value) == (
        "checkpoint 'a.pth': does not belong to the model of the config: it lacks own_0 (2 tensors), own_1 (2 "
        "tensors), own_2 (2 tensors) and 6 more, and has other shapes: both_0.weight (5, 5), in the model (4, 4), "
        "both_0.bias (5,), in the model (4,) and 16 more; allowed: a checkpoint with all weights of the model. Not "
        "used by the model: other_0 (2 tensors) and 8 more. It was trained on 8 classes: a, b, c and 5 more"
    )


def test_parts_without_effect_on_predictions():
    """More parts than the model has, and parts that are used in training only."""
    report = require_complete(Detector(mask=False), parts(Detector()))
    assert len(report.unused) == 4
    assert "not used by the model: roi_head.mask_head (4 tensors)" in str(report)
    state = {name: value for name, value in Detector().state_dict().items() if "auxiliary" not in name}
    assert require_complete(Detector(), state).optional == ["auxiliary_head.weight", "auxiliary_head.bias"]
    require_complete(Detector(), parts(Detector(auxiliary=7)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["roi_head.bbox_head.fc_cls.bias", "neck.1.running_var"])
def test_invalid_values(name: str, value: float):
    state = Detector().state_dict()
    state["project"][:] = float("inf")  # a constant, such as a mask
    require_complete(Detector(), state)
    state[name][1] = value
    with pytest.raises(CheckpointError, match=rf"NaN or infinite values in 1 tensor: {name}"):
        require_complete(Detector(), state)


@pytest.mark.parametrize("kind", ["nvidia", "timm", "mmgcvit", "keras"])
def test_classifiers_of_all_publishers(files, kind: str):
    from mmgcvit.checkpoint.reader import read_checkpoint

    if kind not in files:
        pytest.skip("h5py is not installed")
    content = read_checkpoint(files[kind])
    report = require_complete(GCViTClassifier(dict(arch=TINY), num_classes=5), content)
    assert len(report.loaded) == len(GCViTClassifier(dict(arch=TINY), num_classes=5).state_dict())
    with pytest.raises(CheckpointError, match=r"head.weight \(5, 128\), in the model \(6, 128\)"):
        require_complete(GCViTClassifier(dict(arch=TINY), num_classes=6), content)


def test_other_window_is_complete(classifier):
    """Bias tables are resized when the weights are loaded."""
    model = GCViTClassifier(dict(arch=TINY, window_size=(4, 4, 4, 4)), num_classes=5)
    assert require_complete(model, dict(state_dict=classifier.state_dict())).missing == []


def test_class_names():
    assert class_names({}) == class_names(dict(meta=None)) == class_names(dict(meta=dict(epoch=1))) == ()
    assert class_names(dict(meta=dict(dataset_meta=dict(classes=["a", "b"])))) == ("a", "b")
    assert class_names(dict(meta=dict(dataset_meta=dict(CLASSES=("a",))))) == ("a",)
    assert class_names(dict(meta=dict(CLASSES=("a", "b")))) == ("a", "b")


def test_order_of_classes():
    assert compare_classes(("a", "b"), ("a", "b")) == compare_classes((), ("a",)) == compare_classes(("a",), ()) == ""
    assert compare_classes(("a", "b"), ("0", "1")) == ""
    with pytest.raises(CheckpointError, match=(
            r"^checkpoint 'x': classes in another order than in the config: 'disc' is label 1 of the checkpoint and "
            r"label 2 of the config\. In order, the checkpoint has ground, disc, square; the config has ground, "
            r"square, disc\.")):  # fmt: skip
        compare_classes(("ground", "disc", "square"), ("ground", "square", "disc"), "x")
    with pytest.raises(CheckpointError, match="'b' is label 1 of the checkpoint and label 0 of the config"):
        compare_classes(("a", "b"), ("b",))
    renamed = compare_classes(("Katze", "dog"), ("cat", "dog"))
    assert renamed.endswith("the checkpoint has Katze, dog; the config has cat, dog")


def test_groups_of_names():
    names = [f"a.b.{i}" for i in range(3)] + ["a.c", "d.e"]
    assert group_names(names, []) == "a (4 tensors), d (1 tensor)"
    assert group_names(names, ["a.x", "d.f"]) == "a.b (3 tensors), a.c, d.e"
