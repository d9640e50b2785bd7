"""Files with predictions: equal to those of image_demo's writers, and the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_models import CLASSES, scene, write_model

from mmgcvit.errors import UsageError
from mmgcvit.runtime.__main__ import main, predict
from mmgcvit.runtime.masks import Region
from mmgcvit.runtime.predictions import Classification, Detections, Segmentation
from mmgcvit.runtime.results import ClassificationResults, DetectionResults, SegmentationResults

NAMES = ("a.jpg", "b/c.png")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
    return tmp_path / "ours", tmp_path / "theirs"


@pytest.mark.parametrize("kind", ["boxes", "masks", "masks without boxes"])
def test_detections_equal_image_demo(folders: tuple[Path, Path], kind: str):
    pytest.importorskip("mmdet")
    import torch
    from mmengine.structures import InstanceData

    from mmgcvit.tasks.detection.predictor import Detector, _Ids, _run_lengths
    from mmgcvit.tasks.sources import Source

    rng = np.random.default_rng(0)
    ours, theirs = DetectionResults(CLASSES, folders[0]), object.__new__(Detector)
    theirs.ids, theirs.results, theirs.classes = _Ids(None), [], CLASSES
    theirs.ids.name_categories(CLASSES)
    for name, (height, width), count in zip(
        (*NAMES, "none.png"), ((97, 401), (20, 30), (5, 7)), (4, 7, 0), strict=True
    ):
        corners = rng.random((count, 2)) * (width, height) * 0.7
        boxes = np.concatenate([corners, corners * 1.3], axis=1).astype(np.float32)
        scores, labels = rng.random(count).astype(np.float32), rng.integers(0, 3, count)
        instances = InstanceData(bboxes=torch.tensor(boxes), scores=torch.tensor(scores), labels=torch.tensor(labels))
        found = Detections(name, height, width, CLASSES, boxes, scores, labels)
        if kind != "boxes":
            found.regions = [Region(rng.random((3, 4)) > 0.4, i, i) for i in range(count)]
            masks = [region.full(height, width) for region in found.regions]
            instances.masks = [_run_lengths(mask, (0, 0), mask.shape) for mask in masks]
        if kind == "masks without boxes":
            instances.bboxes = torch.zeros(count, 4)
            found.boxes = np.array([region.box() for region in found.regions or ()], np.float32).reshape(-1, 4)
        ours.add(found)
        theirs.keep(Source(name, np.zeros((height, width, 3), np.uint8)), instances, folders[1])
    assert ours.write() == folders[0] / "predictions.json"
    theirs.write(folders[1])
    assert sorted(content(folders[0])) == ["images.json", "predictions.json"]
    assert content(folders[0]) == content(folders[1])
    assert ours.objects == len(json.loads((folders[0] / "predictions.json").read_text())) == 11


def test_label_maps_equal_image_demo(folders: tuple[Path, Path]):
    pytest.importorskip("mmseg")
    from mmgcvit.tasks.segmentation.predictor import Segmentor
    from mmgcvit.tasks.sources import Source

    ours, theirs = SegmentationResults(CLASSES, folders[0]), object.__new__(Segmentor)
    theirs.results, theirs.classes = [], CLASSES
    for name, (height, width) in zip(NAMES, ((97, 401), (20, 30)), strict=True):
        labels = np.random.default_rng(0).integers(0, 3, (height, width)).astype(np.uint8)
        ours.add(Segmentation(name, height, width, CLASSES, labels))
        theirs.keep(Source(name, np.zeros((height, width, 3), np.uint8)), labels, folders[1])
    ours.write()
    theirs.write(folders[1])
    found, wanted = map(content, folders)
    assert found["areas.json"] == wanted["areas.json"]
    assert sorted(found) == sorted(wanted) == ["areas.json", "labels/a.png", "labels/b/c.png"]
    for name in found:
        if name.endswith(".png"):
            np.testing.assert_array_equal(
                np.asarray(Image.open(folders[0] / name)), np.asarray(Image.open(folders[1] / name))
            )


def test_more_than_256_classes(tmp_path: Path):
    classes = tuple(map(str, range(400)))
    labels = np.arange(12 * 30).reshape(12, 30).astype(np.int32)
    results = SegmentationResults(classes, tmp_path)
    results.add(Segmentation("a.png", 12, 30, classes, labels))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels/a.png")), labels)
    results.write()
    assert json.loads((tmp_path / "areas.json").read_text())["images"][0]["areas"]["359"]["pixels"] == 1


def test_classes_equal_image_demo(folders: tuple[Path, Path]):
    from mmgcvit.tasks.classification.predictor import ClassPredictor
    from mmgcvit.tasks.sources import Source

    ours, theirs = ClassificationResults(CLASSES, folders[0]), object.__new__(ClassPredictor)
    theirs.results = []
    for name, values in zip(NAMES, ([0.2, 0.7, 0.1], [1 / 3, 1 / 4, 5 / 12]), strict=True):
        found = Classification(name, 5, 6, CLASSES, np.array(values, np.float32))
        ours.add(found)
        theirs.keep(Source(name, np.zeros((5, 6, 3), np.uint8)), found.top(5), folders[1])
    assert ours.write() == folders[0] / "classes.json"
    theirs.write(folders[1])
    assert content(folders[0]) == content(folders[1])
    with (folders[0] / "classes.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:4] == ["image", "frame", "class_1", "probability_1"]
    assert rows[1] == ["a.jpg", "", "dog", "0.7", "cat", "0.2", CLASSES[2], "0.1"]


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder with images."""
    (tmp_path / "images/more").mkdir(parents=True)
    Image.fromarray(scene(97, 401, (10, 20, 100, 50))).save(tmp_path / "images/a.png")
    Image.fromarray(scene(64, 64, (5, 6, 30, 40))).save(tmp_path / "images/more/b.jpg", quality=100)
    Image.fromarray(scene(60, 80, None)).save(tmp_path / "images/c.gif")
    return tmp_path


def test_command(user: Path, capsys):
    model = write_model(user / "model.onnx", masks="box")
    out = user / "out"
    main([str(model), str(user / "images"), "--out-dir", str(out), "--batch-size", "2", "--threads", "1"])
    assert capsys.readouterr().out == (
        f"3 images, 2 detections: predictions in {out}/predictions.json, drawings in {out}/vis\n"
    )
    results = json.loads((out / "predictions.json").read_text())
    images = {image["id"]: image for image in json.loads((out / "images.json").read_text())["images"]}
    assert [images[result["image_id"]]["file_name"] for result in results] == ["a.png", "more/b.jpg"]
    assert results[0]["bbox"] == [10.0, 20.0, 90.0, 30.0]
    assert results[0]["category_id"] == 2
    assert results[1]["segmentation"]["size"] == [64, 64]
    drawings = [path for path in content(out) if path.startswith("vis/")]
    assert sorted(drawings) == ["vis/a.png", "vis/c.gif.png", "vis/more/b.jpg"]


@pytest.mark.parametrize(("task", "file"), [("segmentation", "areas.json"), ("classification", "classes.json")])
def test_command_without_drawings(user: Path, capsys, task: str, file: str):
    model = write_model(user / "model.onnx", task)
    main(
        [str(model), str(user / "images/a.png"), str(user / "images/more"), "--out-dir", str(user / "out"), "--no-draw"]
    )
    assert capsys.readouterr().out == f"2 images: predictions in {user}/out/{file}\n"
    assert [image["file_name"] for image in json.loads((user / "out" / file).read_text())["images"]] == [
        "a.png",
        "b.jpg",
    ]
    assert not (user / "out/vis").exists()


def test_command_with_tiles(user: Path):
    model = write_model(user / "model.onnx")
    found = predict(model, [user / "images/a.png"], user / "out", tile=128, overlap=0.5, draw_images=False)
    assert found.objects == 2
    boxes = [result["bbox"] for result in json.loads((user / "out/predictions.json").read_text())]
    assert sorted(boxes) == [[10.0, 20.0, 90.0, 30.0], [64.0, 20.0, 36.0, 30.0]]


def test_unreadable_inputs_do_not_stop_the_others(user: Path):
    (user / "images/broken.jpg").write_bytes(b"no image")
    model = write_model(user / "model.onnx", shape=(1, 80, 96))
    with pytest.raises(SystemExit) as caught:
        main([str(model), str(user / "images"), "--out-dir", str(user / "out")])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("mmgcvit.runtime: image 'a.png': an image of 401 x 97 pixels")
    assert "broken.jpg': cannot be decoded" in lines[1]
    assert lines[2] == f"2 of 4 inputs failed; the results of the others are in {user}/out/predictions.json"
    images = json.loads((user / "out/images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["c.gif", "more/b.jpg"]
    with pytest.raises(UsageError, match=r"cannot be decoded: .*\nthere are no results$"):
        predict(model, [user / "images/broken.jpg"], user / "none")


def test_label_maps_of_the_same_name(user: Path):
    Image.fromarray(scene(20, 30, None)).save(user / "images/a.jpg")
    with pytest.raises(UsageError, match=r"label maps of .* would be written to the same file, a\.png"):
        predict(write_model(user / "model.onnx", "segmentation"), [user / "images"], user / "out")


def test_folder_that_cannot_be_written(user: Path):
    (user / "file").write_text("")
    with pytest.raises(UsageError, match=r"out_dir='.*file': cannot be written"):
        predict(write_model(user / "model.onnx"), [user / "images"], user / "file")
