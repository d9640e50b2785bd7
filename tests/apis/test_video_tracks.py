"""Objects keep their numbers over the frames of a video (image_demo --track-objects)."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")

import cv2
from mmengine.structures import InstanceData

from mmgcvit.apis import UsageError, inference, predict
from mmgcvit.runtime.drawing import DISTINCT, draw
from mmgcvit.runtime.predictions import Detections
from mmgcvit.tasks import TASKS
from mmgcvit.tasks.detection import tracks
from mmgcvit.tasks.detection.predictor import Detector, _Ids

COLOURS = ((40, 40, 230), (40, 220, 40), (230, 120, 30))  # BGR of the squares
HEIGHT, WIDTH, FRAMES, SIDE = 121, 203, 12, 24


def corners(number: int, frame: int) -> tuple[int, int]:
    """Where a square is: two move in opposite directions past each other, the third is hidden in two frames."""
    return ((6 + 14 * frame, 20), (176 - 14 * frame, 48), (90 + 2 * frame, 88))[number]


def hidden(number: int, frame: int) -> bool:
    return number == 2 and frame in (5, 6)


class Squares(Detector):
    """A detector that finds squares by their colour, without a network."""

    def __init__(self) -> None:
        self.ids, self.results = _Ids(None), []
        self.classes, self.palette = ("red", "green", "blue"), DISTINCT[:3]
        self.inferencer = SimpleNamespace(model=nn.Identity())
        self.ids.name_categories(self.classes)

    class reader:
        image = staticmethod(lambda path: cv2.imread(str(path)))
        frame = staticmethod(lambda frame: frame)

    def __call__(self, sources):
        for source in sources:
            boxes, labels = [[1.0, 1.0, 9.0, 9.0]], [0]  # always there, with a low score
            for label, colour in enumerate(COLOURS):
                rows, columns = np.nonzero(np.abs(source.pixels.astype(int) - colour).sum(-1) < 90)
                if len(rows) > 50:
                    boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    labels.append(label)
            order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(source.frame or 0))
            scores = torch.tensor([0.1] + [0.9] * (len(boxes) - 1))
            yield source, InstanceData(
                bboxes=torch.tensor(boxes, dtype=torch.float32)[order], scores=scores[order],
                labels=torch.tensor(labels)[order])  # fmt: skip


@pytest.fixture
def video(tmp_path: Path, monkeypatch) -> Path:
    path = tmp_path / "squares.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for frame in range(FRAMES):
        image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
        for number, colour in enumerate(COLOURS):
            x, y = corners(number, frame)
            if not hidden(number, frame):
                image[y : y + SIDE, x : x + SIDE] = colour
        writer.write(image)
    writer.release()
    detection = next(task for task in TASKS if task.name == "detection")
    monkeypatch.setattr(inference, "load_predictor", lambda *_: (detection, Squares()))
    (tmp_path / "model.pth").touch()
    return path


def run(folder: Path, inputs: list, **options) -> tuple[list, dict]:
    predict({}, str(folder / "model.pth"), inputs, str(folder / "out"), device="cpu", **options)
    return tuple(json.loads((folder / f"out/{name}.json").read_text()) for name in ("predictions", "images"))


def test_numbers_stay_and_differ(tmp_path: Path, video: Path):
    pytest.importorskip("trackers")
    second = tmp_path / "again.avi"
    second.write_bytes(video.read_bytes())
    results, images = run(tmp_path, [str(video), str(second)], track_objects=True)
    frames = {image["id"]: (image["file_name"], image["frame"]) for image in images["images"]}
    assert len(frames) == 2 * FRAMES
    found = defaultdict(list)
    for result in results:
        name, frame = frames[result["image_id"]]
        if result["score"] < 0.3 or frame == 0:
            assert "track_id" not in result  # too low to begin a track, or seen for the first time
        else:
            found[name, result["category_id"]].append(result["track_id"])
    assert len(found) == 6
    for (_, category), numbers in found.items():
        assert len(numbers) == FRAMES - 1 - 2 * (category == 3)
        assert len(set(numbers)) == 1, (category, numbers)
    for name in ("squares.avi", "again.avi"):
        assert sorted(found[name, category][0] for category in (1, 2, 3)) == [0, 1, 2]  # each video begins anew
    assert (tmp_path / "out/vis").is_dir()


def test_without_tracking_there_are_no_numbers(tmp_path: Path, video: Path):
    results, _ = run(tmp_path, [str(video)], draw=False)
    assert len(results) == 4 * FRAMES - 2
    assert not any("track_id" in result for result in results)


def test_numbers_are_drawn():
    boxes, image = np.array([[10, 60, 300, 300]], np.float32), np.zeros((520, 601, 3), np.uint8)
    found = [Detections("a", 520, 601, ("cat",), boxes, np.ones(1), np.zeros(1, int), None, numbers)
             for numbers in (None, np.array([-1]), np.array([7]), np.array([8]))]  # fmt: skip
    drawn = [np.asarray(draw(image, objects, DISTINCT[:1])) for objects in found]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[2], drawn[3])
    assert found[2].select(np.array([0])).tracks.tolist() == [7]


def test_what_cannot_be_tracked(tmp_path: Path, video: Path, monkeypatch):
    options = dict(device="cpu", track_objects=True)
    arguments = {}, str(tmp_path / "model.pth")
    monkeypatch.setattr(tracks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="trackers and supervision; run `pip install supervision && pip install --no-"):
        predict(*arguments, [str(video)], str(tmp_path / "out"), **options)
    monkeypatch.setattr(inference, "require_trackers", lambda: None)
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((20, 31, 3), np.uint8))
    with pytest.raises(UsageError, match="--track-objects: no video among the inputs"):
        predict(*arguments, [str(tmp_path / "image.png")], str(tmp_path / "out"), **options)
    other = next(task for task in TASKS if task.name == "panoptic segmentation")
    monkeypatch.setattr(inference, "load_predictor", lambda *_: (other, Squares()))
    with pytest.raises(UsageError, match="the model is for panoptic segmentation; allowed: detectors"):
        predict(*arguments, [str(video)], str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
