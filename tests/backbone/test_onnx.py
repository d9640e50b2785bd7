"""``torch.onnx.export`` of the backbone, run in the default session of ONNX Runtime."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, randomise, relative_error
from torch import nn

from mmgcvit.backbone import GCViT
from mmgcvit.backbone.windows import PAD_MODES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
SIZES = [(224, 224), (256, 320), (300, 500), (97, 401), (448, 448), (512, 512)]
#: A stage with max-pooling and one without, blocks of both kinds.
TOY: dict[str, Any] = dict(
    arch={**TINY, "depths": (2, 2, 1, 1)}, global_query_reductions=(1, 0, 0, 0), out_indices=(0, 1)
)

pytestmark = [
    pytest.mark.skipif(TORCH < (2, 6), reason="older exporters fix more sizes than they must"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of the exporter, on itself
]


def export(model: nn.Module, path: Path, size: tuple[int, int], dynamic: bool) -> Any:
    """Export from one image, outside of ``no_grad``; returns a session with default options."""
    dim = torch.export.Dim.DYNAMIC
    shapes = ({0: dim, 2: dim, 3: dim},) if dynamic else None
    torch.onnx.export(model, (torch.randn(1, 3, *size),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert "Resize" not in {node.op_type for node in onnx.load(path).graph.node}
    return ort.InferenceSession(path)


def check(session: Any, model: nn.Module, *shape: int, tolerance: float = 1e-5) -> None:
    images = torch.randn(shape)
    with torch.no_grad():
        wanted = model(images)
    for got, w in zip(session.run(None, {session.get_inputs()[0].name: images.numpy()}), wanted, strict=True):
        assert relative_error(torch.from_numpy(got), w) < tolerance


def check_sizes(session: Any, model: nn.Module, tolerance: float = 1e-5) -> None:
    for size, batch in zip([*SIZES, (33, 20), (1, 1)], cycle((1, 3)), strict=False):
        check(session, model, batch, 3, *size, tolerance=tolerance)
    check(session, model, 3, 3, 1, 1, tolerance=tolerance)
    check(session, model, 1, 3, 33, 20, tolerance=tolerance)


# BackboneContract exports every mode for all sizes with torch.export, on which this exporter is based.
@pytest.mark.parametrize("pad", [pytest.param(p, marks=pytest.mark.slow if p == "stage" else ()) for p in PAD_MODES])
def test_dynamic_sizes(tiny_model, tmp_path: Path, pad: str):
    """One file for every batch and size, exported from one image."""
    model = tiny_model(pad=pad, **TOY)
    check_sizes(export(model, tmp_path / "model.onnx", (96, 160), dynamic=True), model)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:Constant folding:UserWarning")
@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
@pytest.mark.parametrize("pad", PAD_MODES)
def test_dynamic_sizes_from_torchscript(tiny_model, tmp_path: Path, pad: str, size: tuple[int, int]):
    """The same with the exporter that is based on TorchScript."""
    model, path, names = tiny_model(pad=pad), tmp_path / "model.onnx", ["map0", "map1", "map2", "map3"]
    axes = {name: {0: "batch", 2: "height", 3: "width"} for name in ("images", *names)}
    options: dict[str, Any] = dict(input_names=["images"], output_names=names, dynamic_axes=axes, opset_version=17)
    torch.onnx.export(model, (torch.randn(1, 3, *size),), path, dynamo=False, **options)
    assert "Resize" not in {node.op_type for node in onnx.load(path).graph.node}
    check_sizes(ort.InferenceSession(path), model)


@pytest.mark.slow
@pytest.mark.parametrize(("pad", "size"), list(zip(cycle(PAD_MODES), SIZES, strict=False)))
def test_static_sizes(tiny_model, tmp_path: Path, pad: str, size: tuple[int, int]):
    model = tiny_model(pad=pad)
    check(export(model, tmp_path / "model.onnx", size, dynamic=False), model, 1, 3, *size)


@pytest.mark.slow
@pytest.mark.parametrize("pad", PAD_MODES)
def test_xxtiny(tmp_path: Path, pad: str):
    """A deep network; ONNX Runtime's rounding is amplified in zero padding (2e-5 from the result in float64)."""
    model = randomise(GCViT("xxtiny", pad=pad)).eval()
    check_sizes(export(model, tmp_path / "model.onnx", (224, 256), dynamic=True), model, tolerance=1e-4)
    for size in ((256, 320), (448, 448)):
        check(export(model, tmp_path / "static.onnx", size, dynamic=False), model, 1, 3, *size, tolerance=1e-4)
