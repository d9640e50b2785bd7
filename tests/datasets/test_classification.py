"""Classification data: every reader gives the same samples, and what is wrong with a tree is said."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from mmgcvit.datasets.classification import ClassificationDataset, LoadPillowImage, ShardReader, TimmTransform
from mmgcvit.datasets.errors import ClassificationDataError, CorruptPictureError

PIPELINE = [dict(type="LoadPillowImage"),
            dict(type="TimmTransform", is_training=False, input_size=32, crop_pct=1.0, crop_mode="squash")]


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((20, 30, 3), value, np.uint8))


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(value).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Classes 2, 10 and 1 with two pictures each, whose grey is ten times the class."""
    for name in ("2", "10", "1"):
        for index in range(2):
            write(tmp_path / "train" / name / f"{index}.png", 10 * int(name) + index)
    return tmp_path


def greys(dataset: ClassificationDataset) -> list[tuple[int, int]]:
    return [(int(item["inputs"].max()), item["targets"]) for item in (dataset[i] for i in range(len(dataset)))]


EXPECTED = [(10, 0), (11, 0), (20, 1), (21, 1), (100, 2), (101, 2)]  # 10 behind 2: numbers by their value


def test_folders_in_numeric_order(tree: Path):
    dataset = DATASETS.build(dict(type="ClassificationDataset", data_root=str(tree), split="train", pipeline=PIPELINE))
    assert dataset.metainfo == {"classes": ("1", "2", "10")}
    assert greys(dataset) == EXPECTED
    item = dataset[5]
    assert item["inputs"].shape == (3, 32, 32)
    assert item["inputs"].dtype == torch.uint8
    assert item["sample_idx"] == 5
    assert dataset.name(5) == "10/1.png"


def test_numbers_are_labels_where_classes_are_a_count(tree: Path):
    """As of ImageNet-V2: folder 10 is class 10, whatever folders there are."""
    dataset = ClassificationDataset(str(tree), "train", pipeline=PIPELINE, classes=11)
    assert [label for _, label in greys(dataset)] == [1, 1, 2, 2, 10, 10]


def test_classes_in_an_order_of_ones_own(tree: Path):
    (tree / "names.txt").write_text("10\n1\n2\n3\n")
    for classes in (("10", "1", "2", "3"), str(tree / "names.txt")):
        dataset = ClassificationDataset(str(tree), "train", pipeline=PIPELINE, classes=classes)
        assert dict(greys(dataset)) == {10: 1, 11: 1, 20: 2, 21: 2, 100: 0, 101: 0}
    with pytest.raises(ClassificationDataError, match=r"1 folders that are not among the 2 classes: 2"):
        ClassificationDataset(str(tree), "train", classes=("10", "1"))
    with pytest.raises(ClassificationDataError, match=r"nowhere.txt': there is no such file"):
        ClassificationDataset(str(tree), "train", classes="nowhere.txt")


def test_tar(tree: Path):
    with tarfile.open(tree / "all.tar", "w") as tar:
        tar.add(tree / "train", arcname=".")
    for split in ("all", "all.tar"):
        dataset = ClassificationDataset(str(tree), split, reader="tar", pipeline=PIPELINE)
        assert sorted(greys(dataset)) == EXPECTED
        assert dataset.metainfo == {"classes": ("1", "2", "10")}
    with pytest.raises(ClassificationDataError, match="nothing: there is no such tar file"):
        ClassificationDataset(str(tree), "nothing", reader="tar")


def shard(path: Path, samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    picture(value).save(buffer, "png")
    return buffer.getvalue()


def test_shards(tmp_path: Path):
    shard(tmp_path / "a-0.tar", {"x/0.png": png(10), "x/0.cls": b"0", "x/1.cls": b"0\n", "x/1.png": png(11)})
    shard(tmp_path / "a-1.tar", {"0.png": png(20), "0.json": b"{}", "0.cls": b"1"})
    dataset = ClassificationDataset(str(tmp_path), "a-*.tar", reader="shards", classes=("one", "two"),
                                    pipeline=PIPELINE)
    assert greys(dataset) == [(10, 0), (11, 0), (20, 1)]
    assert dataset.name(2).endswith("a-1.tar:0")
    assert len(ShardReader([str(tmp_path / "a-0.tar"), str(tmp_path / "a-1.tar")])) == 3
    # any order, as shuffling asks for
    assert [int(dataset[i]["inputs"].max()) for i in (2, 0, 1, 2)] == [20, 10, 11, 20]

    with pytest.raises(ClassificationDataError, match=r"classes=None; allowed with reader='shards'"):
        ClassificationDataset(str(tmp_path), "a-*.tar", reader="shards")
    with pytest.raises(ClassificationDataError, match="there are no such files"):
        ClassificationDataset(str(tmp_path), "b-*.tar", reader="shards", classes=2)
    shard(tmp_path / "c.tar", {"0.png": png(20), "1.png": png(20), "1.cls": b"1"})
    with pytest.raises(ClassificationDataError, match=r"c.tar: 1 pictures without a .cls, the first 0"):
        ClassificationDataset(str(tmp_path), "c.tar", reader="shards", classes=2)
    shard(tmp_path / "d.tar", {"0.txt": b"1"})
    with pytest.raises(ClassificationDataError, match=r"d.tar: no picture; allowed: .*\.png"):
        ClassificationDataset(str(tmp_path), "d.tar", reader="shards", classes=2)


def test_hugging_face(tree: Path):
    pytest.importorskip("datasets.load")  # tests/datasets is no package
    dataset = ClassificationDataset(str(tree), "train", reader="hfds", pipeline=PIPELINE)
    assert sorted(value for value, _ in greys(dataset)) == [10, 11, 20, 21, 100, 101]
    names = dataset.metainfo["classes"]
    assert all(names[label] == str(value // 10) for value, label in greys(dataset))


def test_what_is_wrong_with_a_tree(tree: Path):
    with pytest.raises(ClassificationDataError, match=r"val: there is no such folder; expected: .*val/CLASS/NAME.jpg"):
        ClassificationDataset(str(tree), "val")
    (tree / "val").mkdir()
    with pytest.raises(ClassificationDataError, match="val: no picture in folders of classes"):
        ClassificationDataset(str(tree), "val")
    (tree / "train" / "7").mkdir()
    with pytest.raises(ClassificationDataError, match="1 class folders without a picture: 7; fill or remove them"):
        ClassificationDataset(str(tree), "train")
    (tree / "train" / "7").rmdir()
    write(tree / "train" / "loose.png", 3)
    with pytest.raises(ClassificationDataError, match=r"pictures that lie in no class folder, such as loose.png"):
        ClassificationDataset(str(tree), "train")
    with pytest.raises(ClassificationDataError, match="reader='wds'; allowed: folder, tar, shards, hfds"):
        ClassificationDataset(str(tree), "train", reader="wds")


def truncate(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:-900])


def test_a_truncated_picture_stops_or_is_counted(tree: Path):
    truncate(tree / "train" / "2" / "0.jpg")
    dataset = ClassificationDataset(str(tree), "train", pipeline=PIPELINE)
    index = [dataset.name(i) for i in range(len(dataset))].index("2/0.jpg")
    with pytest.raises(CorruptPictureError, match=r"picture 2/0.jpg: cannot be decoded: .*truncated.*--corrupt skip"):
        dataset[index]
    skipping = [dict(type="LoadPillowImage", corrupt="skip"), PIPELINE[1]]
    dataset = ClassificationDataset(str(tree), "train", pipeline=skipping)
    assert all(dataset[index]["sample_idx"] != index for _ in range(3))
    assert dataset.pipeline.transforms[0].skipped >= 3
    with pytest.raises(ClassificationDataError, match=r"2/0.jpg: the pipeline leaves this sample out"):
        ClassificationDataset(str(tree), "train", pipeline=skipping, test_mode=True)[index]


def test_only_bad_pictures(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(b"no picture")
    dataset = ClassificationDataset(str(tmp_path), pipeline=[dict(type="LoadPillowImage", corrupt="skip")])
    with pytest.raises(ClassificationDataError, match="1000 pictures one after another cannot be decoded"):
        dataset[0]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_pictures_of_any_kind_become_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), 300, np.uint16)).save(path)
    else:
        picture(7).convert(mode).save(path)
    with path.open("rb") as file:
        image = LoadPillowImage()({"file": file, "img_path": str(path)})["img"]
    assert image.mode == "RGB"
    assert image.size == (30, 20)


def test_what_belongs_to_the_preprocessor():
    with pytest.raises(ValueError, match="re_prob, mean; allowed: what is not normalising or erasing"):
        TimmTransform(is_training=True, re_prob=0.25, mean=(0, 0, 0))
    with pytest.raises(ValueError, match="corrupt='ignore'; allowed: 'stop', 'skip'"):
        TRANSFORMS.build(dict(type="LoadPillowImage", corrupt="ignore"))
