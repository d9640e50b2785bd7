"""``mmgcvit finetune --teacher``: what it writes into the config, and that the config trains."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import own_data_sets as sets
import pytest
import timm
import torch
from conftest import TINY, randomise
from mmengine.config import Config
from mmengine.registry import MODELS

from mmgcvit import GCViTClassifier, apis
from mmgcvit.__main__ import main
from mmgcvit.checkpoint import sources
from mmgcvit.checkpoint.layouts import export_state_dict
from mmgcvit.distillation import Teacher
from mmgcvit.errors import MMGCViTError
from mmgcvit.finetune import command
from mmgcvit.finetune.batch import fits
from mmgcvit.finetune.config import load_text, make_config
from mmgcvit.finetune.data import Data, split_off
from mmgcvit.finetune.formats import read_data
from mmgcvit.finetune.teacher import require_teacher
from mmgcvit.finetune.write import convert

MODEL = dict(
    type="GCViTClassifier",
    backbone=dict(arch=TINY, pad="stage", window_size=4),
    data_preprocessor=dict(type="mmgcvit.ClassificationPreprocessor", mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3)),
)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    sets.class_folders(tmp_path / "data")
    found = read_data(tmp_path / "data", "classify")
    split_off(found)
    return found


def write(path: Path, classes: list[str], model: dict | None = None) -> str:
    """Write a classifier as a run of this project writes it."""
    own = randomise(GCViTClassifier(MODEL["backbone"], num_classes=len(classes)))
    meta: dict[str, Any] = {"dataset_meta": {"classes": classes}}
    if model is not None:
        meta["cfg"] = Config(dict(model=dict(model, num_classes=len(classes)))).pretty_text
    torch.save({"state_dict": own.state_dict(), "meta": meta}, path)
    return str(path)


def configure(data: Data, teacher: str, folder: Path) -> Config:
    options = command.Options(arch="nano", size=64, batch=2, epochs=1, teacher=teacher)
    return load_text(make_config(data, folder, command.choose(data, options, print)))


def test_probabilities_of_a_classifier(data: Data, tmp_path: Path):
    file = write(tmp_path / "teacher.pth", list(data.classes), MODEL)
    cfg = configure(data, file, convert(data, tmp_path / "out"))
    assert cfg.model.type == "mmgcvit.DistilledClassifier"
    assert dict(cfg.model.teacher, arch=0) == dict(
        name="gcvit_tiny_any", checkpoint=file, arch=0, pad="stage", window_size=(4, 4, 8, 4), mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.2, 0.3),
    )  # fmt: skip
    assert "features" not in cfg.model
    assert fits(cfg, 2, "cpu")  # a few steps
    own = GCViTClassifier(
        **{key: MODEL[key] for key in ("backbone", "data_preprocessor")}, num_classes=len(data.classes)
    )
    own.load_state_dict(torch.load(file)["state_dict"])
    pixels = torch.randint(0, 256, (2, 3, 70, 50), dtype=torch.uint8)
    with torch.no_grad():
        expected = own.eval()(own.data_preprocessor(dict(inputs=pixels))["inputs"])
        logits, _ = MODELS.build(cfg.model).teacher(pixels.float())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_features_of_a_model_of_timm(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    create = Teacher._create
    monkeypatch.setattr(Teacher, "_create", lambda teacher, pretrained: create(teacher, False))  # no downloads
    cfg = configure(data, "test_resnet", convert(data, tmp_path / "out"))
    assert cfg.model.teacher == dict(name="test_resnet", num_classes=0)
    assert "logits" not in cfg.model
    assert fits(cfg, 2, "cpu")


def test_features_of_published_weights(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As --weights accepts them. In the authors' layout, with a head for 1000 classes, which is left out."""
    name, file = "gcvit://xxtiny_in1k", tmp_path / "authors.pth.tar"
    own = randomise(GCViTClassifier(dict(arch="xxtiny"), num_classes=1000))
    authors, _ = export_state_dict(
        {key.removeprefix("backbone."): value for key, value in own.state_dict().items()}, "nvidia"
    )
    torch.save({"state_dict": authors}, file)
    monkeypatch.setattr(sources, "fetch", {name: file}.__getitem__)
    cfg = configure(data, name, convert(data, tmp_path / "out"))
    assert cfg.model.teacher == dict(name="gcvit_tiny_any", checkpoint=name, arch="xxtiny", num_classes=0)
    assert "logits" not in cfg.model
    require_teacher(cfg.model.teacher, len(data.classes))
    student = MODELS.build(cfg.model)
    pixels = torch.rand(2, 3, 64, 64)
    expected = own.eval().backbone(pixels)[-1]
    monkeypatch.setattr(student.teacher, "mean", torch.zeros(3))
    monkeypatch.setattr(student.teacher, "std", torch.ones(3))
    _, maps = student.teacher(pixels * 255)
    torch.testing.assert_close(maps[-1], expected, rtol=1e-3, atol=1e-3)
    assert command.choose(data, command.Options(arch="nano", teacher=name), print).distillation["features"]


def test_it_is_said_and_shown(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture):
    file = write(tmp_path / "teacher.pth", list(data.classes), MODEL)
    argv = ["finetune", str(tmp_path / "data"), "--arch", "nano", "--epochs", "1", "--dry-run"]
    assert main([*argv, "--teacher", file]) == 0
    shown = capsys.readouterr().out
    assert f"teacher: {file}; its probabilities are learned besides the labels" in shown
    assert "model['type'] = 'mmgcvit.DistilledClassifier'" in shown
    assert main(argv) == 0
    assert "eacher" not in capsys.readouterr().out


def test_other_names_of_classes_are_said(data: Data, tmp_path: Path):
    file = write(tmp_path / "teacher.pth", ["apple", *data.classes[1:]], MODEL)
    lines: list[str] = []
    command.choose(data, command.Options(arch="nano", teacher=file), lines.append)
    assert sum(line.startswith("note: teacher: ") and "class names that differ" in line for line in lines) == 1


@pytest.mark.parametrize(
    ("teacher", "wanted"),
    [
        (
            "none.pth",
            r"teacher='none\.pth': no such file; allowed: a file, the name of a model of timm, or of `mmgcvit w",
        ),
        ("gcvit://huge", r"teacher='gcvit://huge': no such name; allowed: .* `mmgcvit weights list`, such as gcvit://"),
        ("https://a.b/c.pth", r"teacher='https://a.b/c.pth': no such name; allowed: a file"),
        ("resnet_51", r"teacher: name='resnet_51' .*cannot be built"),
        ("bare", "has no config of a GC ViT classifier; allowed: a checkpoint of a classifier trained by this project"),
        ("other", "has no config of a GC ViT classifier"),
        ("detector", "has no config of a GC ViT classifier"),
        ("fewer", r"has 1 class, but the data has \d; allowed: the same classes"),
        ("unnamed", r"has 1 class, but the data has \d; allowed: the same classes"),
        ("default", r"has 1000 classes, but the data has \d; allowed: the same classes"),
        ("moved", "classes in another order than in the config"),
    ],
)
def test_teachers_that_are_not_allowed(data: Data, tmp_path: Path, teacher: str, wanted: str):
    classes = list(data.classes)
    if teacher == "bare":
        write(tmp_path / teacher, classes)
    elif teacher == "other":
        write(tmp_path / teacher, classes, dict(MODEL, backbone=dict(type="ResNet", depth=50)))
    elif teacher == "detector":
        write(tmp_path / teacher, classes, dict(MODEL, type="MaskRCNN"))
    elif teacher in ("unnamed", "default"):
        write(tmp_path / teacher, classes[:1], MODEL)
        content = torch.load(tmp_path / teacher)
        del content["meta"]["dataset_meta"]
        if teacher == "default":
            content["meta"]["cfg"] = Config(dict(model=MODEL)).pretty_text
        torch.save(content, tmp_path / teacher)
    elif teacher == "fewer":
        write(tmp_path / teacher, classes[:1], MODEL)
    elif teacher == "moved":
        write(tmp_path / teacher, classes[::-1], MODEL)
    path = tmp_path / teacher
    with pytest.raises(MMGCViTError, match=wanted):
        configure(data, str(path) if path.exists() else teacher, tmp_path / "out")


def test_other_names_of_the_classes_are_said(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture):
    names = [f"other {name}" for name in data.classes]
    configure(data, write(tmp_path / "teacher.pth", names, MODEL), tmp_path / "out")
    shown = capsys.readouterr().out
    assert "note: teacher: " in shown
    assert "class names that differ from those of the config: in order, the checkpoint has other " in shown


@pytest.mark.parametrize("teacher", ["incomplete", "test_resnet"])
def test_weights_are_loaded_before_anything_is_written(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
):
    """A file without some weights, and a name of timm whose weights cannot be fetched."""
    wanted, file = r"checkpoint .*incomplete' lacks .*norm3", tmp_path / "incomplete"
    if teacher == "incomplete":
        content = torch.load(write(file, list(data.classes), MODEL))
        del content["state_dict"]["backbone.norm3.weight"]
        torch.save(content, file)
        teacher = str(file)
    else:
        wanted, create = (
            "weights of name='test_resnet' cannot be loaded: no network. Without a network: a file",
            timm.create_model,
        )

        def offline(*args: Any, pretrained: bool, **kwargs: Any) -> Any:
            if pretrained:
                raise OSError("no network")
            return create(*args, pretrained=pretrained, **kwargs)

        monkeypatch.setattr(timm, "create_model", offline)
    options = command.Options(arch="nano", weights="none", work_dir=str(tmp_path / "run"), teacher=teacher)
    with pytest.raises(MMGCViTError, match=wanted):
        command.finetune(tmp_path / "data", options)
    assert not (tmp_path / "run").exists()


def test_only_classifiers_have_a_teacher(tmp_path: Path):
    sets.coco_one_file(tmp_path)
    with pytest.raises(MMGCViTError, match=r"--teacher with task='detect'; allowed: --task classify\."):
        command.finetune(tmp_path, command.Options(dry_run=True, teacher="resnet50.a1_in1k"))


@pytest.mark.slow
def test_training_in_one_command(tmp_path: Path, capsys: pytest.CaptureFixture):
    """A teacher is trained, then its student, which is evaluated without the teacher's file."""
    sets.class_folders(tmp_path / "data")
    argv = ["finetune", str(tmp_path / "data"), "--arch", "nano", "--weights", "none", "--epochs", "1", "--size", "64"]
    argv += ["--batch", "2"]
    assert main([*argv, "--work-dir", str(tmp_path / "teacher")]) == 0
    file = next((tmp_path / "teacher").glob("best_*.pth"))
    assert main([*argv, "--work-dir", str(tmp_path / "student"), "--teacher", str(file)]) == 0
    assert re.search(r"results on \d+ images?:\n +accuracy/top1 +\d", capsys.readouterr().out)
    student = next((tmp_path / "student").glob("best_*.pth"))
    tensors = [torch.load(path, weights_only=False)["state_dict"] for path in (file, student)]
    assert tensors[0].keys() == tensors[1].keys()
    assert "loss_logits" in "".join(path.read_text() for path in (tmp_path / "student").rglob("scalars.json"))
    assert (tmp_path / "student" / "report.html").stat().st_size > 10_000
    Path(file).unlink()
    config = apis.load_config(tmp_path / "student/finetune/config.py", str(tmp_path / "test"))
    assert "accuracy/top1" in apis.test(config, str(student))
