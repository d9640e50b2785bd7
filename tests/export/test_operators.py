"""Operations with fixed shapes: right results, in torch and after the export, also for empty inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import dynamic
from torch import Tensor, nn

from mmgcvit.export.operators import nms, probability, roi_align, top_k, translation_table

THRESHOLD = 0.5


def candidates(groups: int, classes: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return overlapping boxes and their scores; a third of the places are not used."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(groups, count, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 5 + torch.rand(groups, count, 2, generator=generator) * 40], dim=-1)
    scores = torch.rand(groups, classes, count, generator=generator)
    return boxes, torch.where(scores < 0.33, -1.0, scores)


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Suppress box by box, as the definition says."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group, own in enumerate(boxes.tolist()):
        for label, values in enumerate(scores[group].tolist()):
            chosen: list[int] = []
            for index in sorted(range(len(values)), key=lambda i: -values[i]):
                if values[index] >= 0 and all(overlap(own[index], own[other]) <= threshold for other in chosen):
                    chosen.append(index)
                    kept[group, label, index] = True
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    return both / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - both)


class Suppress(nn.Module):
    """Non-maximum suppression as a model."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return nms(boxes, scores, THRESHOLD)


class Rank(nn.Module):
    """Probabilities, and the order of the best."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        values = probability(logits)
        return values, top_k(values, logits.shape[1])[1]


def test_small_probabilities_are_ranked_after_the_export():
    """As by torch. onnxruntime's own Sigmoid gives many of these logits the same value."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    logits = torch.stack([torch.linspace(-80, 12, 401), torch.linspace(-16, -14, 401)])[:, torch.randperm(401)]
    model = Rank()
    torch.testing.assert_close(model(logits)[0], logits.sigmoid(), rtol=1e-6, atol=0)
    program = torch.onnx.export(model, (logits,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    values, order = session.run(None, {session.get_inputs()[0].name: logits.numpy()})
    torch.testing.assert_close(torch.from_numpy(values), logits.sigmoid(), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.from_numpy(order), logits.argsort(dim=1, descending=True))


CASES = {
    "one": candidates(1, 1, 9),
    "groups and classes": candidates(3, 4, 25),
    "many groups": candidates(40, 2, 7, seed=1),
    "none": (candidates(2, 3, 6)[0], torch.full((2, 3, 6), -1.0)),
    "score 0 counts": (candidates(2, 1, 3)[0], torch.tensor([[[0.0, -1, 0]], [[-1, 0, -1]]])),
    "the same box": (torch.ones(2, 4, 4) * torch.tensor([1, 2, 30, 40]), torch.rand(2, 2, 4)),
}


def test_nms():
    """Each class of each group on its own; what is no candidate neither remains nor suppresses."""
    pytest.importorskip("torchvision")
    for name, (boxes, scores) in CASES.items():
        kept = nms(boxes, scores, THRESHOLD)
        assert torch.equal(kept, plain_nms(boxes, scores, THRESHOLD)), name
        assert not kept[scores < 0].any(), name
    assert (
        0 < int(nms(*CASES["groups and classes"], THRESHOLD).sum()) < int((CASES["groups and classes"][1] >= 0).sum())
    )


def test_nms_keeps_digits():
    """Groups far apart do not change the overlap of boxes: here it is the threshold, or hardly above it."""
    pytest.importorskip("torchvision")
    pair = torch.tensor([[0.0, 0, 1024, 512], [0, 0, 1024, 1024]])
    above = torch.tensor([[0.0, 0, 1024, 512.0625], [0, 0, 1024, 1024]])
    boxes = torch.stack([pair, above] * 2000)
    kept = nms(boxes, torch.tensor([0.5, 0.9]).expand(4000, 1, 2), THRESHOLD)
    assert torch.equal(kept[:, 0], torch.tensor([[True, True], [False, True]]).repeat(2000, 1))


@pytest.fixture(scope="session")
def suppress_file(tmp_path_factory) -> Any:
    """An ONNX file of the suppression, for any number of groups, classes and boxes."""
    pytest.importorskip("onnxscript")
    file = tmp_path_factory.mktemp("onnx") / "nms.onnx"
    program = torch.onnx.export(
        Suppress().eval(),
        candidates(2, 3, 5),
        dynamo=True,
        custom_translation_table=translation_table(),
        dynamic_shapes=(dynamic(0, 1), dynamic(0, 1, 2)),
        input_names=["boxes", "scores"],
        verbose=False,
    )
    program.save(file)
    return file


def test_nms_in_onnx_runtime(suppress_file):
    """The same candidates remain, also where there are none."""
    session = pytest.importorskip("onnxruntime").InferenceSession(suppress_file)
    for name, (boxes, scores) in CASES.items():
        (kept,) = session.run(None, {"boxes": boxes.numpy(), "scores": scores.numpy()})
        assert torch.equal(torch.from_numpy(kept), plain_nms(boxes, scores, THRESHOLD)), name


def test_nms_in_openvino(suppress_file):
    """The same candidates remain, also where there are none."""
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(openvino.convert_model(suppress_file), "CPU")
    for name, (boxes, scores) in CASES.items():
        (kept,) = model([boxes.numpy(), scores.numpy()]).values()
        assert torch.equal(torch.from_numpy(kept).bool(), plain_nms(boxes, scores, THRESHOLD)), name


def test_nms_in_a_torch_file(tmp_path):
    """The exported program has torch's and torchvision's operators only."""
    pytest.importorskip("torchvision")
    shapes = (dynamic(0, 1), dynamic(0, 1, 2))
    program = torch.export.export(Suppress(), candidates(2, 3, 5), dynamic_shapes=shapes, strict=False)
    torch.export.save(program, tmp_path / "nms.pt2")
    module = torch.export.load(tmp_path / "nms.pt2").module()
    for name in ("groups and classes", "none", "many groups", "the same box"):
        boxes, scores = CASES[name]
        assert torch.equal(module(boxes, scores), plain_nms(boxes, scores, THRESHOLD)), name


def test_top_k():
    """Fewer scores than asked for are filled with negative ones, with indices that can be used."""
    scores = torch.tensor([[0.1, 0.7, 0.4], [0.9, 0.0, 0.2]])
    values, indices = top_k(scores, 2)
    assert torch.equal(indices, torch.tensor([[1, 2], [0, 2]]))
    values, indices = top_k(scores, 5)
    assert torch.equal(values[:, :3], scores.sort(descending=True).values)
    assert torch.equal(values[:, 3:], torch.full((2, 2), -1.0))
    assert torch.equal(indices[:, :3], torch.tensor([[1, 2, 0], [0, 2, 1]]))
    assert int(indices.max()) < 3


class Align(nn.Module):
    """An extractor of mmdet, for two levels."""

    def __init__(self) -> None:
        super().__init__()
        from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

        layer = dict(type="RoIAlign", output_size=3, sampling_ratio=0)
        self.extractor = SingleRoIExtractor(layer, out_channels=4, featmap_strides=[4, 8])

    def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(self.extractor, (fine, coarse), boxes)


#: Boxes of two images: of both levels, empty, flat, partly and wholly outside of the image.
BOXES = torch.tensor(
    [
        [[3.0, 5, 40, 30], [0, 0, 150, 140], [0, 0, 0, 0], [10, 20, 10, 60]],
        [[7.5, 2.25, 33, 47], [-20, 30, 130, 190], [300, 300, 340, 350], [5, 9, 160, 9]],
    ]
)


def maps() -> tuple[Tensor, Tensor]:
    """Return the maps of two levels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 40, 48, generator=generator), torch.randn(2, 4, 20, 24, generator=generator)


def test_roi_align():
    """The values are those of mmdet's extractor."""
    pytest.importorskip("mmcv._ext")
    module, inputs = Align(), maps()
    rois = torch.cat([torch.tensor([0.0, 1]).repeat_interleave(4)[:, None], BOXES.flatten(0, 1)], dim=1)
    assert len(module.extractor.map_roi_levels(rois, 2).unique()) == 2
    torch.testing.assert_close(module(*inputs, BOXES), module.extractor(inputs, rois))


def test_roi_align_in_runtimes(tmp_path):
    """ONNX Runtime and OpenVINO return the same, and no NaN for empty boxes."""
    pytest.importorskip("mmcv._ext")
    pytest.importorskip("onnxscript")
    onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")
    file = tmp_path / "align.onnx"
    torch.onnx.export(
        Align().eval(),
        (*maps(), BOXES),
        dynamo=True,
        dynamic_shapes=(dynamic(2, 3), dynamic(2, 3), dynamic(1)),
        input_names=["fine", "coarse", "boxes"],
        verbose=False,
    ).save(file)
    wanted = Align()(*maps(), BOXES)
    inputs = dict(zip(("fine", "coarse", "boxes"), (x.numpy() for x in (*maps(), BOXES)), strict=True))
    (found,) = onnxruntime.InferenceSession(file).run(None, inputs)
    torch.testing.assert_close(torch.from_numpy(found), wanted)
    model = openvino.convert_model(file)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (found,) = compiled(inputs).values()
    torch.testing.assert_close(torch.from_numpy(found), wanted)
