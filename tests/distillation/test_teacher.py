"""The teacher: its weights, its normalisation, its maps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY, randomise
from mmengine.config import Config
from teachers import NAME, network, save

from mmgcvit import GCViTClassifier
from mmgcvit.distillation import Teacher
from mmgcvit.distillation.settings import normalisation
from mmgcvit.errors import CheckpointError, UsageError


def pixels(height: int = 70, width: int = 50) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(1)).float()


def test_uses_its_own_normalisation(tmp_path: Path):
    teacher = Teacher(NAME, save(tmp_path), num_classes=3, mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7))
    images = pixels()
    expected = torch.stack([(images[:, c] / 255 - mean) / std
                            for c, (mean, std) in enumerate(((0.2, 0.5), (0.3, 0.6), (0.4, 0.7)))], 1)  # fmt: skip
    logits, maps = teacher(images)
    with torch.no_grad():
        torch.testing.assert_close(logits, network()(expected))
    assert maps == []
    assert not logits.requires_grad
    settings = timm.create_model(NAME).pretrained_cfg
    default = Teacher(NAME, save(tmp_path), num_classes=3)
    assert default.mean.tolist() == pytest.approx(settings["mean"])
    assert default.std.tolist() == pytest.approx(settings["std"])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
def test_logits_and_maps_in_one_pass(tmp_path: Path, name: str):
    """Maps have the channels that were announced, and do not change the logits; one size only where timm says so."""
    file = save(tmp_path, name)
    teacher, alone = Teacher(name, file, num_classes=3, layers=(-2, -1)), Teacher(name, file, num_classes=3)
    images = pixels(96, 64)
    logits, maps = teacher(images)
    assert [len(x[0]) for x in maps] == teacher.channels
    assert all(x.ndim == 4 and len(x) == 2 for x in maps)
    torch.testing.assert_close(logits, alone(images)[0])
    without_head, others = Teacher(name, file, num_classes=0, layers=(-2, -1))(images)
    assert without_head is None
    torch.testing.assert_close(others, maps)
    assert (teacher.input_size is None) == (name != "test_vit")


def test_fixed_and_given_sizes(tmp_path: Path):
    file = save(tmp_path, "test_vit")
    teacher = Teacher("test_vit", file, num_classes=3)
    size = timm.create_model("test_vit").pretrained_cfg["input_size"][-1]
    images = pixels(37, 51)
    resized = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher(images)[0], teacher(resized)[0], rtol=1e-3, atol=1e-4)
    assert Teacher(NAME, save(tmp_path), num_classes=3, input_size=96).input_size == 96
    assert Teacher("test_vit", num_classes=3, checkpoint=file, img_size=64).input_size == 64


def test_gcvit_of_this_package(tmp_path: Path):
    """A checkpoint of a GCViTClassifier: the logits are those of the classifier."""
    own = randomise(GCViTClassifier(dict(arch=TINY), num_classes=5)).eval()
    file = tmp_path / "own.pth"
    torch.save({"state_dict": own.state_dict(), "meta": {"dataset_meta": {"classes": list("abcde")}}}, file)
    teacher = Teacher("gcvit_tiny_any", str(file), num_classes=5, arch=TINY, layers=(2, 3))
    images = pixels()
    logits, maps = teacher(images)
    mean, std = (255 * x[None, :, None, None] for x in (teacher.mean, teacher.std))
    with torch.no_grad():
        torch.testing.assert_close(logits, own((images - mean) / std), rtol=1e-4, atol=1e-5)
        expected = own.backbone((images - mean) / std, (2, 3))
    torch.testing.assert_close(maps, list(expected), rtol=1e-4, atol=1e-5)
    assert teacher.classes == tuple("abcde")
    with pytest.raises(CheckpointError, match=r"own\.pth' has 5 classes, but num_classes=4; allowed"):
        Teacher("gcvit_tiny_any", str(file), num_classes=4, arch=TINY).load()
    del own.head
    torch.save(own.state_dict(), file)
    with pytest.raises(CheckpointError, match=r"own\.pth' lacks head"):
        Teacher("gcvit_tiny_any", str(file), num_classes=5, arch=TINY).load()


TRAINED = dict(pad="window", window_size=[2, 2, 4, 2], mean=(0.5,), std=(0.2, 0.3, 0.4))


def write_own(path: Path, windows: object = (2, 2, 4, 2), **preprocessor) -> str:
    """Write a classifier with the settings of TRAINED, as a run writes it."""
    backbone = dict(arch=TINY, pad="window", window_size=windows)
    own_values = dict(type="mmgcvit.ClassificationPreprocessor", mean=[0.5], std=[0.2, 0.3, 0.4])
    model = dict(type="GCViTClassifier", backbone=backbone, data_preprocessor=preprocessor or own_values)
    own = randomise(GCViTClassifier(backbone, num_classes=5))
    torch.save({"state_dict": own.state_dict(), "meta": {"cfg": Config(dict(model=model)).pretty_text}}, path)
    return str(path)


def test_settings_of_the_checkpoint(tmp_path: Path):
    """Those that are no weights are compared with the config in the file."""
    file = write_own(tmp_path / "own.pth", windows=2)
    common = dict(name="gcvit_tiny_any", checkpoint=file, num_classes=5, arch=TINY)
    Teacher(**common, **TRAINED).load()
    Teacher(**common, **dict(TRAINED, mean=(0.5, 0.5, 0.5), window_size=2)).load()
    with pytest.raises(CheckpointError, match=r"teacher: pad='input', but .*own\.pth' was trained with pad='window';"):
        Teacher(**common, **dict(TRAINED, pad="input")).load()
    with pytest.raises(CheckpointError, match=r"window_size=\(4, 4, 8, 4\), but .* with window_size=\(2, 2, 4, 2\);"):
        Teacher(**common, **dict(TRAINED, window_size=4)).load()
    with pytest.raises(CheckpointError, match=r"mean=\(0\.5, 0\.51, 0\.5\), but .* with mean=\(0\.5,\);"):
        Teacher(**common, **dict(TRAINED, mean=(0.5, 0.51, 0.5))).load()
    default = {key: value for key, value in TRAINED.items() if key not in ("mean", "std")}
    with pytest.raises(CheckpointError, match=r"teacher=dict\(\.\.\., mean=\(0\.5,\), std=\(0\.2, 0\.3, 0\.4\)\)"):
        Teacher(**common, **default).load()


@pytest.mark.parametrize(
    "preprocessor",
    [
        dict(type="ClassificationPreprocessor"),  # ImageNet's by default
        dict(type="DetDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
        dict(type="BaseDataPreprocessor"),
    ],
    ids=lambda preprocessor: preprocessor["type"],
)
def test_normalisation_of_the_checkpoint(tmp_path: Path, preprocessor: dict):
    file = write_own(tmp_path / "own.pth", **preprocessor)
    options = dict(name="gcvit_tiny_any", checkpoint=file, num_classes=5, arch=TINY, pad="window")
    Teacher(**options).load()
    if preprocessor["type"] != "BaseDataPreprocessor":
        with pytest.raises(
            CheckpointError, match=r"std=\(1\.0, 1\.0, 1\.0\), but .* with std=\(0\.229, 0\.224, 0\.225\);"
        ):
            Teacher(**options, std=(1.0, 1.0, 1.0)).load()


def test_one_number_for_all_channels():
    own = dict(type="mmgcvit.ClassificationPreprocessor", mean=0.0, std=0.25)
    assert normalisation(own) == dict(mean=(0.0,), std=(0.25,))
    assert normalisation(dict(type="DetDataPreprocessor", mean=[0], std=[255])) == dict(mean=(0.0,), std=(1.0,))


def test_checkpoints_that_do_not_fit(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"-7\.pth' has 7 classes, but num_classes=3; allowed"):
        Teacher(NAME, save(tmp_path, classes=7), num_classes=3).load()
    with pytest.raises(CheckpointError, match="does not belong to the model"):
        Teacher(NAME, save(tmp_path, "test_vit"), num_classes=3).load()
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        Teacher(NAME, str(tmp_path / "none.pth"), num_classes=3).load()


def test_is_built_without_weights_and_random_numbers(tmp_path: Path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    teacher = Teacher(NAME, str(tmp_path / "later.pth"), num_classes=3)
    Path(save(tmp_path)).rename(tmp_path / "later.pth")
    torch.manual_seed(3)
    teacher.load()
    assert torch.equal(torch.rand(1), expected)
    assert copy.deepcopy(teacher) is teacher
    assert teacher.load() is teacher.load()


def test_network_that_cannot_apply_its_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Hiera is one."""
    teacher = Teacher(NAME, save(tmp_path), num_classes=3, layers=(-1,))

    def refuse(*_, norm: bool, **__) -> None:
        assert not norm, "normalization of features not supported"

    monkeypatch.setattr(teacher.load(), "forward_intermediates", refuse)
    with pytest.raises(UsageError, match=r"teacher: norm=True; allowed for 'test_resnet': False \(normalization"):
        teacher(pixels())


def test_other_errors_of_the_network_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    teacher = Teacher(NAME, save(tmp_path), num_classes=3, layers=(-1,))

    def refuse(*_, **__) -> None:
        raise AssertionError("Input height (70) doesn't match model (224).")

    monkeypatch.setattr(teacher.load(), "forward_intermediates", refuse)
    with pytest.raises(AssertionError, match="Input height"):
        teacher(pixels())


def test_bad_arguments():
    with pytest.raises(UsageError, match="num_classes=3 without a checkpoint; allowed for 'test_resnet': 1000"):
        Teacher(NAME, num_classes=3)  # timm would leave the head random
    assert Teacher(NAME, num_classes=0).num_classes == 0
    assert Teacher(NAME, num_classes=1000).num_classes == 1000
    with pytest.raises(UsageError, match=r"teacher: name='resnet_51' cannot be built: .*list_models"):
        Teacher("resnet_51")
    with pytest.raises(UsageError, match=r"teacher: layers=\[9\]; allowed for 'test_resnet': -5 to 4"):
        Teacher(NAME, layers=(9,))
    with pytest.raises(UsageError, match=r"teacher: layers=\[-1, 0\]; allowed for 'test_resnet': .*in their order"):
        Teacher(NAME, layers=(-1, 0))
    with pytest.raises(ValueError, match="teacher: input_size=0; allowed: an integer >= 1"):
        Teacher(NAME, input_size=0)
