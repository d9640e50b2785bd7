"""Listing of inputs, what is drawn on, and writing of images and films."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2")

import cv2

from mmgcvit.errors import CorruptImageError, UsageError
from mmgcvit.tasks.sources import Film, PipelineReader, Source, write_image
from mmgcvit.utils.inputs import list_inputs


def image(path: Path, value: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(path, "png")
    return path


def names(*sources: Path, out: str = "nowhere") -> list[str]:
    return [entry.name for entry in list_inputs(sources, out)[0]]


def test_folders_in_folders(tmp_path: Path):
    for name in ("b.png", "a/1.JPG", "a/x/2.tif", ".hidden/3.png", "a/.4.png", "a/notes.txt", "film.mp4", "c"):
        image(tmp_path / name)
    (tmp_path / "README").write_text("no image")
    assert names(tmp_path) == ["a/1.JPG", "a/x/2.tif", "b.png", "c", "film.mp4"]
    found, skipped = list_inputs([tmp_path], "nowhere")
    assert skipped == []
    assert [entry.drawing for entry in found] == ["a/1.JPG", "a/x/2.tif", "b.png", "c.png", "film.mp4"]
    assert [entry.is_video for entry in found] == [False] * 4 + [True]


def test_results_of_an_earlier_call_are_left_out(tmp_path: Path):
    for name in ("a.png", "outputs/vis/a.png", "vis/a.png"):
        image(tmp_path / name)
    assert names(tmp_path, out=str(tmp_path / "outputs")) == ["a.png", "vis/a.png"]
    assert names(tmp_path, out=str(tmp_path)) == ["a.png", "outputs/vis/a.png"]


def test_equal_names_in_two_folders(tmp_path: Path):
    one, two = image(tmp_path / "a/1.png"), image(tmp_path / "b/1.png")
    assert names(tmp_path) == names(one, two) == names(one.parent, two.parent) == ["a/1.png", "b/1.png"]
    assert names(one) == ["1.png"]
    with pytest.raises(UsageError, match=r"would be written to the same file, 1\.png"):
        names(one, one)
    image(tmp_path / "a/1.avi")
    image(tmp_path / "a/1.mp4")
    with pytest.raises(UsageError, match=r"would be written to the same file, 1\.mp4"):
        names(tmp_path / "a")


def test_what_is_not_a_file_is_skipped_with_a_word(tmp_path: Path):
    image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/circle").symlink_to(tmp_path)
    found, skipped = list_inputs([tmp_path], "nowhere")
    assert [entry.name for entry in found] == ["a.png", "link.png"]
    assert sorted(skipped) == [
        f"{tmp_path}/gone.jpg: skipped: a link to nothing",
        f"{tmp_path}/pipe.png: skipped: neither a file nor a folder",
        f"{tmp_path}/pipe: skipped: neither a file nor a folder",
    ]
    for source in (tmp_path / "pipe.png", tmp_path / "gone.jpg", tmp_path / "sub/no.png"):
        with pytest.raises(UsageError, match="no such image, video or folder"):
            names(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no images in this folder; allowed: \.jpg"):
        names(tmp_path / "empty")


def test_display_of_other_images():
    bgr = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(Source("a", bgr).display, bgr[..., ::-1])
    np.testing.assert_array_equal(Source("a", bgr.astype(np.float32)).display, bgr[..., ::-1])
    np.testing.assert_array_equal(Source("a", np.dstack([bgr, bgr])).display, bgr[..., ::-1])
    np.testing.assert_array_equal(Source("a", bgr[..., 0]).display, bgr[..., [0, 0, 0]])
    np.testing.assert_array_equal(Source("a", bgr[..., :2]).display, bgr[..., [0, 0, 0]])
    ramp = np.linspace(500, 4000, 10000).reshape(100, 100)
    for deep in (ramp.astype(np.uint16), ramp.astype(np.float32) / 4000 - 0.5):
        shown = Source("a", deep).display
        assert (shown.shape, shown.dtype) == ((100, 100, 3), np.uint8)
        assert len(np.unique(shown)) == 256
    ramp[0, 0] = np.nan
    assert Source("a", ramp).display[0, 0].max() == 0
    assert not Source("a", np.full((4, 4), 7000, np.uint16)).display.any()


def test_image_that_cannot_be_written(tmp_path: Path):
    write_image(tmp_path / "sub/a.png", np.zeros((4, 5, 3), np.uint8))
    assert cv2.imread(str(tmp_path / "sub/a.png")).shape == (4, 5, 3)
    (tmp_path / "file").touch()
    for path in (tmp_path / "a.xyz", tmp_path / "file/a.png"):
        with pytest.raises(UsageError, match=r"cannot be written: "):
            write_image(path, np.zeros((4, 5, 3), np.uint8))


def test_film_appears_only_when_complete(tmp_path: Path):
    frame = np.zeros((48, 64, 3), np.uint8)
    with Film(tmp_path / "a.mp4", 5) as film:
        for _ in range(3):
            film.write(frame)
        assert not (tmp_path / "a.mp4").exists()
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3

    def write(name: str, lost: int = 0, error: type[Exception] | None = None) -> None:
        with Film(tmp_path / name, 5) as film:
            for _ in range(3):
                film.write(frame)
            film.count += lost  # as on a full disk
            if error:
                raise error

    with pytest.raises(RuntimeError):
        write("b.mp4", error=RuntimeError)
    with pytest.raises(UsageError, match=r"3 of 4 frames could be written"):
        write("c.mp4", lost=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_reader_warns_once_of_deep_images(tmp_path: Path, logged: list[str]):
    path = tmp_path / "deep.png"
    Image.fromarray(np.arange(48, dtype=np.uint16).reshape(6, 8) * 80).save(path)
    reader = PipelineReader([dict(type="LoadImageFromFile")])
    for _ in range(2):
        assert reader.image(path).max() == 14
    assert [line.partition("; ")[0] for line in logged if "bits per value" in line] == [
        f"image {path}: 16 bits per value, from 0 to 3760 in the file, from 0 to 14 as loaded"
    ]


def test_reader_compares_channels_with_the_backbone(tmp_path: Path):
    path = image(tmp_path / "a.png")
    pipeline = [dict(type="LoadImageFromFile", color_type="unchanged")]
    assert PipelineReader(list(pipeline), dict(backbone=dict(type="GCViT"))).image(path).shape == (6, 8, 3)
    assert PipelineReader(list(pipeline), dict(backbone=dict(type="Other", in_channels=4))).image(path).shape[2] == 3
    reader = PipelineReader(list(pipeline), dict(backbone=dict(type="GCViT", in_channels=4)))
    for call in (lambda: reader.image(path), lambda: reader.frame(np.zeros((6, 8, 3), np.uint8))):
        with pytest.raises(
            CorruptImageError, match=r"3 channels as loaded \(color_type='unchanged'\); allowed: 4, as model\.backb"
        ):
            call()
