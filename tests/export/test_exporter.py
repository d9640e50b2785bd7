"""Exporting a classifier to a file: arguments, files, descriptions, verification."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, randomise
from mmengine.config import Config

from mmgcvit.__main__ import main
from mmgcvit.errors import ExportError, UsageError
from mmgcvit.export import verify
from mmgcvit.export.exporter import export, open_model
from mmgcvit.export.formats import PRODUCTS, _in_network
from mmgcvit.export.inputs import made_up_images

SIZE = 32  # of the config's images
CLASSES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Config, str]:
    """Config and checkpoint of a tiny classifier."""
    from mmengine.registry import MODELS

    cfg = Config.fromfile(ROOT / "configs/classification/gcvit-nano_digits.py")
    cfg.model.backbone = dict(type="GCViT", arch={**TINY, "depths": (1, 1, 1, 1)}, pad="window")
    cfg.model.num_classes = len(CLASSES)
    cfg.test_dataloader.dataset.classes = list(CLASSES)
    model = randomise(MODELS.build(cfg.model))
    file = tmp_path_factory.mktemp("trained") / "last.pth"
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), file)
    return cfg, str(file)


def compare(model, file: Path) -> verify.Differences:
    return verify.compare(model, verify.open_file(file), made_up_images(model.info))


@pytest.mark.parametrize(("batch", "dynamic"), [(None, True), pytest.param(1, False, marks=pytest.mark.slow)])
def test_onnx(trained, tmp_path, batch, dynamic):
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    seen = []
    done = export(
        *trained, tmp_path / "sub" / "model.onnx", dynamic=dynamic, batch=batch,
        verify=lambda model, file: seen.append(compare(model, file)),
    )  # fmt: skip
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["model.onnx"]
    assert seen[0].score < 1e-5
    assert seen[0].top1 == seen[0].images >= 1
    session = ort.InferenceSession(str(done.file))
    free = (lambda name: name) if dynamic else lambda name: SIZE
    assert session.get_inputs()[0].shape == [batch or "batch", 3, free("height"), free("width")]
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    description = json.loads(session.get_modelmeta().custom_metadata_map["mmgcvit"])
    assert description["classes"] == list(CLASSES)
    assert description["shape"] == [batch, *((None, None) if dynamic else (SIZE, SIZE))]
    assert description["resize"]["kind"] == "fixed"


def test_pt2(trained, tmp_path):
    done = export(*trained, tmp_path / "model.pt2", batch=None)
    extra = {"mmgcvit": ""}
    module = torch.export.load(done.file, extra_files=extra).module()
    assert json.loads(extra["mmgcvit"])["classes"] == list(CLASSES)
    images = torch.randint(0, 256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    model = open_model(*trained)
    torch.testing.assert_close(module(images)[0], model.model.test_step(dict(inputs=images)).detach())


@pytest.fixture(scope="module")
def precisions(trained, tmp_path_factory) -> dict[str, Path]:
    """Files in float32, float16, and 8 bits."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from PIL import Image

    folder = tmp_path_factory.mktemp("precisions")
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 70, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    options = dict(full={}, half=dict(half=True), int8=dict(int8=[folder]))
    return {name: export(*trained, folder / f"{name}.onnx", **given).file for name, given in options.items()}


@pytest.mark.slow
def test_half_and_int8(trained, precisions):
    import onnx

    found = {name: compare(open_model(*trained), file) for name, file in precisions.items()}
    for name, file in precisions.items():
        graph = onnx.load(file).graph
        assert any(node.op_type == "QuantizeLinear" for node in graph.node) == (name == "int8")
        assert any(w.data_type == onnx.TensorProto.FLOAT16 for w in graph.initializer) == (name == "half")
    assert found["full"].score < 1e-5 < found["half"].score < 0.01
    assert found["int8"].score < 0.2


@pytest.mark.slow
def test_only_products_of_the_network_are_float16(precisions):
    """Between them, and outside the network, no value is rounded: float16 cannot tell 500 pixels from 500.2."""
    import onnx

    full, half = (onnx.load(precisions[name]) for name in ("full", "half"))
    to_half = {
        node.output[0]
        for node in half.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT16
    }
    weights = {w.name for w in half.graph.initializer if w.data_type == onnx.TensorProto.FLOAT16}
    readers = [node for node in half.graph.node if {*node.input} & (to_half | weights)]
    products = [node for node in full.graph.node if node.op_type in PRODUCTS and _in_network(node)]
    assert [node.op_type for node in readers] == [node.op_type for node in products] != []
    assert all(_in_network(node) for node in readers)
    # One cast back after each product, and none of a value that is already there in float16.
    casts = [len([node for node in model.graph.node if node.op_type == "Cast"]) for model in (full, half)]
    assert casts[1] - casts[0] == len(to_half) + len(products)
    read = {name for node in half.graph.node for name in node.input}
    assert {w.name for w in half.graph.initializer} <= read  # no weight twice


def test_a_weight_too_large_for_float16(trained, tmp_path):
    pytest.importorskip("onnxscript")
    config, checkpoint = trained
    saved = torch.load(checkpoint, weights_only=True)
    weights = saved.get("state_dict", saved)
    name = next(name for name, value in weights.items() if name.startswith("backbone.") and value.ndim == 4)
    weights[name].view(-1)[0] = 1e5
    torch.save(saved, tmp_path / "large.pth")
    with pytest.raises(ExportError, match=r"has the value 100000; allowed in float16: up to 65504"):
        export(config, str(tmp_path / "large.pth"), tmp_path / "out.onnx", half=True)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_openvino(trained, tmp_path, quantized):
    pytest.importorskip("onnxscript")
    ov = pytest.importorskip("openvino")
    from PIL import Image

    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 70, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    done = export(*trained, tmp_path / "out/model.xml", batch=None, int8=[tmp_path] if quantized else None)
    assert sorted(path.name for path in done.file.parent.iterdir()) == ["model.bin", "model.xml"]
    kinds = {node.get_type_name() for node in ov.Core().read_model(done.file).get_ops()}
    assert ("FakeQuantize" in kinds) == quantized
    found = compare(open_model(*trained, batch=None), done.file)
    assert 1e-5 < found.score < 0.2 if quantized else found.score < 1e-5


def test_a_file_that_differs_is_not_kept(trained, tmp_path):
    pytest.importorskip("onnxscript")

    def refuse(model, file):
        assert file.is_file()
        raise ExportError("differs")

    (tmp_path / "model.onnx").write_text("an older file")
    with pytest.raises(ExportError, match="differs"):
        export(*trained, tmp_path / "model.onnx", verify=refuse)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "an older file"


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("model.tflite", {}, r"suffix '.tflite'; allowed: .onnx, .xml, .pt2"),
        ("model.onnx", dict(shape=(64, 64), dynamic=True), "--shape 64 64 and --dynamic; allowed: one of them"),
        ("model.onnx", dict(shape=(16, 64)), "at least 32 pixels"),
        (".", {}, r"suffix ''; allowed"),
        ("model.onnx", dict(batch=0), "--batch 0; allowed"),
        ("model.pt2", dict(half=True), r"--fp16 with a .pt2 file"),
        ("model.pt2", dict(int8=["a.jpg"]), r"--int8 with a .pt2 file; allowed: .onnx, .xml"),
        ("model.onnx", dict(int8=["a.jpg"], half=True), "--fp16 and --int8"),
        ("model.onnx", dict(int8=["missing.jpg"]), "'missing.jpg': no such image"),
    ],
)
def test_wrong_arguments(trained, tmp_path, out, options, message):
    with pytest.raises(UsageError, match=message):
        export(*trained, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_the_file(trained, tmp_path):
    (tmp_path / "model.onnx").mkdir()
    (tmp_path / "file").touch()
    for out in ("model.onnx", "file/model.onnx"):
        with pytest.raises(UsageError, match="allowed: a file"):
            export(*trained, tmp_path / out)


def test_shape_of_a_classifier(trained):
    with pytest.raises(ExportError, match="--shape 64 96: the test pipeline gives images of"):
        open_model(*trained, shape=(64, 96))


def test_config_without_a_test_pipeline(trained):
    cfg, checkpoint = trained
    cfg = cfg.copy()
    cfg.test_dataloader = None
    with pytest.raises(ExportError, match="no test_dataloader with a pipeline"):
        open_model(cfg, checkpoint)


def test_missing_package(trained, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    with pytest.raises(UsageError, match=r"need onnxscript: pip install 'mmgcvit\[export\]'"):
        export(*trained, tmp_path / "model.onnx")


def test_command(trained, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    cfg, checkpoint = trained
    cfg.dump(tmp_path / "config.py")
    out = tmp_path / "model.onnx"
    assert main(["export", str(tmp_path / "config.py"), checkpoint, str(out)]) == 0
    printed = capsys.readouterr().out
    assert "model.onnx against the model" in printed
    assert "same most probable class" in printed
    assert "GCViTClassifier: batch 1, 3 channels, 32 x 32, uint8 -> probabilities" in printed
    assert out.is_file()


def test_command_with_a_wrong_checkpoint(trained, tmp_path, capsys):
    cfg, _ = trained
    cfg.dump(tmp_path / "config.py")
    torch.save({}, tmp_path / "empty.pth")
    assert main(["export", str(tmp_path / "config.py"), str(tmp_path / "empty.pth"), str(tmp_path / "model.onnx")]) == 1
    assert capsys.readouterr().err.startswith("export: ")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("model.backbone.arch=huge", r"model of the config: cannot be built: .*arch.*huge"),
        ("model.backbone.type=Missing", r"model of the config: cannot be built: .*Missing is not in the"),
        ("model.backbone.odd=1", r"model of the config: cannot be built: GCViT: unknown argument odd=1"),
        ("model.type.name=1", r"--cfg-options {'model.type.name': 1}: do not fit the config: "),
    ],
)
def test_command_with_a_config_that_does_not_build(trained, tmp_path, capsys, option, message):
    cfg, checkpoint = trained
    cfg.dump(tmp_path / "config.py")
    command = ["export", str(tmp_path / "config.py"), checkpoint, str(tmp_path / "model.onnx")]
    assert main([*command, "--cfg-options", option]) == 1
    printed = capsys.readouterr().err
    assert re.match(f"export: {message}", printed)
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(", "SyntaxError"),
        ("_base_ = './missing.py'", "missing.py"),
        ("custom_imports = dict(imports=['no_such_package'], allow_failed_imports=False)", "no_such_package"),
    ],
)
def test_command_with_a_config_that_cannot_be_loaded(trained, tmp_path, capsys, text, message):
    (tmp_path / "config.py").write_text(text)
    assert main(["export", str(tmp_path / "config.py"), trained[1], str(tmp_path / "model.onnx")]) == 1
    printed = capsys.readouterr().err
    assert re.match(f"export: config '.*config.py': cannot be loaded: .*{message}", printed)
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "base", ["detection/_base_/retinanet_gcvit-nano_fpn.py", "segmentation/_base_/fpn_gcvit-nano.py"]
)
def test_detector_or_segmentor_that_does_not_build(tmp_path, base):
    pytest.importorskip("mmcv._ext")
    cfg = Config.fromfile(ROOT / "configs" / base)
    cfg.default_scope = "mmdet" if base.startswith("det") else "mmseg"
    cfg.model.backbone.arch = "huge"
    pipeline = [dict(type="LoadImageFromFile"), dict(type=f"Pack{cfg.default_scope[2:].capitalize()}Inputs")]
    kind = "CocoDataset" if base.startswith("det") else "BaseSegDataset"
    cfg.test_dataloader = dict(dataset=dict(type=kind, pipeline=pipeline))
    torch.save(dict(state_dict={}), tmp_path / "last.pth")
    with pytest.raises(UsageError, match=r"model of the config: cannot be built: .*arch.*huge"):
        open_model(cfg, str(tmp_path / "last.pth"))
