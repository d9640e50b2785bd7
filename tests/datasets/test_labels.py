"""Label maps of segmentation data: each error is in the report of ``mmgcvit check-data``."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_tool import run_tool

pytest.importorskip("mmcv")
pytest.importorskip("mmseg")

from mmengine.config import Config

from mmgcvit.apis import UsageError, train
from mmgcvit.datasets.check import check_data
from mmgcvit.datasets.report import print_reports
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.segmentation.label_maps import (
    IGNORED,
    OUTSIDE,
    _crops,
    _meaning,
    _resized,
    check_label_maps,
    has_label_maps,
)

CLASSES = ("ground", "cat", "dog")


def write(folder: Path, split: str, name: str, labels: np.ndarray, size: tuple[int, int] = (48, 64)) -> Path:
    """Write an image of 48 x 64 (height x width) and its label map; returns the path of the label map."""
    for kind in ("images", "annotations"):
        (folder / kind / split).mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([*split.encode(), *name.encode()]).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / f"images/{split}/{name}.jpg")
    path = folder / f"annotations/{split}/{name}.png"
    Image.fromarray(labels).save(path)
    return path


def three(size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Label map with all classes and some ignored pixels."""
    labels = np.zeros(size, np.uint8)
    labels[:10], labels[10:20], labels[-1] = 1, 2, 255
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(tmp_path, split, name, three())
    return tmp_path


def config(
    folder: Path, classes: tuple[str, ...] = CLASSES, heads: int = len(CLASSES), resize: dict | None = None, **more
) -> Config:
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        *([resize] if resize else []),
        dict(type="RandomCrop", crop_size=(24, 32)),
        dict(type="PackSegInputs"),
    ]

    def loader(split: str) -> dict:
        return dict(
            dataset=dict(
                type="BaseSegDataset",
                data_root=str(folder),
                metainfo=dict(classes=classes),
                pipeline=pipeline,
                data_prefix=dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}"),
                **more,
            )
        )

    return Config(
        dict(
            default_scope="mmseg",
            model=dict(decode_head=dict(num_classes=heads)),
            train_dataloader=loader("train"),
            val_dataloader=loader("val"),
            test_dataloader=loader("val"),
        )
    )


def problems(cfg: Config, breaks: bool = True) -> list[tuple[str, str]]:
    return [
        (problem.kind, str(problem))
        for report in check_data(cfg, progress=False)
        for problem in report.problems
        if problem.breaks == breaks
    ]


def test_good_data(folder: Path, capsys):
    reports = check_data(config(folder), progress=False)
    assert [(r.name, r.images, r.empty, r.objects, r.kept) for r in reports] == [
        ("train", 2, 0, 2 * 48 * 64, 2 * 47 * 64),
        ("val", 2, 0, 2 * 48 * 64, 2 * 47 * 64),
    ]
    assert reports[0].classes == {"ground": 2 * 27 * 64, "cat": 2 * 640, "dog": 2 * 640}
    assert reports[0].sizes == {(64, 48): 2}
    assert not any(report.problems for report in reports)
    print_reports(reports)
    printed = capsys.readouterr().out
    assert "pixels by class" in printed
    assert printed.strip().endswith("nothing that would break training")


def planted(kind: str) -> np.ndarray | Image.Image:
    labels = three()
    if kind == "value":
        labels[5, 5:8] = 7
        labels[6, 6] = 254
    elif kind == "size":
        return three((48, 63))
    elif kind == "mode":
        return np.stack([labels] * 3, -1)
    elif kind == "depth":
        return labels.astype(np.uint16) * 256
    return labels


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("value", "4 pixels of value 7, 254; allowed: 0 to 2, 255"),
        ("size", "is 63 x 48 (width x height), its image 64 x 48"),
        ("mode", "has mode 'RGB'; allowed: one 8-bit value per pixel, modes 1, L, P"),
        (
            "depth",
            "has values from 0 to 65280 ('I;16'); allowed: 0 to 255, as larger values are silently truncated to 8 bits",
        ),
    ],
)
def test_wrong_label_maps(folder: Path, kind: str, says: str):
    path = write(folder, "train", "c", planted(kind))
    found = problems(config(folder))
    assert [k for k, _ in found] == [kind]
    assert found[0][1].startswith(f"{path}: {says}")


def test_16_bit_maps_with_small_values_are_valid(folder: Path):
    write(folder, "train", "c", three().astype(np.uint16))
    assert problems(config(folder)) == []
    palette = Image.fromarray(three(), "P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(folder / "annotations/train/c.png")
    reports = check_data(config(folder), progress=False)
    assert reports[0].classes["cat"] == 3 * 640
    assert not reports[0].problems


def test_files_without_a_partner(folder: Path):
    (folder / "annotations/train/a.png").unlink()
    (folder / "images/val/b.jpg").unlink()
    cfg = config(folder)
    assert problems(cfg) == [("partner", f"{folder}/images/train/a.jpg: no label map {folder}/annotations/train/a.png")]
    assert problems(cfg, breaks=False) == [
        ("partner", f"{folder}/annotations/val: 1 label map belongs to no image of this data set, the first b.png")
    ]


@pytest.mark.parametrize("file", ["images/train/a.jpg", "annotations/train/a.png"])
def test_files_that_cannot_be_decoded(folder: Path, file: str):
    path = folder / file
    path.write_bytes(path.read_bytes()[:60])
    assert [kind for kind, _ in problems(config(folder))] == ["image" if "images" in file else "label map"]


def test_ignored_maps_and_crops(folder: Path):
    write(folder, "train", "c", np.full((48, 64), 255, np.uint8))
    half = three()
    half[:, :32] = 255
    write(folder, "train", "d", half)
    assert problems(config(folder)) == []
    assert problems(config(folder), breaks=False) == [
        ("ignored", f"{folder}/annotations/train: 1 of 4 label maps have no label at all"),
        (
            "ignored",
            f"{folder}/annotations/train: 6 of 16 crops of 24 x 32 (height x width) have no label at all: "
            "nothing is learned from them",
        ),
    ]


@pytest.mark.parametrize(
    ("resize", "empty", "crops"),
    [
        # an image of 48 x 64 becomes 24 x 32, one crop; 96 x 128, of which a quarter is ignored; 36 x 48
        (dict(type="RandomResize", scale=(64, 32), ratio_range=(0.5, 1.0), keep_ratio=True), 0, 1),
        (dict(type="RandomResize", scale=[(96, 64), (160, 128)], keep_ratio=True), 8, 16),
        (dict(type="Resize", scale=(128, 48)), 4, 8),
        (dict(type="Resize", scale_factor=0.75), 0, 1),
        (dict(type="Resize", scale=36, keep_ratio=True), 0, 1),
        (dict(type="ResizeShortestEdge", scale=96, max_size=128), None, None),
    ],
)
def test_crops_of_resized_images(folder: Path, resize: dict, empty: int | None, crops: int | None):
    half = three()
    half[:, :32] = 255
    for name in ("a", "b"):
        write(folder, "train", name, half)
    wanted = (
        []
        if not empty
        else [
            (
                "ignored",
                f"{folder}/annotations/train: {2 * empty} of {2 * crops} crops of 24 x 32 (height x width, of "
                "resized images) have no label at all: nothing is learned from them",
            )
        ]
    )
    assert problems(config(folder, resize=resize), breaks=False) == wanted
    if crops:
        assert _crops(half == 255, (24, 32), _resized(half.shape, resize)) == (empty, crops)


def test_masks_of_0_and_255(folder: Path, capsys):
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(folder, split, name, np.where(three() == 1, 255, 0).astype(np.uint8))
    cfg = config(folder, ("ground", "cat"), 2)
    assert [text for kind, text in problems(cfg, breaks=False) if kind == "class" and "ignored" in text] == [
        f"{folder}/annotations/{split}: 1280 pixels are ignored (255), while class 'cat' has none: classes are "
        "numbered 0, 1, ..., so a mask of 0 and 255 must use 1 instead of 255"
        for split in ("train", "val")
    ]
    print_reports(check_data(cfg, progress=False))
    printed = capsys.readouterr().out
    assert re.search(r"ignored \(255\) +│ +1280 ", printed)
    assert "no pixel of class 'cat': its IoU will be 0, or NaN" in printed
    assert printed.strip().endswith("nothing that would break training")  # it trains


def test_label_maps_next_to_images(folder: Path):
    """An empty `seg_map_path` means the root of the data set."""
    for split in ("train", "val"):
        for path in (folder / "annotations" / split).iterdir():
            path.rename(folder / "images" / split / path.name)
    cfg = config(folder)
    for loader, split in ((cfg.train_dataloader, "train"), (cfg.val_dataloader, "val"), (cfg.test_dataloader, "val")):
        loader.dataset.update(data_root=f"{folder}/images/{split}", data_prefix=dict(img_path="", seg_map_path=""))
    cfg.train_dataloader.dataset.pop("data_prefix")  # the default has the same meaning
    reports = check_data(cfg, progress=False)
    assert [(report.images, report.unit, report.problems) for report in reports] == [(2, "pixels", [])] * 2
    (folder / "images/train/a.png").unlink()
    with pytest.raises(UsageError, match=r"images/train/a\.jpg: no label map "):
        train(cfg)
    assert not has_label_maps(dict(type="BaseSegDataset", data_prefix=dict(img_path="images/test")))
    assert not has_label_maps(dict(type="CocoDataset", _scope_="mmdet"))


def test_ignored_label_comes_from_the_losses(folder: Path):
    """mmseg's losses and metric have their own `ignore_index` and never use that of the data set."""
    cfg = config(folder, ignore_index=2)
    found = problems(cfg)
    assert found == [("ignore_index", "the data set: ignore_index=2; allowed: 255, as model.decode_head has")] * 2
    with pytest.raises(UsageError, match=r"data set: ignore_index=2; allowed: 255, as model\.decode_head has"):
        train(cfg)
    cfg.model.decode_head.ignore_index = 2
    assert [kind for kind, _ in problems(cfg)] == ["value", "value"] * 2  # for 255
    missing = [text for kind, text in problems(cfg, breaks=False) if kind == "class" and "no pixel" in text]
    assert len(missing) == 2  # for 2, which has no pixels left
    reports = check_data(cfg, progress=False)
    assert reports[0].ignored == {"ignored (2)": 2 * 640}
    cfg.model.auxiliary_head = [dict(num_classes=3)]
    assert problems(cfg)[0] == (
        "ignore_index",
        "model.auxiliary_head[0]: ignore_index=255; allowed: 2, as model.decode_head has",
    )
    with pytest.raises(AnnotationError, match=r"the metric: ignore_index=255; allowed: 2, as model\.decode_head has"):
        check_label_maps(cfg.val_dataloader.dataset, cfg.model, [dict(type="IoUMetric")])


def test_reduce_zero_label_shifts_labels(folder: Path):
    cfg = config(folder, reduce_zero_label=True)  # 0 is ignored, 1 is ground, 2 is cat; no pixels of dog are left
    assert problems(cfg) == []
    found = [text for kind, text in problems(cfg, breaks=False) if kind == "class" and "no pixel" in text]
    assert len(found) == 2
    assert "no pixel of class 'dog': its IoU will be 0, or NaN" in found[0]
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(folder, split, name, np.zeros((48, 64), np.uint8))
    found = problems(config(folder, reduce_zero_label=True))
    assert [kind for kind, _ in found] == ["empty", "empty"]
    assert found[0][1].endswith(
        "the loss would be 0 or NaN, 6144 are ignored (255), with reduce_zero_label=True 0 is ignored"
    )


def test_classes_missing_in_a_split(folder: Path):
    no_dog = three()
    no_dog[no_dog == 2] = 0
    for name in ("a", "b"):
        write(folder, "val", name, no_dog)
    assert problems(config(folder)) == []  # a run would train, and its metrics are those of the other classes
    assert problems(config(folder), breaks=False)[0] == (
        "class",
        f"{folder}/annotations/val: no pixel of class 'dog': its IoU will be NaN, or 0 if anything is predicted as it",
    )


def test_heads_with_another_number_of_classes(folder: Path):
    assert problems(config(folder, heads=2))[0] == (
        "classes",
        "model.decode_head: num_classes=2; the data set has 3: 'ground', 'cat', 'dog'",
    )
    with pytest.raises(UsageError, match=r"model\.decode_head: num_classes=2; the data set has 3"):
        train(config(folder, heads=2))


def test_missing_or_wrong_folders(folder: Path):
    cfg = config(folder, img_suffix=".jpeg")
    assert problems(cfg)[0][1].endswith(
        f"no images *.jpeg in {folder}/images/train; there are 2 *.jpg (img_suffix of the data set): training would "
        "hang"
    )
    with pytest.raises(UsageError, match=r"no images \*\.jpeg in"):
        train(cfg)
    cfg = config(folder / "nowhere")
    assert problems(cfg)[0][1].endswith(f"{folder}/nowhere/images/train: no such file or folder")
    with pytest.raises(UsageError, match="nowhere/images/train: no such file or folder"):
        train(cfg)
    assert "BaseSegDataset cannot be built: TypeError: " in problems(config(folder, nonsense=1))[0][1]


def test_list_of_names_selects_label_maps(folder: Path):
    (folder / "some.txt").write_text("a\n")
    reports = check_data(config(folder, ann_file="some.txt"), progress=False)
    assert [(report.images, report.problems) for report in reports] == [(1, []), (1, [])]
    assert problems(config(folder, ann_file="other.txt"))[0][1].endswith("other.txt: no such file or folder")


def test_single_class_is_rejected(folder: Path):
    found = problems(config(folder, classes=("cat",), heads=1))
    assert found[0] == (
        "classes",
        "model.decode_head: num_classes=1: with one class there is nothing to distinguish, "
        "and the loss is 0; add the background as a class",
    )
    found = problems(config(folder, classes="cat", heads=3))
    assert found[0][1].endswith(
        "metainfo.classes='cat'; allowed: a tuple of names, such as ('cat', ), or a file with one name per line"
    )


def test_classes_from_a_file(folder: Path):
    (folder / "names.txt").write_text("ground\ncat\ndog\n")
    reports = check_data(config(folder, classes=str(folder / "names.txt")), progress=False)
    assert [tuple(report.classes) for report in reports] == [CLASSES, CLASSES]
    assert not any(report.problems for report in reports)


def test_lists_of_names_in_other_encodings(folder: Path):
    (folder / "names.txt").write_text("ground\ncat\ndog\n", "utf-16")
    (folder / "some.txt").write_text("a\n", "utf-8-sig")
    for options, says in (
        (dict(classes=str(folder / "names.txt")), r"metainfo\.classes '.*names\.txt' is UTF-16; allowed: UTF-8"),
        (dict(ann_file="some.txt"), r"ann_file '.*some\.txt' is UTF-8 with a byte order mark"),
    ):
        with pytest.raises(UsageError, match=says):
            train(config(folder, **options))
        assert any(re.search(says, text) for _, text in problems(config(folder, **options)))


def test_labels_equal_mmsegs(folder: Path):
    from mmengine.registry import init_default_scope
    from mmseg.datasets.transforms import LoadAnnotations

    init_default_scope("mmseg")
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(folder / "all.png")
    for reduce in (False, True):
        for label_map in (None, {0: 1, 1: 255, 2: 0}):
            results = dict(
                seg_map_path=str(folder / "all.png"), reduce_zero_label=reduce, label_map=label_map, seg_fields=[]
            )
            loaded = LoadAnnotations()(results)["gt_seg_map"].ravel()
            meaning = _meaning(3, reduce, label_map, 255)
            np.testing.assert_array_equal(
                meaning, np.where(loaded < 3, loaded, np.where(loaded == 255, IGNORED, OUTSIDE))
            )


def test_crops_at_edges():
    ignored = np.ones((50, 70), bool)
    assert _crops(ignored, (24, 32), (50, 70)) == (4, 4)  # the remainder belongs to the last crop
    ignored[49, 69] = False
    assert _crops(ignored, (24, 32), (50, 70)) == (3, 4)
    assert _crops(ignored, (100, 100), (50, 70)) == (0, 1)


def test_command(folder: Path):
    write(folder, "train", "c", planted("value"))
    (folder / "mine.py").write_text(config(folder).pretty_text)
    done = run_tool("check_data.py", "mine.py", cwd=folder)
    assert done.returncode == 1, done.stderr
    assert "error: train: value: 1" in done.stdout
    assert "4 pixels of value 7, 254; allowed: 0 to 2, 255" in done.stdout
    assert done.stdout.strip().endswith("would break training or make a metric meaningless: train")
