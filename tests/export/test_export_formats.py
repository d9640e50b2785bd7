"""Writing of graphs: quantization."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor, nn

from mmgcvit.export.formats import write_onnx
from mmgcvit.runtime.metadata import ModelInfo

INFO = ModelInfo("classification", ("a", "b"), ((1, 2, 3), (4, 5, 6)), shape=(1, 32, 32))


class Graph(nn.Module):
    """A convolution in the place of a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.backbone = nn.Conv2d(3, 2, 3)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model.backbone(images.float()).mean((2, 3)),)

    def translations(self) -> dict:
        return {}


@pytest.mark.parametrize("count", [1, 8, 19])
def test_all_images_count_for_quantization(tmp_path, count):
    """The first image is the brightest one."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    images = np.random.default_rng(0).integers(0, 10, (count, 1, 3, 32, 32), np.uint8)
    images[0, ..., 5, 5] = 250
    write_onnx(Graph().eval(), INFO, tmp_path / "model.onnx", calibration=images)
    graph = onnx.load(tmp_path / "model.onnx").graph
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear")
    assert weights[first.input[1]] == pytest.approx(250 / 255, rel=0.01)
