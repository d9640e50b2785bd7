"""Images and label maps by names and headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmcv")
pytest.importorskip("mmseg")

import mmseg.datasets.transforms
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope
from test_labels import config, problems, three, write

from mmgcvit.apis import UsageError, train
from mmgcvit.datasets.check import check_data
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.segmentation import Segmentation, label_maps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(tmp_path, split, name, three())
    return tmp_path


def test_images_of_other_suffixes(folder: Path):
    for name, suffix in (("c", "JPG"), ("d", "png"), ("e", "jpeg"), ("f", "JPG")):
        write(folder, "train", name, three())
        (folder / f"images/train/{name}.jpg").rename(folder / f"images/train/{name}.{suffix}")
    says = (
        f"{folder}/images/train: 4 images of other suffixes: 2 *.JPG, 1 *.png, 1 *.jpeg; img_suffix='.jpg' leaves them "
        "out, also 4 that have label maps. Rename or convert them"
    )
    assert ("suffix", says) in problems(config(folder))
    with pytest.raises(UsageError) as error:
        train(config(folder))
    assert str(error.value) == says


def test_images_without_label_maps_may_have_other_suffixes(folder: Path):
    Image.new("RGB", (8, 8)).save(folder / "images/train/depth_a.png")
    Image.new("RGB", (8, 8)).save(folder / "images/train/a.png")  # beside a.jpg
    cfg = config(folder)
    assert problems(cfg) == []
    assert problems(cfg, breaks=False) == [
        (
            "suffix",
            f"{folder}/images/train: 2 images of other suffixes: 2 *.png; img_suffix='.jpg' leaves them out",
        )
    ]


def test_several_suffixes(folder: Path):
    cfg = config(folder, img_suffix=(".jpg", ".png"))
    assert "img_suffix=('.jpg', '.png'); allowed: one suffix. For several, use" in problems(cfg)[0][1]
    with pytest.raises(UsageError, match=r"datasets=\[\.\.\.\]\) with a BaseSegDataset for each, or rename the files"):
        train(cfg)


def test_two_data_sets_with_a_suffix_each(folder: Path):
    for split in ("train", "val"):
        Image.open(folder / f"images/{split}/b.jpg").save(folder / f"images/{split}/b.png")
        (folder / f"images/{split}/b.jpg").unlink()
    cfg = config(folder)
    for split in ("train", "val", "test"):
        inner = cfg[f"{split}_dataloader"].dataset
        both = [inner, {**inner, "img_suffix": ".png"}]
        cfg[f"{split}_dataloader"].dataset = dict(type="ConcatDataset", datasets=both)
        init_default_scope("mmseg")
        for dataset, other in (both, both[::-1]):
            Segmentation().check_before_run(dataset, cfg.model, None, [other])
            with pytest.raises(AnnotationError, match="also 1 that have label maps"):
                Segmentation().check_before_run(dataset, cfg.model, None)
    assert problems(cfg) == []
    assert "suffix" not in dict(problems(cfg, breaks=False))


@pytest.mark.parametrize(("labels", "says"), [
    (three((48, 63)), r"c.png: is 63 x 48 \(width x height\), its image 64 x 48"),
    (np.stack([three()] * 3, -1), r"c.png: has mode 'RGB'; allowed: one 8-bit value per pixel"),
])  # fmt: skip
def test_headers_are_compared_before_a_run(folder: Path, labels: np.ndarray, says: str):
    write(folder, "train", "c", labels)
    with pytest.raises(UsageError, match=says):
        train(config(folder))


def test_listed_images_that_are_missing(folder: Path):
    (folder / "some.txt").write_text("a\nz\n")
    for split in ("train", "val"):
        Image.fromarray(three()).save(folder / f"annotations/{split}/z.png")
    with pytest.raises(UsageError, match=r"images/train/z\.jpg: no such file"):
        train(config(folder, ann_file="some.txt"))


def test_classes_in_another_encoding(folder: Path):
    (folder / "names.txt").write_text("ground\ncat\ndog\n", "utf-8-sig")
    with pytest.raises(UsageError, match=r"names.txt' is UTF-8 with a byte order mark; allowed: UTF-8 without"):
        train(config(folder, classes=str(folder / "names.txt")))


def test_deep_label_maps_outside_the_decoded_ones(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(label_maps, "DECODED", 1)
    cfg = config(folder)
    write(folder, "train", "b", three().astype(np.uint16))  # values of 8 bits
    init_default_scope("mmseg")
    Segmentation().check_before_run(cfg.train_dataloader.dataset, cfg.model, None)
    write(folder, "train", "b", three().astype(np.uint16) * 256)
    with pytest.raises(AnnotationError, match=r"b\.png: has values from 0 to 65280 .*allowed: 0 to 255"):
        Segmentation().check_before_run(cfg.train_dataloader.dataset, cfg.model, None)


def test_label_maps_that_another_transform_loads(folder: Path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(folder, split, name, np.stack([three() + 7] * 3, -1))
    cfg = config(folder)
    assert {kind for kind, _ in problems(cfg)} >= {"mode"}
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].dataset.pipeline[1] = dict(type="LoadColourMasks")
    init_default_scope("mmseg")
    Segmentation().check_before_run(cfg.train_dataloader.dataset, cfg.model, None)
    assert problems(cfg) == []
    assert [kind for kind, _ in problems(cfg, breaks=False)] == ["label maps"] * 2
    (folder / "images/train/a.jpg").write_bytes(b"")
    assert [kind for kind, _ in problems(cfg)] == ["image"]


def test_large_label_maps_are_counted_in_parts(folder: Path):
    size = (1500, 1001)  # more than a million pixels
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], size).astype(np.uint8)
    labels[1400:] = 255
    labels[-1, -3:] = 9
    write(folder, "train", "a", labels, size)
    cfg = config(folder)
    (report, *_) = check_data(cfg, progress=False)
    both = np.concatenate([labels.ravel(), three().ravel()])
    assert list(report.classes.values()) == [(both == label).sum() for label in range(3)]
    assert report.ignored == {"ignored (255)": (both == 255).sum()}
    assert "a.png: 3 pixels of value 9; allowed: 0 to 2, 255" in str(report.problems[0])
    for band in label_maps._bands(size):
        assert len(range(*band.indices(size[0]))) * size[1] <= 2**20


def test_labels_are_checked_as_they_are_loaded(folder: Path):
    cfg = config(folder)
    init_default_scope("mmseg")
    given = cfg.train_dataloader.dataset
    for _ in range(2):  # as with a config that was dumped by a run
        Segmentation().add_checks(given, cfg.model)
    steps = [step["type"] for step in given.pipeline][1:5]
    assert steps == ["mmgcvit.CheckLabelFile", "LoadAnnotations", "mmgcvit.CheckLabels", "RandomCrop"]
    built = DATASETS.build(given)
    assert built[0]["data_samples"].gt_sem_seg.shape == (24, 32)
    labels = three()
    labels[5, :7], labels[6, :3] = 9, 254
    path = write(folder, "train", "b", labels)
    with pytest.raises(AnnotationError) as error:
        built[1]
    assert str(error.value) == (
        f"label map {path}: 10 pixels have, as loaded, a label of 9, 254; allowed: 0 to 2, and 255, which is ignored"
    )
    write(folder, "train", "b", three().astype(np.uint16))
    assert built[1]["data_samples"].gt_sem_seg.shape == (24, 32)
    write(folder, "train", "b", three().astype(np.uint16) * 256)
    with pytest.raises(AnnotationError, match=r"b\.png: has values from 0 to 65280 .*allowed: 0 to 255, as larger"):
        built[1]
    write(folder, "train", "b", three()[:20])
    with pytest.raises(AnnotationError, match=rf"label map {path}: is 64 x 20 \(width x height\), its image 64 x 48"):
        built[1]
    given.reduce_zero_label = True
    given.metainfo = dict(classes=("cat", "dog"))
    Segmentation().add_checks(given, dict(decode_head=dict(num_classes=2)))
    write(folder, "train", "b", three())
    assert set(np.unique(DATASETS.build(given)[1]["data_samples"].gt_sem_seg.data)) <= {0, 1, 255}
    assert TRANSFORMS.build(dict(type="mmgcvit.CheckLabels", num_classes=2))(dict(img=1)) == dict(img=1)


def test_files_of_label_maps_are_checked_before_they_are_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    given = config(folder).train_dataloader.dataset
    init_default_scope("mmseg")
    Segmentation().add_checks(given, None)
    built, path = DATASETS.build(given), next(folder.glob("*/train/b.png"))
    whole = path.read_bytes()
    monkeypatch.setenv("MMGCVIT_MAX_PIXELS", str(48 * 64))
    assert built[1]["data_samples"].gt_sem_seg.shape == (24, 32)
    monkeypatch.setattr(mmseg.datasets.transforms.LoadAnnotations, "transform", lambda *_: pytest.fail("was decoded"))
    Image.new("L", (64, 49)).save(path)
    with pytest.raises(AnnotationError, match=rf"label map {path}: .*64 x 49 = 0\.0 million pixels; .*--max-pixels"):
        built[1]
    for content, said in ((b"", "the file is empty"), (whole[: len(whole) // 2], "cannot be decoded: .*")):
        path.write_bytes(content)
        with pytest.raises(AnnotationError, match=rf"label map {path}: .*{said}$"):
            built[1]
    path.unlink()
    with pytest.raises(AnnotationError, match=rf"label map {path}: cannot be read: \[Errno 2\] No such file"):
        built[1]
    path.mkdir()
    with pytest.raises(AnnotationError, match=rf"label map {path}: cannot be read: not a file"):
        built[1]
