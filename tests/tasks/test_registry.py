"""The package's registries in all default scopes, type names of earlier releases, and the registry of tasks."""

from __future__ import annotations

import copy
import logging
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

import mmgcvit
from mmgcvit import apis
from mmgcvit.errors import UsageError
from mmgcvit.registry import OLD_TYPES, rename_old_types, type_name
from mmgcvit.tasks import TASKS, find_task, task_of, task_of_dataset
from mmgcvit.utils.images import any_image_size

REGISTERED = {
    "DATASETS": ["ClassificationDataset"],
    "HOOKS": ["ClassificationHook", "CorruptImageHook", "InvalidLossHook", "ReproducibleHook"],
    "LOOPS": ["EMAValLoop", "ResumableTrainLoop"],
    "METRICS": ["TopKAccuracy"],
    "MODELS": ["BoxTTAModel", "ClassificationPreprocessor"],
    "OPTIM_WRAPPERS": ["FSDPAmpOptimWrapper", "FSDPOptimWrapper"],
    "PARAM_SCHEDULERS": ["WarmupCosineLR"],
    "TRANSFORMS": ["LoadCheckedImage", "LoadPillowImage", "TimmTransform"],
}
NEEDS = {"BoxTTAModel": "mmdet", "LoadCheckedImage": "mmcv"}


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """List of logged warnings."""
    found: list[str] = []

    def keep(text: str, *_: object, level: int = logging.INFO, **__: object) -> None:
        found.append(text)

    for module in ("mmgcvit.registry", "mmgcvit.apis.config", "mmgcvit.engine.single_device"):
        monkeypatch.setattr(f"{module}.print_log", keep)
    return found


@pytest.mark.parametrize("scope", ["mmengine", "mmdet", "mmseg", "mmgcvit"])
@pytest.mark.parametrize(("registry", "name"), [(key, name) for key, names in REGISTERED.items() for name in names])
def test_names_resolve_from_every_scope(scope: str, registry: str, name: str):
    for package in (NEEDS.get(name, "torch"), scope):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    if name == "BoxTTAModel":
        pytest.importorskip("mmcv._ext")
    with (
        DefaultScope.overwrite_default_scope(scope),
        getattr(root, registry).switch_scope_and_registry(None) as found,
    ):
        assert found.get(f"mmgcvit.{name}").__name__ == name
        assert found.get(f"mmgcvit.{name}").__module__.startswith("mmgcvit.")
    assert name not in getattr(root, registry).module_dict


def test_registered_names_are_in_table_of_old_names():
    new = {name for names in REGISTERED.values() for name in names}
    assert {new.rpartition(".")[2] for new in OLD_TYPES.values()} == new
    assert OLD_TYPES["CorruptPictureHook"] == OLD_TYPES["mmgcvit.CorruptPictureHook"] == "mmgcvit.CorruptImageHook"


OLD = """
custom_hooks = [dict(type='CorruptPictureHook'), dict(type='EMAHook')]
train_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=dict(
    type='ClassificationDataset', pipeline=[
        dict(type='RandomChoice', transforms=[[dict(type='LoadCheckedImage', corrupt='skip')],
                                              [dict(type='LoadPillowImage')]]),
        dict(type='mmdet.Resize')])))
val_evaluator = (dict(type='TopKAccuracy'), dict(type='IoUMetric'))
tta_model = dict(type='mmgcvit.engine.tta.BoxTTAModel')
"""


def test_old_names_in_a_config(tmp_path: Path, said: list[str]):
    """Also nested in pipelines, and with a single warning for all of them."""
    (tmp_path / "old.py").write_text(OLD)
    cfg = apis.load_config(tmp_path / "old.py")
    assert [hook.type for hook in cfg.custom_hooks] == ["mmgcvit.CorruptImageHook", "EMAHook"]
    dataset = cfg.train_dataloader.dataset.dataset
    assert dataset.type == "mmgcvit.ClassificationDataset"
    assert [branch[0].type for branch in dataset.pipeline[0].transforms] == [
        "mmgcvit.LoadCheckedImage",
        "mmgcvit.LoadPillowImage",
    ]
    assert dataset.pipeline[0].transforms[0][0].corrupt == "skip"
    assert dataset.pipeline[1].type == "mmdet.Resize"
    assert [metric.type for metric in cfg.val_evaluator] == ["mmgcvit.TopKAccuracy", "IoUMetric"]
    assert cfg.tta_model.type == "mmgcvit.BoxTTAModel"
    (line,) = said
    assert "deprecated" in line
    assert "'CorruptPictureHook' is now 'mmgcvit.CorruptImageHook'" in line
    assert "'LoadCheckedImage' is now 'mmgcvit.LoadCheckedImage'" in line
    rename_old_types(cfg)
    assert len(said) == 1


def test_class_of_another_package_with_old_name_is_kept(said: list[str]):
    @root.METRICS.register_module()
    class TopKAccuracy:
        """Class of another package."""

    try:
        cfg = rename_old_types(Config(dict(val_evaluator=dict(type="TopKAccuracy"))))
    finally:
        root.METRICS.module_dict.pop("TopKAccuracy")
    assert cfg.val_evaluator.type == "TopKAccuracy"
    assert said == []


def test_type_names():
    assert type_name(dict(type="mmgcvit.TopKAccuracy")) == type_name(dict(type=mmgcvit.TopKAccuracy)) == "TopKAccuracy"
    assert type_name("mmdet.X") == "X"
    assert type_name({}) == ""


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_task_of_shipped_configs_matches_folder(task):
    panoptic = task.name.startswith("panoptic")  # mmdet's, in the folder of its detectors
    folder = ROOT / "configs" / ("detection" if panoptic else task.name)
    names = [path for path in folder.glob("*.py")
             if "template" not in path.name and ("panoptic" in path.name) == panoptic]  # fmt: skip
    assert names
    for path in names[:4]:
        cfg = Config.fromfile(path)
        assert task_of(cfg) is task
        assert find_task(cfg.model) is task


def test_models_without_task():
    with pytest.raises(UsageError, match=r"model.type='Other' with type, body; allowed: a classifier .*a detector"):
        task_of(Config(dict(model=dict(type="Other", body=1))))
    assert find_task(nn.Linear(2, 2)) is None
    model = mmgcvit.GCViTClassifier(dict(arch=TINY), num_classes=2)
    assert find_task(model).name == "classification"
    assert task_of_dataset(dict(type="mmdet.VOCDataset")).name == "detection"
    assert task_of_dataset(dict(type="mmgcvit.ClassificationDataset")).name == "classification"
    assert task_of_dataset(dict(type="X", data_prefix=dict(seg_map_path="labels"))).name == "segmentation"


def test_pillow_limit_is_lifted_and_restored(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (40, 40)).save(tmp_path / "large.png")
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with any_image_size():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with any_image_size(), Image.open(tmp_path / "large.png") as image:
        assert image.size == (40, 40)
        thread.start()
        inside.wait(10)
    assert Image.MAX_IMAGE_PIXELS is None  # the other thread still needs it
    leave.set()
    thread.join()
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(RuntimeError), any_image_size():
        raise RuntimeError
    assert Image.MAX_IMAGE_PIXELS == 100


def test_loaders_and_checks_accept_large_images(tmp_path: Path, monkeypatch):
    from mmgcvit.datasets.images import image_size, unreadable
    from mmgcvit.tasks.classification.transforms import LoadPillowImage

    path = tmp_path / "large.png"
    Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert image_size(str(path)) == ((40, 30), None)
    assert unreadable(path.read_bytes()) is None
    with path.open("rb") as file:
        assert LoadPillowImage()(dict(file=file, img_path="large.png"))["img"].size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_renaming_in_a_copy_keeps_original_config():
    cfg = Config(dict(a=dict(type="TopKAccuracy")))
    rename_old_types(copy.deepcopy(cfg))
    assert cfg.a.type == "TopKAccuracy"
