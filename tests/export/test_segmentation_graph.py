"""Segmentors as graphs against mmseg's own test step, and as files in a default session of onnxruntime."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, randomise
from detectors import mask2former_head, sharpen
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmgcvit.errors import ExportError
from mmgcvit.export import formats, verify
from mmgcvit.export.modules import MatrixPool, replace_modules
from mmgcvit.export.segmentation import segmentation_graph
from mmgcvit.runtime.metadata import ModelInfo

HEADS = ("fpn", "segformer", "upernet", "mask2former")
SHAPES = ((1, 3, 224, 224), (3, 3, 256, 320), (1, 3, 300, 500), (3, 3, 97, 401))


def build(head: str, **changes):
    """A nano segmentor with one block per stage and random values everywhere."""
    base = "fpn" if head == "mask2former" else head
    config = Config.fromfile(ROOT / f"configs/segmentation/_base_/{base}_gcvit-nano.py")
    config.merge_from_dict({f"model.{name}": value for name, value in changes.items()})
    cfg = config.model
    init_default_scope("mmseg")
    import mmseg.models  # noqa: F401

    cfg.backbone.arch.depths = (1, 1, 1, 1)
    if head == "mask2former":
        cfg.pop("neck", None)
        cfg.pop("auxiliary_head", None)
        cfg.decode_head = mask2former_head(6)
        cfg.decode_head.num_classes = 6
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(cfg)).eval()
    if head != "mask2former":
        return randomise(model)
    randomise(model.backbone)  # random norms would make its queries equal
    sharpen(model.decode_head)
    return model


def exportable(model, shape=(None, None, None)):
    classes = tuple(map(str, range(model.decode_head.num_classes)))
    info = ModelInfo("segmentation", classes, ((1, 2, 3),) * len(classes), shape=shape, model="EncoderDecoder")
    return SimpleNamespace(task="segmentation", model=model, graph=segmentation_graph(model).eval(), info=info)


def images(shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def eager(model):
    def run(batch: np.ndarray) -> dict:
        with torch.no_grad():
            return dict(labels=model.graph(torch.from_numpy(batch))[0].numpy())

    return run


@pytest.mark.parametrize("head", HEADS)
def test_as_mmseg(head):
    theirs, ours = build(head), exportable(build(head))
    ours.model = theirs  # without replaced modules
    found = verify.compare(ours, eager(ours), map(images, SHAPES))
    assert found.labels < 1e-5
    assert len(np.unique(eager(ours)(images(SHAPES[0]))["labels"])) > 3


def test_one_output_with_a_threshold():
    changes = {"decode_head.num_classes": 2, "decode_head.out_channels": 1, "decode_head.threshold": 0.4}
    model = build("fpn", **changes)
    with torch.no_grad():  # half of the pixels are above the threshold
        logits = model.decode_head(model.extract_feat(torch.randn(1, 3, 96, 160)))
        model.decode_head.conv_seg.bias -= logits.median() - np.log(0.4 / 0.6)
    ours = exportable(model)
    found = verify.compare(ours, eager(ours), [images(SHAPES[3])])
    assert found.labels == 0
    assert set(np.unique(eager(ours)(images(SHAPES[3]))["labels"])) == {0, 1}


def onnx_differences(head: str, tmp_path) -> verify.Differences:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = exportable(build(head))
    file = tmp_path / f"{head}.onnx"
    formats.write_onnx(model.graph, model.info, file)
    return verify.compare(model, verify.open_file(file), map(images, SHAPES))


def test_onnx_of_any_size(tmp_path):
    assert onnx_differences("fpn", tmp_path).labels < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS[1:])
def test_onnx_of_other_heads(head, tmp_path):
    assert onnx_differences(head, tmp_path).labels < 1e-4


@pytest.mark.parametrize(
    "head", ["segformer", *(pytest.param(head, marks=pytest.mark.slow) for head in HEADS if head != "segformer")]
)
def test_pt2_of_any_size(head, tmp_path):
    model = exportable(build(head))
    formats.write_pt2(model.graph, model.info, tmp_path / "model.pt2")
    run = verify.open_file(tmp_path / "model.pt2")
    assert verify.compare(model, run, map(images, SHAPES)).labels < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_openvino(head, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    model = exportable(build(head))
    formats.write_onnx(model.graph, model.info, tmp_path / "model.onnx")
    formats.write_openvino(tmp_path / "model.onnx", model.info, tmp_path / "model.xml")
    run = verify.open_file(tmp_path / "model.xml")
    assert verify.compare(model, run, map(images, SHAPES)).labels < 1e-4


def test_slide_mode_is_refused():
    model = build("fpn", test_cfg=dict(mode="slide", crop_size=(64, 64), stride=(32, 32)))
    with pytest.raises(ExportError, match=r"model.test_cfg.mode='slide'; allowed: 'whole'"):
        segmentation_graph(model)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6)])
def test_matrix_pool(size):
    for shape in ((2, 5, 13, 21), (1, 3, 6, 7), (1, 2, 3, 2)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(MatrixPool(size)(x), nn.AdaptiveAvgPool2d(size)(x))


def test_replaced_modules():
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d((2, None)), nn.Sequential(nn.AdaptiveAvgPool2d(1))
    )
    replace_modules(model)
    assert [type(module).__name__ for module in (model[0], model[1], model[2][0])] == [
        "MatrixPool", "AdaptiveAvgPool2d", "MatrixPool",
    ]  # fmt: skip
