"""Opening of model files: libraries, damaged and foreign files, and descriptions that do not fit."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx_models import CLASSES, PALETTE, scene, write_model

from mmgcvit.errors import UsageError
from mmgcvit.runtime import ModelInfo, Predictor, Resize
from mmgcvit.runtime.metadata import KEY
from mmgcvit.runtime.session import open_session


def test_missing_file_and_unknown_suffix(tmp_path: Path):
    with pytest.raises(UsageError, match=r"model '.*none\.onnx': no such file"):
        Predictor(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match=r"suffix '\.pth'; allowed: \.onnx, \.xml"):
        Predictor(tmp_path / "model.pth")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match=r"model '.*folder\.onnx': no such file"):
        Predictor(tmp_path / "folder.onnx")


@pytest.mark.parametrize("kind", ["empty", "text", "cut off", "no weights"])
def test_damaged_file(tmp_path: Path, kind: str):
    path = write_model(tmp_path / "model.onnx")
    content = path.read_bytes()
    if kind == "no weights":
        model = onnx.load(path)
        constant = onnx.helper.make_tensor("first", onnx.TensorProto.INT64, [1], [1])
        constant.ClearField("int64_data")
        constant.data_location = onnx.TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="lost.data")
        del model.graph.initializer[0]
        model.graph.initializer.insert(0, constant)
        path.write_bytes(model.SerializeToString())
    else:
        path.write_bytes({"empty": b"", "text": b"version https://git-lfs", "cut off": content[:-100]}[kind])
    with pytest.raises(UsageError, match=r"model\.onnx'?: "):
        Predictor(path)


def test_foreign_file(tmp_path: Path):
    with pytest.raises(
        UsageError, match=r"has no description of a model in its metadata \('mmgcvit'\).*`mmgcvit export`"
    ):
        Predictor(write_model(tmp_path / "model.onnx", described=False))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 2, "format 2; allowed: 1. Update mmgcvit"),
        ("task", "pose", "task='pose'; allowed: 'detection'"),
        ("classes", [], "damaged: classes="),
        ("classes", None, "damaged: TypeError"),
        ("palette", [[1, 2, 3]], "damaged: palette="),
        ("shape", [1, 2], "damaged: shape="),
        ("resize", {"kind": "keep_ratio"}, "damaged: resize.size=None"),
        ("resize", {"kind": "shorter_side", "size": [224, 224]}, "damaged: resize.crop=None"),
        ("resize", {"kind": "zoom"}, "resize.kind='zoom'; allowed: 'none'"),
        ("odd", 1, "damaged: TypeError"),
    ],
)
def test_damaged_description(key: str, value: object, words: str):
    content = json.loads(ModelInfo("detection", CLASSES, PALETTE).to_json())
    content[key] = value
    with pytest.raises(UsageError) as caught:
        ModelInfo.from_json(json.dumps(content), "a.onnx")
    assert str(caught.value).startswith("a.onnx: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "12", "{'a'"])
def test_description_that_is_not_json(text: str):
    with pytest.raises(UsageError, match=r"a\.onnx: its description of the model is damaged"):
        ModelInfo.from_json(text, "a.onnx")


def test_description_is_kept_exactly():
    info = ModelInfo(
        "classification",
        CLASSES,
        PALETTE,
        shape=(None, 224, 224),
        resize=Resize("shorter_side", (256, 256), (224, 224), "bicubic", True),
        pad=(1.5, 2, 3),
        value_range=(0, 4095),
        exif=False,
    )
    assert ModelInfo.from_json(info.to_json(), "a.onnx") == info


def test_graph_and_description_differ(tmp_path: Path):
    path = write_model(tmp_path / "model.onnx", shape=(None, 32, 48))
    for changed, words in (
        (dict(dtype="float32"), r"has the inputs images uint8 \(any, 3, 32, 48\).*allowed: one input, images float32"),
        (dict(shape=(2, 32, 48)), r"\(2, 3, 32, 48\)"),
        (dict(channels=1), r"\(any, 1, 32, 48\)"),
        (dict(masks="box"), "outputs boxes, scores, labels, which .* allowed: boxes, scores, labels, masks"),
        (dict(task="segmentation"), "allowed: labels"),
    ):
        model = onnx.load(path)
        info = replace(ModelInfo("detection", CLASSES, PALETTE, shape=(None, 32, 48)), **changed)
        onnx.helper.set_model_props(model, {KEY: info.to_json()})
        onnx.save(model, tmp_path / "changed.onnx")
        with pytest.raises(UsageError, match=words):
            open_session(tmp_path / "changed.onnx")


def test_wrong_type_and_shape(tmp_path: Path):
    session = open_session(write_model(tmp_path / "model.onnx", shape=(2, None, 48)), threads=1)
    assert session(np.zeros((2, 3, 7, 48), np.uint8))["boxes"].shape == (2, 2, 4)
    for images in (
        np.zeros((2, 3, 7, 48), np.float32),
        np.zeros((1, 3, 7, 48), np.uint8),
        np.zeros((2, 3, 48, 7), np.uint8),
        np.zeros((2, 7, 48, 3), np.uint8),
        np.zeros((3, 7, 48), np.uint8),
    ):
        with pytest.raises(UsageError, match=r"images: .* of shape .*; allowed: images uint8 \(2, 3, any, 48\)"):
            session(images)


def test_threads(tmp_path: Path):
    path = write_model(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"threads=0; allowed: at least 1"):
        open_session(path, threads=0)
    assert open_session(path, threads=1)(np.zeros((1, 3, 7, 48), np.uint8))["boxes"].shape == (1, 2, 4)


@pytest.mark.parametrize(("package", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml")])
def test_missing_package(tmp_path: Path, monkeypatch, package: str, suffix: str):
    (tmp_path / f"model{suffix}").write_bytes(b"a")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"{package}: .*; run `pip install {package}`"):
        Predictor(tmp_path / f"model{suffix}")


@pytest.mark.parametrize(("task", "masks"), [("detection", "box"), ("segmentation", ""), ("classification", "")])
def test_openvino(tmp_path: Path, task: str, masks: str):
    ov = pytest.importorskip("openvino")
    path = write_model(tmp_path / "model.onnx", task, masks=masks, resize=Resize("keep_ratio", (120, 64)))
    model = ov.convert_model(str(path))
    text = ModelInfo(task, CLASSES, PALETTE, masks=masks, resize=Resize("keep_ratio", (120, 64))).to_json()
    model.set_rt_info(text, KEY)
    ov.save_model(model, str(tmp_path / "model.xml"), compress_to_fp16=False)
    images = [scene(97, 401, (10, 20, 100, 50)), scene(60, 70, None), scene(97, 401, (200, 10, 300, 90), 200)]
    wanted, found = (Predictor(tmp_path / f"model{s}", threads=1, batch_size=2)(images) for s in (".onnx", ".xml"))
    for one, other in zip(wanted, found, strict=True):
        for name in {"detection": ("boxes", "scores", "labels", "masks"), "segmentation": ("labels",)}.get(
            task, ("probabilities",)
        ):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)
    if task == "detection":
        assert [len(one) for one in found] == [1, 0, 1]


def test_damaged_and_foreign_openvino_files(tmp_path: Path):
    ov = pytest.importorskip("openvino")
    model = ov.convert_model(str(write_model(tmp_path / "model.onnx")))
    ov.save_model(model, str(tmp_path / "model.xml"))
    with pytest.raises(UsageError, match=r"model\.xml: has no description of a model"):
        Predictor(tmp_path / "model.xml")
    (tmp_path / "model.xml").write_text("<net>")
    with pytest.raises(UsageError, match=r"model\.xml': cannot be opened"):
        Predictor(tmp_path / "model.xml")
    (tmp_path / "model.bin").unlink()
    with pytest.raises(UsageError, match=r"model\.xml': model\.bin, which has its weights, is not beside it"):
        Predictor(tmp_path / "model.xml")
