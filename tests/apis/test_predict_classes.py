"""Classification of images and videos: names, probabilities, drawings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from classification_run import config, make_tree
from mmengine.config import Config
from PIL import Image

from mmgcvit import apis
from mmgcvit.apis import UsageError
from mmgcvit.tasks.classification.preprocessor import ClassificationPreprocessor
from mmgcvit.tasks.classification.transforms import TimmTransform

pytest.importorskip("mmcv")
CLASSES = ("v", "w", "x", "y", "z")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, classifier) -> Path:
    """Three images, a video of two frames, and a checkpoint with names."""
    root = tmp_path_factory.mktemp("user")
    tree = make_tree(root / "colours", train=1, val=1)
    (root / "images").mkdir()
    for name in ("red", "green", "blue"):
        shutil.copy(tree / "val" / name / "0.png", root / "images" / f"{name}.png")
    writer = cv2.VideoWriter(str(root / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 8, (48, 40))
    for value in (40, 200):
        writer.write(np.full((40, 48, 3), value, np.uint8))
    writer.release()
    torch.save(
        dict(state_dict=classifier.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), root / "named.pth"
    )
    torch.save(classifier.state_dict(), root / "bare.pth")
    return root


def five(folder: Path) -> Config:
    cfg = config(folder / "colours", folder / "run", workers=0)
    cfg.model.num_classes = 5
    return cfg


def test_images_in_batches_and_video(folder: Path, tmp_path: Path, classifier):
    cfg = five(folder)
    before = cfg.pretty_text
    summary = apis.predict(
        cfg, str(folder / "named.pth"), [folder / "images", folder / "clip.avi"], str(tmp_path), "cpu", batch_size=2
    )
    assert cfg.pretty_text == before
    assert (summary.images, summary.frames, summary.objects) == (3, 2, 0)
    assert summary.pictures == summary.images
    found = json.loads((tmp_path / "classes.json").read_text())["images"]
    assert found == summary.results
    assert [image["file_name"] for image in found] == ["blue.png", "green.png", "red.png", "clip.avi", "clip.avi"]
    assert [image.get("frame") for image in found] == [None, None, None, 0, 1]
    transform = TimmTransform(is_training=False, input_size=32).transform
    for image in found[:3]:
        pixels = torch.as_tensor(transform(Image.open(folder / "images" / image["file_name"]).convert("RGB")))
        with torch.no_grad():
            scores = classifier(**ClassificationPreprocessor()(dict(inputs=pixels[None])), mode="predict")[0]
        values, order = scores.sort(descending=True)
        assert [entry["name"] for entry in image["classes"]] == [CLASSES[i] for i in order.tolist()]
        assert [entry["probability"] for entry in image["classes"]] == pytest.approx(values.tolist(), abs=2e-6)
    assert sorted(path.name for path in (tmp_path / "vis").iterdir()) == [
        "blue.png",
        "clip.mp4",
        "green.png",
        "red.png",
    ]
    drawn = np.asarray(Image.open(tmp_path / "vis/red.png").convert("RGB"))
    original = np.asarray(Image.open(folder / "images/red.png").convert("RGB"))
    zoom = round(512 / 48)
    assert drawn.shape[1] == zoom * 48
    np.testing.assert_array_equal(drawn[: zoom * 40 : zoom, ::zoom], original)
    assert (drawn[zoom * 40 :] > 200).all(-1).sum() > 100  # the classes, below the image


def test_class_names_from_config_or_numbers(folder: Path, tmp_path: Path):
    def names(cfg: Config) -> set[str]:
        out = apis.predict(cfg, str(folder / "bare.pth"), [folder / "images"], str(tmp_path), "cpu", draw=False)
        return {entry["name"] for image in out.results for entry in image["classes"]}

    assert names(five(folder)) == set("01234")
    cfg = five(folder)
    cfg.test_dataloader.dataset.classes = list("abcde")
    assert names(cfg) == set("abcde")


@pytest.mark.parametrize(("flag", "options"), [("--tta", dict(tta=True)), ("--tile", dict(tile=64)),
                                               ("--ann-file", dict(ann_file="x.json"))])  # fmt: skip
def test_unsupported_options(folder: Path, tmp_path: Path, flag: str, options: dict):
    with pytest.raises(UsageError, match=flag):
        apis.predict(five(folder), str(folder / "bare.pth"), [folder / "images"], str(tmp_path), "cpu", **options)


def test_head_with_other_classes(folder: Path, tmp_path: Path):
    cfg = five(folder)
    cfg.model.num_classes = 7
    with pytest.raises(UsageError, match=r"bare.pth'.*head.weight \(5, 128\), in the model \(7, 128\)"):
        apis.predict(cfg, str(folder / "bare.pth"), [folder / "images"], str(tmp_path), "cpu")


@pytest.mark.parametrize("before", ["backbone._orig_mod.", "student.backbone."])
def test_head_is_loaded_whatever_the_backbone_is_called(folder: Path, tmp_path: Path, classifier, before: str):
    """Only the backbone was compiled, for example: the names of the head are unchanged."""
    renamed = {name.replace("backbone.", before): value for name, value in classifier.state_dict().items()}
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=renamed, meta=meta), tmp_path / "renamed.pth")

    def results(checkpoint: Path) -> list[dict]:
        return apis.predict(
            five(folder), str(checkpoint), [folder / "images"], str(tmp_path), "cpu", draw=False
        ).results

    assert results(tmp_path / "renamed.pth") == results(folder / "named.pth")
