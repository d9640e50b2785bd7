"""Classification data: all readers give the same samples, and problems of a data set are reported."""

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
from mmgcvit.errors import ClassificationDataError, CorruptImageError

PIPELINE = [
    dict(type="mmgcvit.LoadPillowImage"),
    dict(type="mmgcvit.TimmTransform", is_training=False, input_size=32, crop_pct=1.0, crop_mode="squash"),
]


def image(value: int) -> Image.Image:
    return Image.fromarray(np.full((20, 30, 3), value, np.uint8))


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image(value).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Classes 2, 10 and 1 with two images each, with grey values of ten times the class."""
    for name in ("2", "10", "1"):
        for index in range(2):
            write(tmp_path / "train" / name / f"{index}.png", 10 * int(name) + index)
    return tmp_path


def greys(dataset: ClassificationDataset) -> list[tuple[int, int]]:
    """Grey value and class of each sample; mmengine's wrappers get the same class without opening the image."""
    items = [dataset[i] for i in range(len(dataset))]
    assert [dataset.get_cat_ids(i) for i in range(len(items))] == [[item["targets"]] for item in items]
    return [(int(item["inputs"].max()), item["targets"]) for item in items]


EXPECTED = [(10, 0), (11, 0), (20, 1), (21, 1), (100, 2), (101, 2)]  # natural order: 10 after 2


def test_folders_in_numeric_order(tree: Path):
    dataset = DATASETS.build(
        dict(type="mmgcvit.ClassificationDataset", data_root=str(tree), split="train", pipeline=PIPELINE)
    )
    assert dataset.metainfo == {"classes": ("1", "2", "10")}
    assert greys(dataset) == EXPECTED
    item = dataset[5]
    assert item["inputs"].shape == (3, 32, 32)
    assert item["inputs"].dtype == torch.uint8
    assert item["sample_idx"] == 5
    assert dataset.name(5) == "10/1.png"


def test_folder_numbers_are_labels_if_classes_is_a_number(tree: Path):
    """As in ImageNet-V2: folder 10 is class 10, even if other folders are missing."""
    dataset = ClassificationDataset(str(tree), "train", pipeline=PIPELINE, classes=11, test_mode=True)
    assert [label for _, label in greys(dataset)] == [1, 1, 2, 2, 10, 10]


def test_custom_class_order(tree: Path):
    (tree / "names.txt").write_text("10\n1\n2\n3\n")
    for classes in (("10", "1", "2", "3"), str(tree / "names.txt")):
        dataset = ClassificationDataset(str(tree), "train", pipeline=PIPELINE, classes=classes, test_mode=True)
        with pytest.raises(ClassificationDataError, match=r"1 of the 4 classes without an image to train on: 3"):
            ClassificationDataset(str(tree), "train", classes=classes)
        assert dict(greys(dataset)) == {10: 1, 11: 1, 20: 2, 21: 2, 100: 0, 101: 0}
    with pytest.raises(ClassificationDataError, match=r"folders that are not among the 2 classes: 2; classes: 10, 1"):
        ClassificationDataset(str(tree), "train", classes=("10", "1"))
    with pytest.raises(ClassificationDataError, match=r"nowhere.txt': no such file"):
        ClassificationDataset(str(tree), "train", classes="nowhere.txt")


def test_mmengines_wrappers(tree: Path):
    """Class 2 has 1 of 5 images: it is repeated sqrt(0.4 / 0.2) times, rounded up."""
    (tree / "train/2/1.png").unlink()
    inner = dict(type="mmgcvit.ClassificationDataset", data_root=str(tree), split="train", pipeline=PIPELINE)
    balanced = DATASETS.build(dict(type="ClassBalancedDataset", oversample_thr=0.4, dataset=inner))
    assert greys(balanced) == [(10, 0), (11, 0), (20, 1), (20, 1), (100, 2), (101, 2)]
    assert balanced.metainfo == {"classes": ("1", "2", "10")}
    assert balanced.get_data_info(3) == {"img_path": "2/0.png", "targets": 1, "sample_idx": 2}
    both = DATASETS.build(
        dict(type="ConcatDataset", datasets=[dict(type="RepeatDataset", times=2, dataset=inner), inner])
    )
    assert [both[i]["targets"] for i in range(len(both))] == 3 * [0, 0, 1, 2, 2]


def test_tar(tree: Path):
    with tarfile.open(tree / "all.tar", "w") as tar:
        tar.add(tree / "train", arcname=".")
    for split in ("all", "all.tar"):
        dataset = ClassificationDataset(str(tree), split, reader="tar", pipeline=PIPELINE)
        assert sorted(greys(dataset)) == EXPECTED
        assert dataset.metainfo == {"classes": ("1", "2", "10")}
    assert [dataset.name(i) for i in (0, 5)] == ["1/0.png", "10/1.png"]
    dataset = ClassificationDataset(str(tree), "all", reader="tar", pipeline=PIPELINE, classes=("10", "2", "1"))
    assert sorted(greys(dataset)) == [(10, 2), (11, 2), (20, 1), (21, 1), (100, 0), (101, 0)]
    with pytest.raises(ClassificationDataError, match="nothing: no such tar file"):
        ClassificationDataset(str(tree), "nothing", reader="tar")
    with pytest.raises(ClassificationDataError, match=r"all.tar: folders .* among the 1 class: 1, 10; classes: 2"):
        ClassificationDataset(str(tree), "all", reader="tar", classes=("2",))
    with pytest.raises(ClassificationDataError, match=r"all.tar: 1 of the 4 classes without an image to train on: 3"):
        ClassificationDataset(str(tree), "all", reader="tar", classes=("1", "2", "3", "10"))


def test_folder_of_tar_files(tmp_path: Path):
    """One tar file per class, sorted by name regardless of the file system; image names include the tar file."""
    for name in ("b10", "b9", "a"):
        shard(tmp_path / "train" / f"{name}.tar", {"1.png": png(len(name)), "./0.png": png(10 + len(name))})
    dataset = ClassificationDataset(str(tmp_path), "train", reader="tar", pipeline=PIPELINE)
    assert dataset.metainfo == {"classes": ("a", "b9", "b10")}
    assert [dataset.name(i) for i in range(6)] == [
        "a.tar/0.png",
        "a.tar/1.png",
        "b9.tar/0.png",
        "b9.tar/1.png",
        "b10.tar/0.png",
        "b10.tar/1.png",
    ]
    assert greys(dataset) == [(11, 0), (1, 0), (12, 1), (2, 1), (13, 2), (3, 2)]
    # the same with tar files nested in a tar file
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for path in (tmp_path / "train").iterdir():
            tar.add(path, arcname=path.name)
    dataset = ClassificationDataset(str(tmp_path), "all", reader="tar", pipeline=PIPELINE)
    assert greys(dataset) == [(11, 0), (1, 0), (12, 1), (2, 1), (13, 2), (3, 2)]
    assert dataset.name(5) == "b10.tar/1.png"


@pytest.mark.parametrize(("members", "said"), [
    ({}, "x.tar: no image in it"),
    ({"notes.txt": b""}, "x.tar: no image in it"),
    ({"0.png": b""}, r"x.tar: images in no class folder, such as 0.png"),
    ({"./0.png": b"", "a/0.png": b""}, r"x.tar: images in no class folder, such as 0.png"),
    ({"a/.ipynb_checkpoints/0.png": b"", "a/0.png": b""}, r"hidden folders, such as a/.ipynb_checkpoints/0"),
    ({"a/0.png": b"", "a/b/0.png": b""}, r"a/b/0.png is in a folder inside the class folder a;"),
    ({"train/a/0.png": b"", "val/a/0.png": b""}, r"two folders of one class, train/a and val/a"),
])  # fmt: skip
def test_invalid_tar_contents(tmp_path: Path, members: dict[str, bytes], said: str):
    shard(tmp_path / "x.tar", members)
    with pytest.raises(ClassificationDataError, match=said):
        ClassificationDataset(str(tmp_path), "x", reader="tar")


def test_invalid_tar_files(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClassificationDataError, match=r"empty: no \*.tar in this folder"):
        ClassificationDataset(str(tmp_path), "empty", reader="tar")
    (tmp_path / "page.tar").write_text("<html>not found</html>")
    with pytest.raises(ClassificationDataError, match=r"page.tar: not a tar file, or truncated at its beginning"):
        ClassificationDataset(str(tmp_path), "page", reader="tar")
    shard(tmp_path / "cut.tar", {"a/0.png": bytes(5000), "b/0.png": png(1)})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:3000])
    with pytest.raises(ClassificationDataError, match=r"cut.tar: cannot be read: unexpected end of data"):
        ClassificationDataset(str(tmp_path), "cut", reader="tar")


def shard(path: Path, samples: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    image(value).save(buffer, "png")
    return buffer.getvalue()


def test_shards(tmp_path: Path):
    shard(tmp_path / "a-0.tar", {"x/0.png": png(10), "x/0.cls": b"0", "x/1.cls": b"0\n", "x/1.png": png(11)})
    shard(tmp_path / "a-1.tar", {"0.png": png(20), "0.json": b"{}", "0.cls": b"1"})
    dataset = ClassificationDataset(
        str(tmp_path), "a-*.tar", reader="shards", classes=("one", "two"), pipeline=PIPELINE
    )
    assert greys(dataset) == [(10, 0), (11, 0), (20, 1)]
    assert dataset.name(2).endswith("a-1.tar:0")
    assert len(ShardReader([str(tmp_path / "a-0.tar"), str(tmp_path / "a-1.tar")], 2)) == 3
    # any order, as needed for shuffling
    assert [int(dataset[i]["inputs"].max()) for i in (2, 0, 1, 2)] == [20, 10, 11, 20]

    with pytest.raises(ClassificationDataError, match=r"classes=None; allowed with reader='shards'"):
        ClassificationDataset(str(tmp_path), "a-*.tar", reader="shards")
    with pytest.raises(ClassificationDataError, match="no files match"):
        ClassificationDataset(str(tmp_path), "b-*.tar", reader="shards", classes=2)
    shard(tmp_path / "c.tar", {"0.png": png(20), "1.png": png(20), "1.cls": b"1"})
    with pytest.raises(ClassificationDataError, match=r"c.tar: 1 image without a .cls, the first 0"):
        ClassificationDataset(str(tmp_path), "c.tar", reader="shards", classes=2)
    shard(tmp_path / "d.tar", {"0.txt": b"1"})
    with pytest.raises(ClassificationDataError, match=r"d.tar: no image; allowed: .*\.png"):
        ClassificationDataset(str(tmp_path), "d.tar", reader="shards", classes=2)
    for content in ("2", "-1", "cat", ""):
        shard(tmp_path / "e.tar", {"x/7.png": png(20), "x/7.cls": content.encode()})
        with pytest.raises(
            ClassificationDataError,
            match=rf"shard .*e.tar: x/7.cls holds b'{content}'; allowed: an "
            r"integer from 0 to 1 \(2 classes\)",
        ):
            ClassificationDataset(str(tmp_path), "e.tar", reader="shards", classes=2)
    shard(tmp_path / "f.tar", {"0.png": png(20), "0.jpg": png(20), "0.cls": b"1"})
    with pytest.raises(ClassificationDataError, match=r"f.tar: two images with the key 0"):
        ClassificationDataset(str(tmp_path), "f.tar", reader="shards", classes=2)
    (tmp_path / "g.tar").write_bytes((tmp_path / "a-0.tar").read_bytes()[:700])
    with pytest.raises(ClassificationDataError, match=r"g.tar: not a tar file, or truncated"):
        ClassificationDataset(str(tmp_path), "g.tar", reader="shards", classes=2)


def test_hugging_face(tree: Path):
    pytest.importorskip("datasets.load")  # `datasets` alone could be tests/datasets
    dataset = ClassificationDataset(str(tree), "train", reader="hfds", pipeline=PIPELINE)
    assert sorted(value for value, _ in greys(dataset)) == [10, 11, 20, 21, 100, 101]
    names = dataset.metainfo["classes"]
    assert all(names[label] == str(value // 10) for value, label in greys(dataset))
    # names are matched with its own, in any order
    names = ("2", "1", "3", "10")
    dataset = ClassificationDataset(str(tree), "train", reader="hfds", pipeline=PIPELINE, classes=names)
    assert sorted(greys(dataset)) == [(10, 1), (11, 1), (20, 0), (21, 0), (100, 3), (101, 3)]
    with pytest.raises(ClassificationDataError, match=r"column 'label': 1 class that is not among the 2: 2"):
        ClassificationDataset(str(tree), "train", reader="hfds", classes=("1", "10"))


def parquet(folder: Path, labels: list, names: list[str] | None = None) -> str:
    """Create a folder with a Hugging Face data set of small images with these labels."""
    datasets = pytest.importorskip("datasets.load") and __import__("sys").modules["datasets"]
    kind = datasets.Value("string" if isinstance(labels[0], str) else "int64")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names) if names else kind)
    images = [dict(bytes=png(index), path=None) for index in range(len(labels))]
    folder.mkdir()
    datasets.Dataset.from_dict(dict(image=images, label=labels), features).to_parquet(folder / "train.parquet")
    return str(folder)


def test_hugging_face_labels(tmp_path: Path):
    def labels(root: str, classes: object) -> list[int]:
        dataset = ClassificationDataset(root, "train", reader="hfds", pipeline=PIPELINE, classes=classes)
        assert dataset.name(1) == "1"  # an image without a path
        return [label for _, label in greys(dataset)]

    plain = parquet(tmp_path / "plain", [0, 2, 1])
    with pytest.raises(ClassificationDataError, match=r"plain, split 'train', column 'label': .*no names"):
        labels(plain, None)
    assert labels(plain, 3) == labels(plain, ("a", "b", "c")) == [0, 2, 1]
    with pytest.raises(ClassificationDataError, match=r"'label': 1 label such as 2; allowed: integers from 0 to 1"):
        labels(plain, ("a", "b"))
    unlabelled = parquet(tmp_path / "unlabelled", [0, -1], ["a", "b"])
    with pytest.raises(ClassificationDataError, match=r"'label': 1 label such as -1; allowed: integers from 0 to 1"):
        labels(unlabelled, None)
    words = parquet(tmp_path / "words", ["cat", "dog", "cat"])
    assert labels(words, ("dog", "cat")) == [1, 0, 1]
    with pytest.raises(ClassificationDataError, match=r"'label': 1 class that is not among the 1: dog"):
        labels(words, ("cat",))
    with pytest.raises(ClassificationDataError, match=r"'label': 2 labels such as '(cat|dog)'; allowed: integers"):
        labels(words, 2)


def test_invalid_folder_trees(tree: Path):
    with pytest.raises(ClassificationDataError, match=r"val: no such folder; expected: .*val/CLASS/NAME.jpg"):
        ClassificationDataset(str(tree), "val")
    (tree / "val").mkdir()
    with pytest.raises(ClassificationDataError, match="val: no image in class folders"):
        ClassificationDataset(str(tree), "val")
    (tree / "train" / "7").mkdir()
    with pytest.raises(ClassificationDataError, match="1 class folder without an image: 7; fill or remove them"):
        ClassificationDataset(str(tree), "train")
    (tree / "train" / "7").rmdir()
    for lost, where in (
        ("loose.png", "no class folder"),
        ("1/indoor/9.png", "folders inside class folders"),
        ("1/2/9.png", "folders inside class folders"),
        (".ipynb_checkpoints/9.png", "hidden folders"),
        (".x/1/9.png", "hidden folders"),
        ("1/.ipynb_checkpoints/9-checkpoint.png", "hidden folders"),
    ):
        write(tree / "train" / lost, 3)
        for classes in (None, ("1", "2", "10")):
            with pytest.raises(ClassificationDataError, match=rf"1 image in {where}, such as {lost};"):
                ClassificationDataset(str(tree), "train", classes=classes)
        (tree / "train" / lost).unlink()
        if (tree / "train" / lost).parent.name not in ("train", "1"):
            (tree / "train" / lost).parent.rmdir()
    (tree / "train" / ".cache").mkdir()
    assert len(ClassificationDataset(str(tree), "train")) == 6
    with pytest.raises(ClassificationDataError, match="classes: names that occur more than once: 1"):
        ClassificationDataset(str(tree), "train", classes=("1", "2", "10", "1"))
    with pytest.raises(ClassificationDataError, match="reader='wds'; allowed: folder, tar, shards, hfds"):
        ClassificationDataset(str(tree), "train", reader="wds")


def truncate(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:-900])


def test_truncated_image_stops_or_is_counted(tree: Path):
    truncate(tree / "train" / "2" / "0.jpg")
    dataset = ClassificationDataset(str(tree), "train", pipeline=PIPELINE)
    index = [dataset.name(i) for i in range(len(dataset))].index("2/0.jpg")
    with pytest.raises(CorruptImageError, match=r"image 2/0.jpg: cannot be decoded: .*truncated.*--corrupt skip"):
        dataset[index]
    skipping = [dict(type="mmgcvit.LoadPillowImage", corrupt="skip"), PIPELINE[1]]
    dataset = ClassificationDataset(str(tree), "train", pipeline=skipping)
    assert all(dataset[index]["sample_idx"] != index for _ in range(3))
    assert dataset.pipeline.transforms[0].skipped >= 3
    with pytest.raises(ClassificationDataError, match=r"2/0.jpg: the pipeline skips this sample"):
        ClassificationDataset(str(tree), "train", pipeline=skipping, test_mode=True)[index]


def test_only_corrupt_images(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(b"no image")
    dataset = ClassificationDataset(str(tmp_path), pipeline=[dict(type="mmgcvit.LoadPillowImage", corrupt="skip")])
    with pytest.raises(ClassificationDataError, match="1000 consecutive images cannot be decoded"):
        dataset[0]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16"])
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), 300, np.uint16)).save(path)
    else:
        image(7).convert(mode).save(path)
    with path.open("rb") as file:
        loaded = LoadPillowImage()({"file": file, "img_path": str(path)})["img"]
    assert loaded.mode == "RGB"
    assert loaded.size == (30, 20)


def test_preprocessor_arguments_are_rejected():
    with pytest.raises(ValueError, match="re_prob, mean; allowed: anything but normalising and erasing"):
        TimmTransform(is_training=True, re_prob=0.25, mean=(0, 0, 0))
    with pytest.raises(ValueError, match="corrupt='ignore'; allowed: 'stop', 'skip'"):
        TRANSFORMS.build(dict(type="mmgcvit.LoadPillowImage", corrupt="ignore"))
