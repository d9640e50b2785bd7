"""Images are loaded as by the transforms of the package: orientation, grey, depth, alpha; and arrays are checked."""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmgcvit.errors import UsageError
from mmgcvit.runtime.images import Loader
from mmgcvit.runtime.metadata import ModelInfo


def loader(task: str = "detection", **changed) -> Loader:
    return Loader(ModelInfo(task, ("cat",), ((0, 0, 0),), **changed))


def load(images, **changed) -> list[np.ndarray]:
    return [source.pixels for source in loader(**changed).sources(images)]


def noise(height: int, width: int, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    rng = np.random.default_rng(height)
    small = rng.integers(0, np.iinfo(dtype).max, (max(1, height // 4), max(1, width // 4), channels), dtype)
    return small.repeat(5, 0).repeat(5, 1)[:height, :width].squeeze()


def files(folder: Path) -> list[Path]:
    """Images of all kinds that both loaders read with 8 bits."""
    colour, grey = Image.fromarray(noise(97, 41)), Image.fromarray(noise(60, 80, 1))
    exif = Image.Exif()
    for tag in (1, 3, 6, 8):
        exif[0x0112] = tag
        colour.save(folder / f"turned{tag}.png", exif=exif)
        colour.save(folder / f"turned{tag}.jpg", exif=exif, quality=95)
        colour.save(folder / f"turned{tag}.tif", exif=exif)
        colour.save(folder / f"turned{tag}.webp", exif=exif, lossless=True)
    Image.fromarray(noise(97, 41, 4)).save(folder / "alpha.png")
    colour.quantize(20).save(folder / "palette.png")
    colour.convert("CMYK").save(folder / "cmyk.tif")
    colour.save(folder / "colour.webp", lossless=True)
    colour.save(folder / "colour.bmp")
    grey.save(folder / "grey.png")
    grey.convert("1").save(folder / "one.png")
    grey.convert("LA").save(folder / "grey_alpha.png")
    Image.fromarray(noise(60, 80, 1, np.uint16)).save(folder / "deep.png")
    return sorted(folder.iterdir())


def test_equals_the_loader_of_detectors_and_segmentors(tmp_path: Path):
    loading = pytest.importorskip("mmgcvit.datasets.loading")
    for color_type, channels in (("color", 3), ("grayscale", 1)):
        transform = loading.LoadCheckedImage(color_type=color_type)
        for path in files(tmp_path):
            wanted = transform.decode(path.read_bytes())
            wanted = wanted[..., ::-1] if wanted.ndim == 3 else wanted[..., None]
            (found,) = load(path, channels=channels)
            assert found.shape == wanted.shape, path.name
            limit = 1 if channels == 1 else 0  # OpenCV rounds grey values otherwise
            assert np.abs(found.astype(int) - wanted).max() <= limit, path.name


@pytest.mark.parametrize("channels", [3, 1])
def test_equals_the_loader_of_classifiers(tmp_path: Path, channels: int):
    transforms = pytest.importorskip("mmgcvit.tasks.classification.transforms")
    for value_range in (None, (0, 4095)):
        reader = transforms.LoadPillowImage(mode={3: "RGB", 1: "L"}[channels], value_range=value_range)
        for path in files(tmp_path):
            wanted = np.asarray(reader.decode(io.BytesIO(path.read_bytes())))
            (found,) = load(path, task="classification", channels=channels, value_range=value_range)
            np.testing.assert_array_equal(found, wanted.reshape(found.shape), path.name)


def test_orientation(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = noise(20, 30)
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load(tmp_path / "a.png")[0], np.rot90(image, -1))
    np.testing.assert_array_equal(load(tmp_path / "a.png", exif=False)[0], image)
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(load(opened)[0], np.rot90(image, -1))


@pytest.mark.parametrize("suffix", [".tif", ".png", ".jpg"])
@pytest.mark.parametrize("tag", [1, 3, 6, 8])
def test_orientation_of_an_image_that_is_opened_lazily(tmp_path: Path, suffix: str, tag: int):
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"a{suffix}"
    image = noise(40, 60)
    Image.fromarray(image).save(path, exif=exif)
    with Image.open(path) as plain:
        wanted = np.asarray(ImageOps.exif_transpose(plain))
    assert wanted.shape[:2] == ((60, 40) if tag in (6, 8) else (40, 60))
    np.testing.assert_array_equal(load(path)[0], wanted)
    np.testing.assert_array_equal(load(Image.open(path))[0], wanted)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["offset", "division by zero", "cut off"])
def test_damaged_exif(tmp_path: Path, kind: str):
    """The orientation is used if it can be read; what else is damaged does not matter. As in Pillow #8605."""
    loading = pytest.importorskip("mmgcvit.datasets.loading")
    header, entry = b"Exif\0\0", struct.pack("<HHII", 0x0112, 3, 1, 6)
    resolution = struct.pack("<HHII", 0x011A, 5, 1, 38) + struct.pack("<I", 0)
    good = b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + entry + resolution + struct.pack("<II", 1, 0)
    exif = {
        "offset": header + b"II*\0\xff\xff\xff\xff",
        "division by zero": header + good,
        "cut off": header + good[:30],
    }[kind]
    for name in ("a.jpg", "a.png"):
        Image.fromarray(noise(20, 30)).save(tmp_path / name, exif=exif)
        wanted = loading.LoadCheckedImage().decode((tmp_path / name).read_bytes())[..., ::-1]
        np.testing.assert_array_equal(load(tmp_path / name)[0], wanted, name)
        assert wanted.shape == ((20, 30, 3) if kind == "offset" else (30, 20, 3)), name


def test_deep_images(tmp_path: Path, caplog):
    values = noise(20, 30, 1, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING, "mmgcvit.runtime"):
        reduced = load([tmp_path / "a.png", tmp_path / "a.png"])[1]
    np.testing.assert_array_equal(reduced, (values >> 8)[..., None].repeat(3, 2))
    assert [record.getMessage() for record in caplog.records] == [
        f"input '{tmp_path}/a.png': 16 bits per value, loaded as 8 bits (the first such image)"
    ]
    (kept,) = load(tmp_path / "a.png", channels=1, dtype="float32")
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept[..., 0], values)
    (scaled,) = load(tmp_path / "a.png", channels=1, value_range=(0, 65535))
    np.testing.assert_array_equal(scaled[..., 0], np.round(values / 65535 * 255))
    with pytest.raises(UsageError, match=r"a\.png': 1 channel .*; allowed: 3 channels"):
        load(tmp_path / "a.png", dtype="float32")


def test_deep_colours_are_not_read_as_8_bits_without_a_word(tmp_path: Path, caplog):
    cv2 = pytest.importorskip("cv2")
    values = noise(20, 30, 3, np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., ::-1])
    with pytest.raises(UsageError, match=r"16 bits per value in several channels.*allowed: an array \(H, W, 3\)"):
        load(tmp_path / "a.png", dtype="float32")
    np.testing.assert_array_equal(load(values, dtype="float32")[0], values)
    with caplog.at_level(logging.WARNING, "mmgcvit.runtime"):
        np.testing.assert_array_equal(load(tmp_path / "a.png")[0], values >> 8)
    assert "16 bits per value" in caplog.text


def test_alpha_and_other_channels(tmp_path: Path):
    image = noise(20, 30, 4)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load(tmp_path / "a.png", channels=4)[0], image)
    np.testing.assert_array_equal(load(tmp_path / "a.png")[0], image[..., :3])
    Image.fromarray(image[..., :3]).save(tmp_path / "b.png")
    with pytest.raises(UsageError, match=r"b\.png': no alpha channel \(mode 'RGB'\); allowed: 4 channels"):
        load(tmp_path / "b.png", channels=4)
    with pytest.raises(UsageError, match=r"an image file; allowed: arrays \(H, W, 6\)"):
        load(tmp_path / "b.png", channels=6)
    np.testing.assert_array_equal(load(noise(20, 30, 6), channels=6)[0], noise(20, 30, 6))


def test_arrays():
    grey = noise(20, 30, 1)
    for image in (grey, grey[..., None]):
        np.testing.assert_array_equal(load(image)[0], grey[..., None].repeat(3, 2))
        np.testing.assert_array_equal(load(image, channels=1)[0], grey[..., None])
    assert load(noise(20, 30), dtype="float32")[0].dtype == np.float32
    stack = np.stack([noise(20, 30), noise(20, 30)[::-1]])
    assert len(load(stack)) == 2
    np.testing.assert_array_equal(load(stack[:, ::-1])[1], noise(20, 30))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 20, 30), np.uint8), r"image 1: shape \(3, 20, 30\); allowed: \(H, W, 3\), RGB"),
        (np.zeros((20, 30, 4), np.uint8), r"shape \(20, 30, 4\); allowed"),
        (np.zeros((0, 30, 3), np.uint8), r"shape \(0, 30, 3\); allowed"),
        (np.zeros(30, np.uint8), r"shape \(30,\); allowed"),
        (np.zeros((20, 30, 3)), r"dtype float64; allowed: uint8 from 0 to 255"),
        (np.zeros((20, 30, 3), bool), r"dtype bool; allowed: uint8"),
        (None, r"image 1: NoneType; allowed: paths, Pillow images, arrays"),
        ([[1, 2]], r"image 1: list; allowed"),
    ],
)
def test_what_is_no_image(image: object, words: str):
    with pytest.raises(UsageError, match=words):
        load([noise(20, 30), image])


def test_nan():
    image = np.zeros((20, 30, 3), np.float32)
    image[3, 4] = np.nan
    with pytest.raises(UsageError, match="has NaN or infinite values"):
        load(image, dtype="float32")


def test_unreadable_files(tmp_path: Path):
    Image.fromarray(noise(97, 41)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    for name, part in {"cut.jpg": content[:-300], "empty.jpg": b"", "text.jpg": b"text"}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UsageError, match=rf"input '.*{name}': cannot be decoded: "):
            load(tmp_path / name)
    with pytest.raises(UsageError, match="no such image, video or folder"):
        load(tmp_path / "none.jpg")
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(UsageError, match=r"film\.mp4': a video; allowed: images and folders"):
        load(tmp_path / "film.mp4")


def test_folders(tmp_path: Path, caplog, monkeypatch):
    (tmp_path / "b").mkdir()
    for name in ("c.png", "b/a.png", "a.png"):
        Image.fromarray(noise(20, 30)).save(tmp_path / name)
    (tmp_path / "film.mp4").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "mmgcvit.runtime"):
        assert [source.name for source in loader().sources(tmp_path)] == ["a.png", "b/a.png", "c.png"]
    assert "film.mp4: skipped: a video" in caplog.text
    with monkeypatch.context() as inside:  # the working directory is not the folder for results
        inside.chdir(tmp_path / "b")
        assert len(load(tmp_path)) == 3
    names = [source.name for source in loader().sources([str(tmp_path / "c.png"), noise(20, 30), tmp_path / "b"])]
    assert names == ["c.png", "1", "a.png"]
