"""Times of exported files and of models: images, stages, refusals."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from rich.console import Console

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from classification_run import config, make_tree
from conftest import randomise
from onnx_models import scene, write_model

from mmgcvit.errors import BenchmarkError, UsageError
from mmgcvit.export import latency
from mmgcvit.utils.inputs import Input


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with three images; the working directory is inside it."""
    folder = tmp_path / "images"
    for i, name in enumerate(("a.png", "vis/b.png", "labels/c.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(41 + i, 57, (10, 20, 30, 40))).save(folder / name)
    monkeypatch.chdir(folder / "vis")
    return folder


@pytest.mark.parametrize("given", ["..", "../vis/.."])
@pytest.mark.parametrize("task", ["detection", "segmentation", "classification"])
def test_files(tmp_path: Path, images: Path, task: str, given: str):
    files = [write_model(tmp_path / f"{batch}.onnx", task, shape=(batch, None, None)) for batch in (None, 1)]
    found = latency.measure(files, [given], rounds=2, threads=1)
    assert [result.name for result in found] == ["None.onnx", "1.onnx"]
    for result in found:
        assert len(result.seconds) == 2 * 3  # no image is left out
        assert all(value > 0 for times in result.seconds for value in times)
    console = Console(width=200, record=True)
    console.print(latency.table(found))
    printed = " ".join(console.export_text().split())
    for words in ("None.onnx", *latency.STAGES, "Of a file, network is the whole graph"):
        assert words in printed


def test_results_of_an_earlier_call_count(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(images)
    (found,) = latency.measure([write_model(tmp_path / "model.onnx")], ["."], rounds=1, threads=1)
    assert len(found.seconds) == 3


def test_fixed_batch(tmp_path: Path, images: Path):
    file = write_model(tmp_path / "model.onnx", shape=(2, None, None))
    with pytest.raises(BenchmarkError, match=r"model\.onnx: takes batches of 2 images only; allowed: .*--batch 1"):
        latency.measure([file], [images])
    with pytest.raises(BenchmarkError, match=r"config=a\.py, checkpoint=None; allowed: both, or none"):
        latency.measure([file], [images], "a.py")


@pytest.mark.parametrize("compiled", [False, True])
def test_classifier_in_torch(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool):
    from mmengine.registry import MODELS

    cfg = config(make_tree(tmp_path / "tree"), tmp_path / "work")
    cfg.dump(tmp_path / "config.py")
    net = randomise(MODELS.build(cfg.model))
    meta = dict(dataset_meta=dict(classes=("blue", "green", "red")))
    torch.save(dict(state_dict=net.state_dict(), meta=meta), tmp_path / "last.pth")
    file = write_model(tmp_path / "model.onnx", "classification")
    blocks: list = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, dynamic: blocks.append(type(block).__name__))
    paths = str(tmp_path / "config.py"), str(tmp_path / "last.pth")
    found = latency.measure([file], [images], *paths, compiled=compiled, rounds=1)
    names = ["PyTorch", *["PyTorch, compiled blocks"] * compiled, "model.onnx"]
    assert [result.name for result in found] == names
    assert blocks == ["Block"] * compiled * sum(len(stage.blocks) for stage in net.backbone.stages)
    assert all(result.first > 0 for result in found)
    prepare, network, rest = found[0].seconds[0]
    assert min(prepare, network) > 0
    assert 0 <= rest < network


def test_program(tmp_path: Path, images: Path):
    """A .pt2 file, here of a classifier, is measured like the others."""
    from mmgcvit.export import formats
    from mmgcvit.runtime.metadata import ModelInfo

    class Graph(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
            return (pixels.float().mean((2, 3)).softmax(1),)

    onnx = write_model(tmp_path / "model.onnx", "classification", shape=(1, None, None))
    info = latency.Predictor(onnx).info
    assert isinstance(info, ModelInfo)
    formats.write_pt2(Graph(), info, tmp_path / "model.pt2")
    found = latency.measure([onnx, tmp_path / "model.pt2"], [images], rounds=1)
    assert [result.name for result in found] == ["model.onnx", "model.pt2"]
    assert all(value > 0 for times in found[1].seconds for value in times)
    (tmp_path / "broken.pt2").write_bytes(b"no program")
    with pytest.raises(UsageError, match=r"broken\.pt2': cannot be opened; is it damaged\?"):
        latency.measure([tmp_path / "broken.pt2"], [images], rounds=1)


def test_stages_of_a_detector_in_torch(tmp_path: Path):
    """With types of transforms that are classes, as in new configs."""
    pytest.importorskip("mmcv._ext")
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs

    class Detector:
        def __init__(self) -> None:
            self.data_preprocessor = SimpleNamespace(forward=lambda data: time.sleep(0.02) or data)
            self.seen: list = []

        def extract_feat(self, inputs):
            time.sleep(0.06)

        def test_step(self, data):
            data = self.data_preprocessor.forward(data)
            self.extract_feat(data["inputs"])
            time.sleep(0.04)
            self.seen += data["inputs"]

    pipeline = [
        dict(type=LoadImageFromFile),
        dict(type=LoadAnnotations, with_bbox=True),
        dict(type=PackDetInputs, meta_keys=("img_id", "img_path")),
    ]
    Image.fromarray(np.zeros((41, 57, 3), np.uint8)).save(tmp_path / "a.png")
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    detector = Detector()
    run = latency._torch_run(SimpleNamespace(task="detection", cfg=cfg, model=detector))
    run(Input(tmp_path / "a.png", "a.png"))
    _, network, rest = run(Input(tmp_path / "a.png", "a.png"))
    assert network >= 0.08
    assert 0.04 <= rest < 0.08 + 0.5 * network
    assert [tuple(image.shape) for image in detector.seen] == [(3, 41, 57)] * 2
