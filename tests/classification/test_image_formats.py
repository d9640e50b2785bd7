"""Classification of images that are not 8-bit RGB JPEG or PNG files, and of images that have been deleted."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from classification_run import config, make_tree
from mmengine.registry import init_default_scope
from PIL import Image, ImageOps

from mmgcvit import apis
from mmgcvit.apis import UsageError
from mmgcvit.datasets.check import check_data
from mmgcvit.errors import ClassificationDataError, CorruptImageError
from mmgcvit.tasks.classification.dataset import ClassificationDataset
from mmgcvit.tasks.classification.transforms import LoadPillowImage, PillowReader, TimmTransform

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
DEEP = (np.arange(600).reshape(20, 30) * 6).astype(np.uint16)  # 12 bits


def encode(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    file.seek(0)
    return file


def load(file: io.BytesIO, **arguments) -> np.ndarray:
    return np.asarray(LoadPillowImage(**arguments)(dict(file=file, img_path="a"))["img"])


def problems(cfg) -> list[tuple[str, bool, str]]:
    train = check_data(cfg, progress=False)[0]
    return [(problem.kind, problem.breaks, problem.what) for problem in train.problems]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str):
    image = load(encode(DEEP, kind))
    assert image.shape == (20, 30, 3)
    np.testing.assert_array_equal(image[..., 0], DEEP >> 8)  # as with OpenCV
    scaled = load(encode(DEEP, kind), value_range=(0, 3594), mode="L")
    np.testing.assert_allclose(scaled, DEEP * (255 / 3594), atol=0.51)
    assert len(np.unique(scaled)) == 256


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_first_image_of_sixteen_bits_is_named(tmp_path: Path, kind: str, logged: list[str]):
    """In a data set, and in predictions."""
    path = tmp_path / "deep"
    path.write_bytes(encode(DEEP, kind).getvalue())
    loader = LoadPillowImage()
    for _ in range(2):
        loader(dict(file=encode(DEEP, kind), img_path="a"))
    reader = PillowReader(LoadPillowImage())
    for _ in range(2):
        reader.image(path)
    PillowReader(LoadPillowImage(value_range=(0, 3594))).image(path)
    assert [line.partition("; ")[0] for line in logged] == [
        f"image {name}: 16 bits per value, from 0 to 3594 in the file, from 0 to 14 as loaded" for name in ("a", path)
    ]


def test_images_of_other_numbers_need_a_range():
    for values in (DEEP.astype(np.float32), DEEP.astype(np.int32) * 100):
        with pytest.raises(CorruptImageError, match=r"a: cannot be decoded: has values from 0 to .* value_range=\(LOW"):
            load(encode(values, "TIFF"))
        top = float(values.max())
        scaled = load(encode(values, "TIFF"), value_range=(0, top / 2), mode="L")
        np.testing.assert_allclose(scaled, np.minimum(values.astype(float) * (510 / top), 255), atol=0.51)


@pytest.mark.parametrize("tag", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, tag: int):
    exif = Image.Exif()
    exif[0x0112] = tag
    file = encode(RGB, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    file.seek(0)
    np.testing.assert_array_equal(load(file), expected)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    np.testing.assert_array_equal(PillowReader(LoadPillowImage()).image(tmp_path / "a.png"), expected[..., ::-1])


def test_one_channel_trains_and_predicts(tmp_path: Path):
    tree = make_tree(tmp_path / "data", train=4, val=2)
    cfg = config(tree, tmp_path / "run", epochs=2, workers=0)
    cfg.model.backbone.in_channels = 1
    cfg.model.data_preprocessor.update(mean=[0.45], std=[0.25])
    with pytest.raises(
        UsageError, match=r"in_channels=1 with LoadPillowImage of mode='RGB'; allowed: in_channels=3 wi"
    ):
        apis.train(cfg)
    assert ("channels", True) in [problem[:2] for problem in problems(cfg)]
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.pipeline[0].mode = "L"
    assert problems(cfg) == []
    runner = apis.train(cfg)
    assert runner.model.backbone.stem.conv.in_channels == 1
    checkpoint = str(tmp_path / "run/iter_4.pth")
    found = apis.predict(cfg, checkpoint, [tree / "val"], str(tmp_path / "out"), "cpu", batch_size=2)
    assert [image["file_name"] for image in found.results][:3] == ["blue/0.png", "blue/1.png", "green/0.png"]
    cfg.model.data_preprocessor.update(mean=[0.4] * 3)
    with pytest.raises(UsageError, match=r"data_preprocessor.mean has 3 values; allowed with mode='L': 1"):
        apis.train(cfg)
    cfg.model.backbone.in_channels = 4
    with pytest.raises(UsageError, match="in_channels=4 with LoadPillowImage"):
        apis.test(cfg, checkpoint)


@pytest.mark.parametrize("augment", ["rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2", None])
def test_grey_images_are_augmented(augment: str | None):
    transform = TimmTransform(is_training=True, input_size=32, auto_augment=augment, scale=(0.3, 1.0))
    for _ in range(20):
        item = transform(dict(img=Image.fromarray(RGB[..., 0]), targets=0, sample_idx=0))
        assert (item["inputs"].shape, item["inputs"].dtype) == ((1, 32, 32), torch.uint8)


@pytest.mark.parametrize(("arguments", "says"), [
    (dict(mode="RGBA"), r"mode='RGBA'; allowed: 'RGB', 'L'"), (dict(value_range=(3, 3)), "the smaller one first"),
    (dict(value_range=[1]), "allowed: two numbers")])  # fmt: skip
def test_bad_arguments(arguments: dict, says: str):
    with pytest.raises(ValueError, match=says):
        LoadPillowImage(**arguments)


def test_what_is_lost_is_reported(tmp_path: Path):
    tree = make_tree(tmp_path, train=2, val=1)
    (tree / "train/red/0.png").write_bytes(encode(DEEP).getvalue())
    (tree / "train/red/1.png").write_bytes(encode(Image.fromarray(RGB).quantize(4)).getvalue())
    cfg = config(tree, tmp_path / "run", workers=0)
    (kind, breaks, what), (other, *_) = problems(cfg)
    assert (kind, breaks, other) == ("16-bit image loaded as 8 bits", False, "palette image")
    assert what.startswith("16 bits per value, from 0 to 3594 in the file, from 0 to 14 as loaded; ")
    assert what.endswith("value_range=(LOW, HIGH) of LoadPillowImage")
    cfg.train_dataloader.dataset.pipeline[0].value_range = (0, 3594)
    assert [problem[0] for problem in problems(cfg)] == ["palette image"]


def tree_of(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / "train/cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(RGB).getvalue())
    return folder


def test_every_suffix_is_taken(tmp_path: Path):
    names = ["0.jpg", "1.bmp", "2.tif", "3.webp", "4.JPEG", "5.PNG", "6.jfif", "7.gif", "8.TIFF"]
    dataset = ClassificationDataset(str(tree_of(tmp_path, *names)), "train")
    assert [dataset.name(i) for i in range(len(dataset))] == [f"cat/{name}" for name in names]
    only = ClassificationDataset(str(tmp_path), "train", input_key=".bmp;.tif")
    assert [only.name(i) for i in range(len(only))] == ["cat/1.bmp", "cat/2.tif"]


def test_images_that_would_be_left_out_are_an_error(tmp_path: Path):
    tree_of(tmp_path, "a.jpg", "b.heic", "c.heic", "noname")
    (tmp_path / "train/cat/notes").write_text("no image")
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    with pytest.raises(ClassificationDataError) as error:
        ClassificationDataset(str(tmp_path), "train")
    said = str(error.value)
    assert "images that would be left out: " in said
    assert "2 *.heic" in said
    assert "1 without a suffix" in said
    assert "input_key='.jpg;.png'" in said
    assert len(ClassificationDataset(str(tmp_path), "train", input_key=".jpg")) == 1
    for name in ("b.heic", "c.heic", "noname"):
        (tmp_path / "train/cat" / name).unlink()
    os.mkfifo(tmp_path / "train/cat/pipe.png")
    with pytest.raises(ClassificationDataError, match=r"pipe\.png: neither a file nor a folder"):
        ClassificationDataset(str(tmp_path), "train")


def test_deleted_image_is_skipped_or_named(tmp_path: Path):
    tree = tree_of(tmp_path, *(f"{i}.png" for i in range(4)))
    pipeline = [dict(type="mmgcvit.LoadPillowImage"), dict(type="mmgcvit.TimmTransform", input_size=32)]
    init_default_scope("mmengine")
    dataset = ClassificationDataset(str(tree), "train", pipeline=pipeline)
    pipeline[0]["corrupt"] = "skip"
    skipping = ClassificationDataset(str(tree), "train", pipeline=pipeline)
    (tree / "train/cat/0.png").unlink()
    with pytest.raises(CorruptImageError, match=r"image cat/0.png: cannot be decoded: .*No such file"):
        dataset[0]
    assert all(skipping[0]["sample_idx"] != 0 for _ in range(5))
    assert int(skipping.pipeline.transforms[0].skipped) >= 5
    (tree / "train/cat/0.png").symlink_to(tree / "gone.png")
    with pytest.raises(CorruptImageError):
        dataset[0]
    cfg = config(tree, tmp_path / "run", workers=0)
    (problem,) = problems(cfg)
    assert problem[:2] == ("image", True)
    assert problem[2].startswith("cannot be read: ")


def test_unlabelled_images(tmp_path: Path, classifier):
    """``mmgcvit test`` names the command for them, which writes a table."""
    tree = make_tree(tmp_path / "data", train=1, val=1)
    cfg = config(tree, tmp_path / "run", workers=0)
    cfg.model.num_classes = 5
    torch.save(classifier.state_dict(), tmp_path / "bare.pth")
    for i, path in enumerate(sorted((tree / "val").rglob("*.png"))):
        (tmp_path / "new").mkdir(exist_ok=True)
        path.rename(tmp_path / "new" / f"{i}.png")
    cfg.test_dataloader.dataset.update(data_root=str(tmp_path / "new"), split="")
    with pytest.raises(UsageError, match=r"in no class folder, .*`mmgcvit predict` classifies images without labels"):
        apis.test(cfg, str(tmp_path / "bare.pth"))
    found = apis.predict(cfg, str(tmp_path / "bare.pth"), [tmp_path / "new"], str(tmp_path / "out"), "cpu")
    header, *rows = csv.reader((tmp_path / "out/classes.csv").read_text().splitlines())
    assert header[:4] == ["image", "frame", "class_1", "probability_1"]
    assert len(header) == 12
    for row, image in zip(rows, found.results, strict=True):
        assert row[:3] == [image["file_name"], "", image["classes"][0]["name"]]
        assert float(row[3]) == image["classes"][0]["probability"]
