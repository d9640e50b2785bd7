"""Figures for classifiers, detectors and segmentors, and errors that name what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmcv._ext")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from digit_models import CLASSES, CONFIGS, config, write_checkpoint
from mmengine.registry import MODELS, init_default_scope

from mmgcvit.errors import UsageError
from mmgcvit.explain import METHODS, default_methods, explain
from mmgcvit.explain.drawing import Canvas
from mmgcvit.tasks import TASKS

SIZES = {"a.png": (50, 83), "b.jpg": (64, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two images and a checkpoint per task."""
    folder = tmp_path_factory.mktemp("explain")
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height))
        (folder / "images").mkdir(exist_ok=True)
        image.save(folder / "images" / name)
    for task in CONFIGS:
        write_checkpoint(task, folder / f"{task}.pth")
    return folder


def run(folder: Path, task: str, out: Path, **options: object) -> list[Path]:
    return explain(config(task), str(folder / f"{task}.pth"), [folder / "images"], out, device="cpu", **options)


@pytest.mark.parametrize("task", CONFIGS)
def test_a_figure_per_image_and_method(folder: Path, tmp_path: Path, task: str):
    methods = ["global", "heads", "local", "features"]
    files = run(folder, task, tmp_path, methods=methods)
    wanted = [f"{name}_{method}.png" for name in "ab" for method in methods]
    assert [file.name for file in files] == [*wanted, "sheet.png"]
    for name, (height, width) in SIZES.items():
        zoom = round(512 / max(height, width))
        figure = np.asarray(Image.open(tmp_path / f"{name[0]}_global.png")).astype(int)
        assert figure.shape[1] == zoom * width
        assert zoom * height + 30 < figure.shape[0] < zoom * height + 120
        local = np.asarray(Image.open(tmp_path / f"{name[0]}_local.png")).astype(int)
        assert (local[: zoom * height] != figure[: zoom * height]).any()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000


@pytest.mark.parametrize("task", CONFIGS)
def test_class_activation_maps(folder: Path, tmp_path: Path, task: str):
    pytest.importorskip("pytorch_grad_cam")
    files = run(folder, task, tmp_path, methods=["gradcam", "eigencam"], stage=1)
    assert len(files) == 5
    assert (tmp_path / "a_gradcam.png").read_bytes() != (tmp_path / "a_eigencam.png").read_bytes()
    assert run(folder, task, tmp_path / "at", methods=["hirescam"], at=(20, 30))


def test_global_attention_is_that_of_the_network(folder: Path, tmp_path: Path):
    """The colours of the figure are the attention of the block: the hottest token is red."""
    from mmgcvit.explain import attention_maps
    from mmgcvit.tasks import task_of
    from mmgcvit.tasks.base import PredictionOptions
    from mmgcvit.tasks.sources import read
    from mmgcvit.utils.inputs import Input

    cfg = config("segmentation")
    model = task_of(cfg).predictor(cfg, str(folder / "segmentation.pth"), PredictionOptions("cpu"))
    source = read(Input(folder / "images/a.png", "a.png"), model.reader)
    image = model.network_input(source)
    assert image.scale[0] == pytest.approx(image.size[1] / 83, rel=0.02)
    found = attention_maps(model.trained.model, image.image, 1, 1)
    values = found.received()[0].mean(0)[: image.size[0] // 8, : image.size[1] // 8]
    row, column = divmod(int(values.argmax()), values.shape[1])
    run(folder, "segmentation", tmp_path, methods=["global"], stage=1)
    figure = np.asarray(Image.open(tmp_path / "a_global.png")).astype(float)
    zoom = round(512 / 83)
    y, x = (int((i * 8 + 4) / scale * zoom) for i, scale in ((row, image.scale[1]), (column, image.scale[0])))
    pixel = figure[y, x]
    original = np.asarray(Image.open(folder / "images/a.png"))[y // zoom, x // zoom]
    np.testing.assert_allclose(pixel, 0.4 * original + 0.6 * np.array([122, 4, 3]), atol=3)


def test_attention_to_padding_is_in_the_legend(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows of 7 tokens, of which the image covers a part: the rest is padding."""
    scenes, titles, locals_ = [], [], []
    heat, local = Canvas.heat, METHODS["local"]
    monkeypatch.setattr(Canvas, "heat", lambda self, *args, **kw: titles.append(args[2]) or heat(self, *args, **kw))
    monkeypatch.setitem(METHODS, "local", lambda scene: scenes.append(scene) or local(scene))
    run(folder, "segmentation", tmp_path, methods=["local", "global", "heads"], stage=1, at=(38, 48))
    assert len(scenes) == 2
    assert len(titles) % 2 == 0
    for scene, found in zip(scenes, (titles[: len(titles) // 2], titles[len(titles) // 2 :]), strict=True):
        attention = scene.attention(is_global=False)
        x, y = scene.place.place_of(38.5, 48.5)
        share = attention.outside()[0, :, int(y // 8), int(x // 8)].mean()
        locals_.append(float(share))
        assert found[0].endswith(f"\n{100 * abs(share):.0f} % to padding")
        attention = scene.attention(is_global=True)
        assert len(attention.regions) > 1
        shares = attention.outside()[0].mean((1, 2))
        assert 0.05 < shares.mean() < 0.95
        assert found[1].endswith(f"\n{100 * shares.mean():.0f} % to padding")
        assert [title.split("\n")[1] for title in found[2:]] == [f"{100 * s:.0f} % to padding" for s in shares]
    assert max(locals_) > 0.1


def test_eigencam_has_no_box(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It does not depend on the box."""
    pytest.importorskip("pytorch_grad_cam")
    boxes = []
    heat = Canvas.heat
    monkeypatch.setattr(Canvas, "heat", lambda self, *args, **kw: boxes.append(kw["box"]) or heat(self, *args, **kw))
    run(folder, "detection", tmp_path, methods=["hirescam", "eigencam"], stage=1)
    assert [box is None for box in boxes] == [False, True] * 2


def test_errors(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"method='cam'; allowed: global, heads, local, features, gradcam"):
        run(folder, "classification", tmp_path, methods=["cam"])
    with pytest.raises(UsageError, match=r"stage=4; allowed: 0 to 3"):
        run(folder, "classification", tmp_path, stage=4)
    with pytest.raises(UsageError, match=r"b.jpg.*x=60, y=10; allowed: x from 0 to 39, y from 0 to 63\n.*other fig"):
        run(folder, "classification", tmp_path, methods=["global"], at=(60, 10))
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["a_global.png", "sheet.png"]
    with pytest.raises(UsageError, match=r"a.png.*local: x=0, y=0: outside of the part of the image that the network"):
        run(folder, "classification", tmp_path, methods=["local"], at=(0, 0))
    cfg = config("detection")
    cfg.model.test_cfg.rcnn.score_thr = 1.0
    pytest.importorskip("pytorch_grad_cam")
    with pytest.raises(UsageError, match=r"a.png.*hirescam: no box is detected at x=20, y=30; choose"):
        explain(cfg, str(folder / "detection.pth"), [folder / "images"], tmp_path, ["hirescam"], at=(20, 30))


def test_other_backbones_are_refused(folder: Path, tmp_path: Path):
    cfg = config("segmentation")
    cfg.model.backbone = dict(type="mmseg.ResNet", depth=18, norm_cfg=dict(type="BN"))
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    init_default_scope("mmseg")
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={}), tmp_path / "resnet.pth")
    cfg.test_dataloader.dataset.metainfo = dict(classes=CLASSES["segmentation"])
    with pytest.raises(UsageError, match=r"EncoderDecoder: has no GC ViT; allowed: models with a GC ViT"):
        explain(cfg, str(tmp_path / "resnet.pth"), [folder / "images"], tmp_path)


def test_default_methods():
    """Grad-CAM for whole images, HiResCAM for parts of them, none without scores."""
    pytest.importorskip("pytorch_grad_cam")
    defaults = {task.name: set(default_methods(task)) & {"gradcam", "hirescam"} for task in TASKS}
    assert defaults.pop("classification") == {"gradcam"}
    assert defaults.pop("panoptic segmentation") == set()  # segments have no score
    assert len(defaults) == len(TASKS) - 2
    assert all(methods == {"hirescam"} for methods in defaults.values())


def test_equal_names_with_other_suffixes(folder: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    image = Image.open(folder / "images/a.png").convert("RGB")
    for name in ("a.png", "a.jpg", "b.png"):
        image.save(tmp_path / "in" / name)
    files = explain(
        config("classification"), str(folder / "classification.pth"), [tmp_path / "in"], tmp_path / "out", ["global"]
    )
    assert [file.name for file in files] == ["a.jpg_global.png", "a.png_global.png", "b_global.png", "sheet.png"]
    assert set(METHODS) >= {"global", "gradcam"}
