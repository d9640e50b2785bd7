"""Images that are not 8-bit RGB: loaded in full, or with a warning of what is lost; in all formats, turned upright."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

pytest.importorskip("mmcv")

import cv2
import mmcv

from mmgcvit.datasets.images import decode_with_pillow
from mmgcvit.datasets.loading import ImageChecker, LoadCheckedImage
from mmgcvit.datasets.pipelines import use_checked_loading
from mmgcvit.errors import CorruptImageError, UsageError
from mmgcvit.utils.images import bits_per_value, turn_upright

RNG = np.random.default_rng(0)
COLOURS = cv2.resize(RNG.integers(0, 255, (4, 6, 3), np.uint8), (66, 40), interpolation=cv2.INTER_NEAREST)
DEEP = (np.arange(40 * 66).reshape(40, 66) % 41 * 100).astype(np.uint16)  # 12 bits


def encode(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def turned(kind: str, tag: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    return encode(COLOURS, kind, exif=exif, **(dict(lossless=True) if kind == "WEBP" else {}))


def load(content: bytes, **arguments) -> np.ndarray:
    return LoadCheckedImage(**arguments).decode(content)


def found(path: Path, content: bytes, channels: int = 3, **arguments) -> tuple:
    """Size and problems of a file, as (kind, breaks, what)."""
    path.write_bytes(content)
    pipeline = [dict(type="LoadImageFromFile", **arguments)]
    size, problems = ImageChecker(dict(pipeline=pipeline), dict(backbone=dict(type="GCViT", in_channels=channels)))(
        str(path)
    )
    return size, [(problem.kind, problem.breaks, problem.what) for problem in problems]


@pytest.mark.parametrize("tag", range(1, 9))
def test_turning_equals_pillows(tag: int):
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(turned("PNG", tag)))))
    np.testing.assert_array_equal(turn_upright(COLOURS, tag), expected)
    np.testing.assert_array_equal(turn_upright(COLOURS[..., 0], tag), expected[..., 0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("tag", [1, 3, 6])
@pytest.mark.parametrize("arguments", [
    dict(), dict(color_type="unchanged"), dict(imdecode_backend="pillow"), dict(color_type="grayscale"),
    dict(color_type="unchanged", imdecode_backend="pillow")], ids=str)  # fmt: skip
def test_every_way_of_loading_turns_images_upright(tmp_path: Path, kind: str, tag: int, arguments: dict):
    content = turned(kind, tag)
    image = load(content, **arguments)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))[..., ::-1]
    if image.ndim == 2:
        expected = cv2.cvtColor(np.ascontiguousarray(expected), cv2.COLOR_BGR2GRAY)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 4
    size, _ = found(tmp_path / "a", content, **arguments)
    assert size == image.shape[1::-1]


def test_orientation_is_ignored_if_asked_for():
    assert load(turned("JPEG", 6), color_type="color_ignore_orientation").shape == (40, 66, 3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_deep_images(tmp_path: Path, kind: str, logged: list[str]):
    content = encode(DEEP, kind)
    assert bits_per_value(content) == 16
    np.testing.assert_array_equal(load(content, color_type="unchanged"), DEEP)
    size, problems = found(tmp_path / "a", content)
    assert size == (66, 40)
    ((what, breaks, text),) = problems
    assert (what, breaks) == ("16-bit image loaded as 8 bits", False)
    assert text.startswith("16 bits per value, from 0 to 4000 in the file, from 0 to 15 as loaded; to load all bits: ")
    assert found(tmp_path / "a", content, 1, color_type="unchanged", to_float32=True) == (size, [])
    loader = LoadCheckedImage()
    for _ in range(2):
        assert loader(dict(img_path=str(tmp_path / "a")))["img"].max() == 15
    assert [line.partition("; ")[0] for line in logged if "bits per value" in line] == [
        f"image {tmp_path / 'a'}: 16 bits per value, from 0 to 4000 in the file, from 0 to 15 as loaded"
    ]


def test_float_images(tmp_path: Path):
    values = DEEP.astype(np.float32) / 10
    content = encode(values, "TIFF")
    with pytest.raises(CorruptImageError, match=r"color_type='color': has float32 values from 0 to 400; to load all"):
        load(content)
    size, problems = found(tmp_path / "a", content)
    assert size is None
    assert problems[0][:2] == ("image", True)
    np.testing.assert_array_equal(load(content, color_type="unchanged"), values)
    assert found(tmp_path / "a", content, 1, color_type="unchanged") == ((66, 40), [])
    values[3, 4:6] = np.nan
    _, problems = found(tmp_path / "a", encode(values, "TIFF"), 1, color_type="unchanged")
    assert problems == [("image", True, "2 values are NaN or infinite")]


def test_conversions_are_counted(tmp_path: Path):
    rgba = Image.fromarray(np.dstack([COLOURS, COLOURS[..., 0]]))
    opaque = rgba.copy()
    opaque.putalpha(255)
    frames = io.BytesIO()
    Image.fromarray(COLOURS).save(frames, "TIFF", save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
    cases = {
        "transparency ignored": encode(rgba, "PNG"),
        "palette image": encode(Image.fromarray(COLOURS).quantize(8), "PNG"),
        "CMYK image": encode(Image.fromarray(COLOURS).convert("CMYK"), "JPEG"),
        "1-bit image": encode(Image.fromarray(COLOURS[..., 0] > 99), "PNG"),
        "several frames or pages": frames.getvalue(),
    }
    for kind, content in cases.items():
        size, problems = found(tmp_path / "a", content)
        assert size == (66, 40)
        assert [(k, breaks) for k, breaks, _ in problems] == [(kind, False)]
    for content in (encode(opaque, "PNG"), encode(COLOURS, "PNG"), encode(COLOURS[..., 0], "PNG")):
        assert found(tmp_path / "a", content) == ((66, 40), [])
    assert found(tmp_path / "a", encode(rgba, "PNG"), 4, color_type="unchanged") == ((66, 40), [])


def test_channels_as_loaded_are_compared_with_the_model(tmp_path: Path):
    assert found(tmp_path / "a", encode(COLOURS, "PNG"), 4, color_type="unchanged")[1] == [
        (
            "channels",
            True,
            "3 channels as loaded (color_type='unchanged'); allowed: 4, as model.backbone.in_channels says",
        )
    ]
    assert found(tmp_path / "a", encode(COLOURS, "PNG"), 1)[1][0][0] == "channels"


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "AVIF", "PPM"])
def test_other_formats_are_decoded(monkeypatch: pytest.MonkeyPatch, kind: str):
    try:
        content = encode(COLOURS, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    monkeypatch.setattr(mmcv, "imfrombytes", lambda *_, **__: None)  # not all releases of OpenCV read them
    assert np.abs(load(content).astype(int) - COLOURS[..., ::-1]).mean() < 10
    assert load(content, color_type="grayscale").shape == (40, 66)


def test_pillow_decodes_as_opencv_does():
    rgba = np.dstack([COLOURS, COLOURS[..., 0]])
    for image in (COLOURS, COLOURS[..., 0], rgba):
        content = encode(image, "PNG")
        for color_type in ("color", "unchanged"):
            np.testing.assert_array_equal(decode_with_pillow(content, color_type), load(content, color_type=color_type))
    assert decode_with_pillow(encode(DEEP, "PNG"), "color") is None  # would be clipped at 255


@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_tiff_of_six_channels(tmp_path: Path, layout: str):
    tifffile = pytest.importorskip("tifffile")
    six = RNG.integers(0, 4095, (40, 66, 6)).astype(np.uint16)
    planes = six if layout == "contig" else np.moveaxis(six, -1, 0)
    options = {} if layout == "pages" else dict(photometric="minisblack", planarconfig=layout)
    tifffile.imwrite(tmp_path / "six.tif", planes, **options)
    content = (tmp_path / "six.tif").read_bytes()
    np.testing.assert_array_equal(load(content, imdecode_backend="tifffile", color_type="unchanged"), six)
    size, problems = found(tmp_path / "a.tif", content, 6, imdecode_backend="tifffile", color_type="unchanged")
    assert size == (66, 40)
    assert not any(breaks for _, breaks, _ in problems)
    if layout != "pages":
        with pytest.raises(CorruptImageError, match="imdecode_backend='tifffile' may"):
            load(content, color_type="unchanged")


def test_transforms_of_colours_are_refused_for_other_images(tmp_path: Path):
    def loader(*names: str, **arguments) -> LoadCheckedImage:
        cfg = dict(pipeline=[dict(type="LoadImageFromFile", **arguments), *(dict(type=name) for name in names)])
        use_checked_loading(cfg)
        step = cfg["pipeline"][0]
        assert step.pop("type") == "mmgcvit.LoadCheckedImage"
        return LoadCheckedImage(**step)

    (tmp_path / "rgb.png").write_bytes(encode(COLOURS, "PNG"))
    cv2.imwrite(str(tmp_path / "deep.png"), np.dstack([DEEP] * 3))
    deep = dict(color_type="unchanged", to_float32=True)
    for names, name, arguments, says in (
        (["RandomGrayscale"], "rgb.png", dict(color_type="grayscale"), "1 channels; allowed with RandomGrayscale"),
        (["RandomGrayscale", "PhotoMetricDistortion"], "deep.png", deep, "values up to 4000; allowed with PhotoMetric"),
    ):
        with pytest.raises(UsageError, match=says):
            loader(*names, **arguments)(dict(img_path=str(tmp_path / name)))
    for names, name, arguments in (
        (["PhotoMetricDistortion"], "rgb.png", deep),
        (["RandomGrayscale"], "deep.png", deep),
        (["PhotoMetricDistortion"], "deep.png", {}),
    ):
        assert loader(*names, **arguments)(dict(img_path=str(tmp_path / name)))["img"].shape == (40, 66, 3)
