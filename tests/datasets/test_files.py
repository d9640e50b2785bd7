"""Checks of files before a run: encodings, names, and sizes from headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgcvit.datasets import files
from mmgcvit.datasets.files import (
    header,
    image_loader,
    missing_files,
    require_annotated_size,
    size_problems,
)
from mmgcvit.datasets.text import read_names, read_utf8
from mmgcvit.errors import AnnotationError

LOADER = dict(type="LoadImageFromFile")


@pytest.mark.parametrize(("encoding", "says"), [
    ("utf-8-sig", "is UTF-8 with a byte order mark; allowed: UTF-8 without"),
    ("utf-16", "is UTF-16; allowed: UTF-8 without a byte order mark. To convert it: python -c"),
    ("utf-16-be", "is UTF-16 without a byte order mark"),
    ("utf-16-le", "is UTF-16 without a byte order mark"),
    ("utf-32", "is UTF-32; allowed"),
    ("latin-1", "is not UTF-8 (byte 10: 0xfc); allowed: UTF-8"),
])  # fmt: skip
def test_other_encodings(tmp_path: Path, encoding: str, says: str):
    path = tmp_path / "a.json"
    path.write_bytes('{"name": "ü"}'.encode(encoding))
    with pytest.raises(AnnotationError) as error:
        read_utf8("annotation file", path)
    assert str(error.value).startswith(f"annotation file '{path}' {says}")
    if "python -c" in str(error.value):  # the advice works
        exec(str(error.value).split('python -c "')[1].removesuffix('"'), {})
        assert read_utf8("annotation file", path) == '{"name": "ü"}'


def test_names_are_read_as_mmengine_reads_them(tmp_path: Path):
    from mmengine import list_from_file

    path = tmp_path / "names.txt"
    for text in ("cat\ndog\n", "cat\r\ndog\r\n", "cat\ndog", "grüne Katze\ndog"):
        path.write_bytes(text.encode())
        assert read_names("classes", path) == list_from_file(str(path))
    for text, says in (("cat\n\ndog\n", "line 2 is ''"), ("cat \ndog\n", "line 1 is 'cat '"), ("cat\n\n", "line 2 is")):
        path.write_bytes(text.encode())
        with pytest.raises(AnnotationError, match=says):
            read_names("classes", path)


def test_image_loader():
    assert image_loader([dict(type="mmdet.Other"), LOADER]) == LOADER
    assert image_loader([dict(type="mmcv.LoadImageFromFile", backend_args=dict(backend="local"))])
    assert image_loader([dict(LOADER, backend_args=dict(backend="petrel", path_mapping={}))]) is None
    assert image_loader([dict(type="LoadImageFromNDArray")]) is None
    assert image_loader(None) is None


@pytest.mark.parametrize("count", [3, 30])
def test_missing_files(tmp_path: Path, count: int):
    paths = [str(tmp_path / f"{i}.jpg") for i in range(count)]
    for path in paths[:-2]:
        Path(path).touch()
    assert missing_files(paths) == paths[-2:]
    elsewhere = [str(tmp_path / "nowhere" / f"{i}.jpg") for i in range(count)]
    assert missing_files(paths + elsewhere) == paths[-2:] + elsewhere


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_headers_of_turned_images(tmp_path: Path, suffix: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = str(tmp_path / f"a.{suffix}")
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    assert header(path) == ((30, 40), "RGB")
    assert header(path, oriented=False) == ((40, 30), "RGB")
    assert list(size_problems([(path, 30, 40)], LOADER)) == []
    (problem,) = size_problems([(path, 40, 30)], LOADER)
    assert str(problem) == f"{path}: is 30 x 40 (width x height), but 40 x 30 in the annotations"
    assert list(size_problems([(path, 40, 30)], dict(LOADER, color_type="color_ignore_orientation"))) == []


def test_headers_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "a.jpg"
    assert header(str(path)) is None
    path.write_bytes(b"\xff\xd8 nothing")
    assert header(str(path)) is None
    assert list(size_problems([(str(path), 4, 3), (str(path), None, None)], LOADER)) == []


def test_large_data_sets_are_sampled(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "HEADERS", 4)
    images = []
    for i in range(9):
        Image.new("L", (5, 4)).save(tmp_path / f"{i}.png")
        images.append((str(tmp_path / f"{i}.png"), 5, 4 if i < 6 else 5))
    found = [Path(problem.where).name for problem in size_problems(images, LOADER)]
    assert found == ["6.png"]  # of 0, 3 and 6


def test_loaded_images_are_compared_with_annotations(tmp_path: Path):
    pytest.importorskip("mmcv")
    from mmgcvit.datasets.loading import LoadCheckedImage

    path = str(tmp_path / "a.png")
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
    for sample in (dict(), dict(width=40, height=30), dict(width=None, height=None), dict(width=0, height=0)):
        assert LoadCheckedImage()(dict(img_path=path, **sample))["img_shape"] == (30, 40)
    with pytest.raises(AnnotationError, match=r"a.png: is 40 x 30 \(width x height\), but 30 x 40 in the annotations"):
        LoadCheckedImage()(dict(img_path=path, width=30, height=40))
    skipping = LoadCheckedImage(corrupt="skip")
    assert skipping(dict(img_path=path, width=30, height=40)) is None
    assert skipping(dict(img_path=path, width=40, height=30))["img_shape"] == (30, 40)
    assert skipping.skipped == 1
    require_annotated_size(path, (30, 40, 3), dict(width=40.0, height=30.0))
