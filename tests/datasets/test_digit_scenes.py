"""Digit scenes: complete, reproducible, consistent with their masks, and written atomically."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_tool import run_tool

from mmgcvit.datasets import digit_scenes
from mmgcvit.datasets.digit_scenes import CLASSES, make_digit_scenes, run_lengths

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_digit_scenes(tmp_path_factory.mktemp("digits") / "scenes", images=41, size=128, seed=3)


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hundred digits only, as drawing all of them by themselves takes seconds."""
    digits = digit_scenes.load_digits()
    digits.images, digits.target = digits.images[:100], digits.target[:100]
    monkeypatch.setattr(digit_scenes, "load_digits", lambda: digits)


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def decode(segmentation: dict) -> np.ndarray:
    height, width = segmentation["size"]
    values = np.repeat(np.arange(len(segmentation["counts"])) % 2, segmentation["counts"])
    return values.reshape(width, height).T.astype(bool)


def test_written_files(scenes: Path):
    assert [len(annotations(scenes, split)["images"]) for split in ("train", "val")] == [39, 2]
    for split in ("train", "val"):
        images = sorted((scenes / "images" / split).iterdir())
        assert [p.name for p in images] == [i["file_name"] for i in annotations(scenes, split)["images"]]
        assert all(Image.open(p).size == (128, 128) for p in images)
        assert [p.stem for p in sorted((scenes / "semantic" / split).iterdir())] == [p.stem for p in images]
        assert sorted(p.name for p in (scenes / "classification" / split).iterdir()) == list(CLASSES)
    count = {s: sum(1 for _ in (scenes / "classification" / s).rglob("*.png")) for s in ("train", "val")}
    assert count == {"train": 1438, "val": 359}
    assert "--images 41 --size 128 --seed 3" in (scenes / "README.txt").read_text()
    assert [p.name for p in scenes.parent.iterdir()] == ["scenes"]  # no temporary files are left next to it


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_files(scenes: Path, split: str):
    """A data set without faults, whose segments are the digits and the background."""
    pytest.importorskip("mmdet")
    from mmgcvit.tasks.panoptic.annotations import check_png, ids_of, read_panoptic

    names = (*CLASSES, "background")
    found = read_panoptic(dict(
        type="CocoPanopticDataset", data_root=str(scenes), ann_file=f"annotations/panoptic_{split}.json",
        data_prefix=dict(img=f"images/{split}", seg=f"panoptic/{split}"),
        metainfo=dict(classes=names, thing_classes=CLASSES, stuff_classes=("background",)),
    ))  # fmt: skip
    assert found.problems == []
    assert [problem for image in found.images for problem in check_png(image)] == []
    content = annotations(scenes, split)
    assert found.objects == len(content["annotations"]) + len(content["images"])
    for image in found.images:
        name = Path(image.path).stem
        ids = ids_of((scenes / f"panoptic/{split}/{name}.png").read_bytes())
        labels = np.zeros_like(ids)
        for key, segment in image.segments.items():
            labels[ids == key] = 0 if segment.label == "background" else int(segment.label) + 1
        assert np.array_equal(labels, np.asarray(Image.open(scenes / f"semantic/{split}/{name}.png")))


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_areas_and_label_maps_match_masks(scenes: Path, split: str):
    coco = annotations(scenes, split)
    assert [c["name"] for c in coco["categories"]] == list(CLASSES)
    semantic = {i["id"]: np.zeros((128, 128), np.uint8) for i in coco["images"]}
    for annotation in coco["annotations"]:
        mask = decode(annotation["segmentation"])
        rows, columns = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w - 1, y + h - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
        assert annotation["area"] == mask.sum() > 0
        assert not semantic[annotation["image_id"]][mask].any()  # hidden pixels belong to the covering digit only
        semantic[annotation["image_id"]][mask] = annotation["category_id"] + 1
    for image in coco["images"]:
        saved = np.array(Image.open(scenes / "semantic" / split / image["file_name"].replace("jpg", "png")))
        assert np.array_equal(saved, semantic[image["id"]])
        assert saved.any()


def test_masks_cover_the_digits(scenes: Path):
    """Each digit has a single colour, so colours inside a mask vary far less than around it."""
    coco = annotations(scenes, "train")
    inside, around = [], []
    for annotation in coco["annotations"]:
        image = np.array(Image.open(scenes / "images/train" / f"{annotation['image_id']:06d}.jpg")).astype(float)
        mask = decode(annotation["segmentation"])
        x, y, w, h = annotation["bbox"]
        box = np.zeros_like(mask)
        box[y : y + h, x : x + w] = True
        inside.append(np.median(np.abs(image[mask] - np.median(image[mask], 0))))
        around.append(np.median(np.abs(image[box] - np.median(image[mask], 0))))
    assert np.mean(inside) < 0.25 * np.mean(around)


def test_pycocotools_reads_the_masks(scenes: Path):
    coco_api = pytest.importorskip("pycocotools.coco")
    coco = coco_api.COCO(scenes / "annotations" / "instances_val.json")
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), decode(annotation["segmentation"]))


@pytest.mark.parametrize(
    "mask", [np.zeros((3, 4), bool), np.ones((3, 4), bool), np.eye(5, dtype=bool), np.arange(12).reshape(3, 4) % 3 == 0]
)
def test_run_lengths(mask: np.ndarray):
    counts = run_lengths(mask)
    assert sum(counts) == mask.size
    assert np.array_equal(decode({"size": mask.shape, "counts": counts}), mask)


def test_same_arguments_same_images(scenes: Path, tmp_path):
    again = make_digit_scenes(tmp_path / "again", images=41, size=128, seed=3)
    other = make_digit_scenes(tmp_path / "other", images=41, size=128, seed=4)
    files = [p.relative_to(scenes) for p in sorted(scenes.rglob("*")) if p.is_file()]
    assert all((scenes / f).read_bytes() == (again / f).read_bytes() for f in files)
    assert any((scenes / f).read_bytes() != (other / f).read_bytes() for f in files if f.suffix == ".jpg")


def test_training_and_validation_share_no_digits_or_backgrounds(tmp_path, monkeypatch):
    """Records the digits and photographs used for each split: training first, then validation."""
    scenes, singles = [], []
    real_scene, real_single = digit_scenes.draw_scene, digit_scenes.draw_single

    def scene(rng, strokes, labels, photographs, size):
        scenes.append((strokes, photographs))
        return real_scene(rng, strokes, labels, photographs, size)

    def single(rng, stroke, photographs):
        singles.append((stroke, photographs))
        return real_single(rng, stroke, photographs)

    monkeypatch.setattr(digit_scenes, "draw_scene", scene)
    monkeypatch.setattr(digit_scenes, "draw_single", single)
    make_digit_scenes(tmp_path / "scenes", images=20, size=64)
    assert len(scenes) == 20
    assert len(singles) == 1797
    photographs = digit_scenes.load_sample_images().images
    for drawn, first_val in ((scenes, 19), (singles, 1438)):
        train, val = drawn[:first_val], drawn[first_val:]
        digits = [{d.tobytes() for strokes, _ in part for d in strokes.reshape(-1, 8, 8)} for part in (train, val)]
        # the 1797 digits contain a few exact duplicates
        assert len(digits[0] & digits[1]) <= 5
        assert sum(map(len, digits)) >= 1790
        for number, photograph in enumerate(photographs):
            widths = [{backgrounds[number].shape[1] for _, backgrounds in part} for part in (train, val)]
            assert [len(w) for w in widths] == [1, 1]
            cut = widths[0].pop()
            assert cut + widths[1].pop() == photograph.shape[1]
            assert np.array_equal(train[0][1][number], photograph[:, :cut])
            assert np.array_equal(val[0][1][number], photograph[:, cut:])


@pytest.mark.usefixtures("few_digits")
def test_no_overwriting_without_force_and_no_loss_on_failure(tmp_path, monkeypatch):
    out = tmp_path / "scenes"
    make_digit_scenes(out, images=20, size=64)
    (out / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="--force"):
        make_digit_scenes(out, images=20, size=64)

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as failing:
        failing.setattr(digit_scenes, "_coco", fail)
        with pytest.raises(OSError, match="disk full"):
            make_digit_scenes(out, images=20, size=64, force=True)
    assert (out / "mine.txt").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]
    make_digit_scenes(out, images=20, size=64, force=True)
    assert not (out / "mine.txt").exists()
    assert (out / "README.txt").exists()


@pytest.mark.usefixtures("few_digits")
def test_force_replaces_digit_scenes_only(tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", tmp_path, "file"):
        with pytest.raises(FileExistsError, match="contains no digit scenes: --force does not replace it"):
            make_digit_scenes(out, images=20, size=64, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert (make_digit_scenes("empty", images=20, size=64, force=True) / "README.txt").is_file()


@pytest.mark.parametrize("arguments", [dict(images=19), dict(size=63), dict(seed=-1)])
def test_bad_arguments(tmp_path, arguments: dict):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name}={value}; allowed: an integer >="):
        make_digit_scenes(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_tool(tmp_path):
    command = ("make_digit_scenes.py", "out", "--images", "20", "--size", "64")
    done = run_tool(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out/README.txt" in done.stdout
    again = run_tool(*command, cwd=tmp_path)
    assert again.returncode == 1
    assert again.stderr.strip() == "make_digit_scenes: out exists: choose another folder, or use --force to replace it"
