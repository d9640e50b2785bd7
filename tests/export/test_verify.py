"""The comparison of a file with its model must find every kind of difference."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmgcvit.errors import ExportError
from mmgcvit.export import verify
from mmgcvit.runtime.metadata import ModelInfo

INFO = ModelInfo("detection", ("a", "b"), ((1, 2, 3), (4, 5, 6)), masks="image")
BOXES = np.array([[10, 10, 40, 50], [60, 20, 90, 45], [5, 60, 25, 90]], np.float32)


def detections() -> dict[str, np.ndarray]:
    masks = np.zeros((3, 100, 100), np.float32)
    for mask, (x1, y1, x2, y2) in zip(masks, BOXES.astype(int), strict=True):
        mask[y1:y2, x1:x2] = 0.9
    return dict(
        boxes=BOXES.copy(), scores=np.array([0.9, 0.7, 0.4], np.float32), labels=np.array([0, 1, 1]), masks=masks
    )


def compare(monkeypatch, task: str, reference: dict, found: dict, info: ModelInfo = INFO) -> verify.Differences:
    monkeypatch.setattr(verify, "predict", lambda model, images: [reference])
    batched = {name: values[None] for name, values in found.items()}
    model = SimpleNamespace(task=task, info=info)
    return verify.compare(model, lambda images: batched, [np.zeros((1, 3, 100, 100), np.uint8)])


def test_equal_detections(monkeypatch):
    reference, found = detections(), detections()
    reference["masks"] = reference["masks"] > 0.5
    # The order does not matter, and places with label -1 are unused.
    found = {name: np.concatenate([values[::-1], values[:1] * 0]) for name, values in found.items()}
    found["labels"][-1] = -1
    result = compare(monkeypatch, "detection", reference, found)
    assert (result.detections, result.unmatched, result.box, result.score, result.mask) == (3, 0, 0, 0, 0)
    verify.require_equal(result, verify.Tolerance(), "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["boxes"].__setitem__((1, 2), 90.5), r"unmatched 0.667 \(allowed: 0.01\)"),
        (lambda found: found["scores"].__setitem__(2, 0.41), "score 0.01"),
        (lambda found: found["scores"].__setitem__(2, np.nan), "score inf"),
        (lambda found: found["labels"].__setitem__(0, 1), "unmatched 0.667"),
        (lambda found: found["labels"].__setitem__(0, -1), "unmatched 0.333"),
        (lambda found: found["boxes"].__iadd__(50), "unmatched 2"),
        (lambda found: found["masks"][0, 10:20].fill(0), "mask 0.25"),
    ],
)
def test_other_detections(monkeypatch, change, message):
    reference, found = detections(), detections()
    reference["masks"] = reference["masks"] > 0.5
    change(found)
    result = compare(monkeypatch, "detection", reference, found)
    with pytest.raises(ExportError, match=f"file: differs from the model: .*{message}"):
        verify.require_equal(result, verify.Tolerance(), "file")


def test_smallest_score_that_is_compared(monkeypatch):
    reference, found = detections(), detections()
    reference["masks"] = reference["masks"] > 0.5
    found["boxes"][2] += 1  # score 0.4
    found["labels"][1] = 0  # score 0.7
    monkeypatch.setattr(verify, "predict", lambda model, images: [reference])
    model = SimpleNamespace(task="detection", info=INFO)
    batched = {name: values[None] for name, values in found.items()}
    for smallest, expected in ((0.0, (3, 2, 1.0)), (0.5, (2, 2, 0.0)), (0.8, (1, 0, 0.0))):
        allowed = verify.Tolerance(box=2.0, min_score=smallest)
        result = verify.compare(model, lambda images: batched, [np.zeros((1, 3, 100, 100), np.uint8)], allowed)
        assert (result.detections, result.unmatched, result.box) == expected


def test_detections_of_lower_precision_may_change(monkeypatch):
    """Of three detections one moves by more than is allowed for float16: it has no counterpart."""
    reference, found = detections(), detections()
    reference["masks"] = reference["masks"] > 0.5
    found["boxes"][0] += 1
    found["boxes"][1] += 3
    monkeypatch.setattr(verify, "predict", lambda model, images: [reference])
    model = SimpleNamespace(task="detection", info=INFO)
    batched = {name: values[None] for name, values in found.items()}
    images = [np.zeros((1, 3, 100, 100), np.uint8)]
    result = verify.compare(model, lambda images: batched, images, verify.HALF)
    assert (result.detections, result.unmatched, result.box) == (3, 2, 1.0)
    with pytest.raises(ExportError, match=r"unmatched 0.667 \(allowed: 0.05\)"):
        verify.require_equal(result, verify.HALF, "file")


@pytest.mark.parametrize("masks", ["box", "image"])
def test_boxes_around_masks_may_change_by_single_pixels(monkeypatch, masks):
    reference, found = detections(), detections()
    for values in (reference, found):
        values["boxes"][1] += 0 if values is reference else [0, 0, 4, 0]
        values["masks"] = values["masks"] > 0.5 if values is reference else np.ones((3, 28, 28), np.float32)
    if masks == "image":
        found["masks"] = detections()["masks"]
    info = ModelInfo("detection", ("a", "b"), ((1, 2, 3), (4, 5, 6)), masks=masks)
    result = compare(monkeypatch, "detection", reference, found, info)
    assert (result.unmatched, result.box) == ((2, 0) if masks == "image" else (0, 4))


def test_label_maps(monkeypatch):
    reference = np.random.default_rng(0).integers(0, 5, (100, 100))
    found = reference.astype(np.uint8)
    assert compare(monkeypatch, "segmentation", dict(labels=reference), dict(labels=found)).labels == 0
    found[0, :3] = 7
    result = compare(monkeypatch, "segmentation", dict(labels=reference), dict(labels=found))
    assert result.labels == pytest.approx(3e-4)
    with pytest.raises(ExportError, match=r"labels 0\.0003"):
        verify.require_equal(result, verify.Tolerance(), "file")
    assert compare(monkeypatch, "segmentation", dict(labels=reference), dict(labels=found[1:])).labels == 1


def test_probabilities(monkeypatch):
    reference = np.array([0.5, 0.3, 0.2], np.float32)
    result = compare(
        monkeypatch, "classification", dict(probabilities=reference), dict(probabilities=reference[[1, 0, 2]])
    )
    assert result.score == pytest.approx(0.2)
    assert result.top1 == 0
    with pytest.raises(ExportError, match=r"score 0\.2"):
        verify.require_equal(result, verify.Tolerance(), "file")


def test_metrics():
    model = dict(mAP=0.5, mAP_l=-1.0)
    verify.require_metrics(model, dict(mAP=0.495, mAP_l=-1.0), "file")
    for value in (0.48, float("nan")):
        with pytest.raises(ExportError, match=r"loses on the validation data: mAP .* \(model: 0.5000\)"):
            verify.require_metrics(model, dict(mAP=value, mAP_l=-1.0), "file")


@pytest.mark.parametrize("value", [np.nan, -1.0])
def test_quantized_files_that_predict_nothing(monkeypatch, value):
    reference, found = detections(), detections()
    reference["masks"] = reference["masks"] > 0.5
    if np.isnan(value):
        found["scores"][:] = value
    else:
        found["labels"][:] = -1
    result = compare(monkeypatch, "detection", reference, found)
    with pytest.raises(ExportError):
        verify.require_equal(result, verify.QUANTIZED, "file")


def test_match_prefers_the_better_overlap_and_keeps_classes_apart():
    a = dict(boxes=BOXES[[0, 0]], scores=np.array([0.9, 0.8]), labels=np.array([0, 1]))
    b = dict(boxes=BOXES[[0, 0, 0]] + [[0], [1], [0]], scores=np.array([0.8, 0.9, 0.9]), labels=np.array([1, 0, 0]))
    assert sorted(verify.match(a, b)) == [(0, 2), (1, 0)]
    none = dict(boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, int))
    assert verify.match(a, none) == []
