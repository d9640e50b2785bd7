"""Images that cannot be decoded stop a run with an error that names them, or are skipped and counted."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmcv")
pytest.importorskip("mmdet")

from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from test_annotations import content, dataset, write

from mmgcvit.datasets.files import header
from mmgcvit.datasets.loading import LoadCheckedImage
from mmgcvit.errors import CorruptImageError, UsageError


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not an image"}[how])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_intact_image_loads_as_with_mmcv(tmp_path: Path, suffix: str):
    from mmcv.transforms import LoadImageFromFile

    noise = np.random.default_rng(0).integers(0, 255, (31, 45, 3), dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise).save(path)
    for kwargs in ({}, dict(to_float32=True), dict(color_type="grayscale"), dict(imdecode_backend="pillow")):
        theirs = LoadImageFromFile(**kwargs)(dict(img_path=str(path)))
        ours = LoadCheckedImage(**kwargs)(dict(img_path=str(path)))
        assert ours.keys() == theirs.keys()
        assert ours["img_shape"] == theirs["img_shape"] == ours["ori_shape"] == (31, 45)
        assert ours["img"].dtype == theirs["img"].dtype
        assert (ours["img"] == theirs["img"]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "text"])
def test_stop_names_the_image(tmp_path: Path, suffix: str, how: str):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    damage(path, how)
    with pytest.raises(CorruptImageError) as error:
        LoadCheckedImage()(dict(img_path=str(path)))
    assert f"image {path}: cannot be " in str(error.value)
    skipping = LoadCheckedImage(corrupt="skip")
    assert skipping(dict(img_path=str(path))) is None
    assert int(skipping.skipped) == 1


def test_trailing_bytes_are_accepted(tmp_path: Path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (64, 64), "red").save(path)
    path.write_bytes(path.read_bytes() + b"\0" * 5000)  # some cameras do this
    assert LoadCheckedImage()(dict(img_path=str(path)))["img"].shape == (64, 64, 3)


def test_bad_argument():
    with pytest.raises(ValueError, match=r"corrupt='ignore'; allowed: 'stop', 'skip'"):
        TRANSFORMS.build(dict(type="mmgcvit.LoadCheckedImage", corrupt="ignore"))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_in_training_and_counted(tmp_path: Path, workers: int):
    """With mmdet's data set and workers: another image is loaded instead, and the main process gets the count."""
    write(tmp_path, content())
    damage(tmp_path / "images/a.jpg", "truncated")
    init_default_scope("mmdet")
    config = dataset(tmp_path)
    config["pipeline"] = [dict(type="mmgcvit.LoadCheckedImage", corrupt="skip"), *config["pipeline"][1:]]
    loader = Runner.build_dataloader(
        dict(batch_size=2, num_workers=workers, sampler=dict(type="DefaultSampler", shuffle=False), dataset=config),
        seed=0,
    )
    (batch,) = list(loader)
    assert [Path(sample.img_path).name for sample in batch["data_samples"]] == ["b.jpg", "b.jpg"]
    assert int(loader.dataset.pipeline.transforms[0].skipped) >= 1


def test_only_corrupt_images_do_not_hang(tmp_path: Path):
    write(tmp_path, content())
    for name in ("a.jpg", "b.jpg"):
        damage(tmp_path / "images" / name, "text")
    init_default_scope("mmdet")
    config = dataset(tmp_path, max_refetch=20)
    config["pipeline"] = [dict(type="mmgcvit.LoadCheckedImage", corrupt="skip"), *config["pipeline"][1:]]
    with pytest.raises(Exception, match="Cannot find valid image after 20"):
        DATASETS.build(config)[0]


def test_number_of_pixels_is_limited_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mmgcvit.datasets.images import unreadable
    from mmgcvit.tasks.classification.transforms import LoadPillowImage
    from mmgcvit.utils import images

    monkeypatch.setenv(images.VARIABLE, "5000")
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 50)).save(path)
    assert LoadCheckedImage()(dict(img_path=str(path)))["img"].shape == (50, 100, 3)
    for suffix in (".png", ".jpg", ".bmp", ".tif"):
        path = tmp_path / f"a{suffix}"
        Image.new("RGB", (100, 51)).save(path)
        content = path.read_bytes()
        for decode in (LoadCheckedImage().decode, lambda c: LoadPillowImage().decode(io.BytesIO(c))):
            with pytest.raises(CorruptImageError, match=r"100 x 51 = 0\.0 million pixels; allowed: at most 0\.005"):
                decode(content)
        assert "million pixels" in unreadable(content)
    tiff = content.replace(b"\x03\x01\x03\x00\x01\x00\x00\x00\x01", b"\x03\x01\x03\x00\x01\x00\x00\x00\xee")
    with pytest.raises(CorruptImageError, match="100 x 51"):  # a compression that Pillow does not know
        images.check_pixels(tiff)
    images.set_max_pixels(5100)
    images.check_pixels(content)
    monkeypatch.setenv(images.VARIABLE, "many")
    with pytest.raises(UsageError, match="MMGCVIT_MAX_PIXELS='many'; allowed: a positive integer"):
        images.max_pixels()
    with pytest.raises(UsageError, match="max_pixels=0"):
        images.set_max_pixels(0)


def test_pipes_are_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(CorruptImageError, match="neither a file nor remote"):
        LoadCheckedImage()(dict(img_path=str(tmp_path / "a.png")))
    assert LoadCheckedImage(corrupt="skip")(dict(img_path=str(tmp_path / "a.png"))) is None
    assert header(str(tmp_path / "a.png")) is None
