"""All formats are recognised, and read to the same images, classes, boxes and masks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import own_data_sets as sets
import pytest
from PIL import Image

from mmgcvit.errors import AnnotationError, UsageError
from mmgcvit.finetune.command import describe_data, print_counts
from mmgcvit.finetune.data import UNSPLIT, Data, split_off
from mmgcvit.finetune.formats import FORMATS, read_data
from mmgcvit.finetune.write import convert

#: Name of the format, function that writes it, whether it has splits, whether it has masks.
CASES = [
    ("coco", sets.coco_roboflow, True, True), ("coco", sets.coco_usual, True, True),
    ("coco", sets.coco_one_file, False, True), ("yolo", sets.yolo, True, True),
    ("yolo", sets.yolo_roboflow, True, True), ("yolo", sets.yolo_label_studio, False, True),
    ("voc", sets.voc, True, False), ("voc", sets.voc_beside, True, False), ("labelme", sets.labelme, True, True),
    ("cvat", sets.cvat, True, True), ("labelstudio", sets.label_studio, False, True),
]  # fmt: skip


def described(data: Data) -> dict[str, list]:
    """Objects by image and class name, independent of the order of classes and files."""
    return {
        item.path.name: [
            (data.classes[instance.label], *np.round(instance.box, 3).tolist()) for instance in item.instances
        ]
        for item in data.items
    }


WANTED = {sets.file_name(i): [(sets.NAMES[label], *map(float, box)) for label, *box in sets.BOXES[i]] for i in range(6)}


@pytest.mark.parametrize(("name", "write", "split", "masks"), CASES, ids=[case[1].__name__ for case in CASES])
def test_every_format_gives_the_same_objects(name, write, split, masks, tmp_path):
    write(tmp_path)
    data = read_data(tmp_path)
    assert data.format == name
    assert data.tasks == ("detect",)
    assert sorted(data.classes) == sorted(sets.NAMES)
    assert described(data) == WANTED
    wanted = {"train": len(sets.TRAIN), "val": len(sets.VAL)} if split else {UNSPLIT: 6}
    assert {split: len(items) for split, items in data.splits.items()} == wanted
    assert all(item.size == sets.SIZES[int(item.path.name[5])] for item in data.items)


@pytest.mark.parametrize(
    "write", [case[1] for case in CASES if case[3]], ids=[case[1].__name__ for case in CASES if case[3]]
)
def test_every_format_gives_the_same_polygons(write, tmp_path):
    write(tmp_path, masks=True)
    data = read_data(tmp_path)
    assert data.tasks == ("segment", "detect")
    assert described(data) == WANTED
    for item in data.items:
        i = int(item.path.name[5])
        for k, instance in enumerate(item.instances):
            np.testing.assert_allclose(instance.segmentation, [sets.polygon(i, k)], atol=1e-3)


@pytest.mark.parametrize(("name", "write", "split", "masks"), CASES, ids=[case[1].__name__ for case in CASES])
def test_the_converted_annotations_are_read_again(name, write, split, masks, tmp_path):
    """Converted to COCO and read as COCO: the same objects."""
    write(tmp_path / "data")
    before = sorted(path for path in (tmp_path / "data").rglob("*"))
    data = read_data(tmp_path / "data")
    split_off(data)
    out = convert(data, tmp_path / "out")
    assert sorted(path for path in (tmp_path / "data").rglob("*")) == before
    content = json.loads((out / "train.json").read_text())
    assert [category["name"] for category in content["categories"]] == data.classes
    assert (out / "classes.txt").read_text().splitlines() == data.classes
    listed = [line for split in data.splits for line in (out / f"{split}.txt").read_text().splitlines()]
    assert {Path(line).name for line in listed} == set(WANTED)
    assert all(Path(line).is_file() for line in listed)
    if name != "coco":  # the images of the others are below the folder of the data
        for split in data.splits:
            (tmp_path / "data" / f"converted_{split}.json").write_bytes((out / f"{split}.json").read_bytes())
        again = read_data(tmp_path / "data", format_name="coco")
        assert described(again) == WANTED
        assert again.classes == data.classes


def test_label_maps_are_linked_to_the_template_layout(tmp_path):
    sets.label_maps(tmp_path / "data")
    data = read_data(tmp_path / "data")
    assert data.format == "labelmaps"
    assert data.classes == ["background", *sets.NAMES]
    out = convert(data, tmp_path / "out")
    for split, chosen in (("train", sets.TRAIN), ("val", sets.VAL)):
        for i in chosen:
            stem = Path(sets.file_name(i)).stem
            assert (np.asarray(Image.open(out / f"annotations/{split}/{stem}.png")) == sets.label_map(i)).all()
            with Image.open(out / f"images/{split}/{stem}.png") as image:
                assert image.size == sets.SIZES[i]


def test_label_maps_in_colours_are_converted(tmp_path):
    colours = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9], [200, 100, 7]], np.uint8)
    sets.label_maps(tmp_path / "data", lambda labels: Image.fromarray(colours[labels]), names=False)
    with pytest.raises(AnnotationError, match=r"label maps in colours, .* without labelmap"):
        read_data(tmp_path / "data")
    names = ["background", *sets.NAMES]
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in zip(names, colours.tolist(), strict=True)]
    (tmp_path / "data" / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines), "utf-8")
    data = read_data(tmp_path / "data")
    assert data.classes == names
    out = convert(data, tmp_path / "out")
    stem = Path(sets.file_name(0)).stem
    assert (np.asarray(Image.open(out / f"annotations/train/{stem}.png")) == sets.label_map(0)).all()


def test_binary_masks_of_0_and_255(tmp_path):
    sets.label_maps(tmp_path / "data", lambda labels: Image.fromarray((labels > 0).astype(np.uint8) * 255), names=False)
    with pytest.raises(AnnotationError, match=r"no class names; the label maps have the values 0, 255.*classes\.txt"):
        read_data(tmp_path / "data")
    (tmp_path / "data" / "classes.txt").write_text("background\ncell\n")
    data = read_data(tmp_path / "data")
    out = convert(data, tmp_path / "out")
    stem = Path(sets.file_name(0)).stem
    assert (np.asarray(Image.open(out / f"annotations/train/{stem}.png")) == (sets.label_map(0) > 0)).all()
    assert any("255 becomes label 1, 'cell'" in note for note in data.notes)


def test_masks_of_some_objects_are_not_used_without_a_word(tmp_path):
    content = sets.coco_content(range(6), True)
    del content["annotations"][0]["segmentation"]
    sets.write_images(tmp_path / "images")
    sets.write_json(tmp_path / "annotations.json", content)
    data = read_data(tmp_path)
    assert data.tasks == ("detect",)
    assert any(note.startswith("the masks are not used (1 object has no mask") for note in data.notes)


@pytest.mark.parametrize("split", [True, False])
def test_class_folders(split, tmp_path):
    sets.class_folders(tmp_path / "data", split)
    data = read_data(tmp_path / "data")
    assert data.format == "folders"
    assert set(data.classes) == set(sets.NAMES)
    assert {split: len(items) for split, items in data.splits.items()} == (
        {"train": 8, "val": 4} if split else {UNSPLIT: 12}
    )
    split_off(data)
    out = convert(data, tmp_path / "out")
    for item in data.splits["train"]:
        assert (out / "train" / data.classes[item.label] / item.path.name).resolve() == item.path.resolve()
    assert all(len({item.label for item in items}) == 4 for items in data.splits.values())


def test_the_split_keeps_copies_together_and_is_seeded(tmp_path):
    for i in range(20):
        for copy in "ab":
            sets.image(i % 6).save(tmp_path / f"{i}_jpg.rf.{copy}.png")
    images = [dict(id=i, file_name=path.name) for i, path in enumerate(sorted(tmp_path.glob("*.png")))]
    content = dict(images=images, annotations=[], categories=[dict(id=1, name="a")])
    sets.write_json(tmp_path / "all.json", content)
    splits = []
    for _ in range(2):
        data = read_data(tmp_path)
        split_off(data)
        splits.append({name: sorted(item.path.name for item in items) for name, items in data.splits.items()})
    assert splits[0] == splits[1]
    assert [len(splits[0][name]) for name in ("train", "val")] == [32, 8]
    names = [{name.partition(".rf.")[0] for name in splits[0][split]} for split in ("train", "val")]
    assert not names[0] & names[1]


def test_classes_with_one_name_stay_apart(tmp_path):
    content = sets.coco_content(range(6), False)
    content["categories"][1]["name"] = content["categories"][0]["name"]
    sets.write_images(tmp_path / "images")
    sets.write_json(tmp_path / "annotations.json", content)
    data = read_data(tmp_path)
    assert data.classes == ["big cat (0)", "big cat (1)", "007", "no"]
    assert any("several classes are named 'big cat'" in note for note in data.notes)


def test_an_image_that_is_listed_twice_is_kept_once(tmp_path):
    content = sets.coco_content(range(6), False)
    content["images"].append(dict(content["images"][0], id=999))
    content["annotations"][1]["image_id"] = 999
    sets.write_images(tmp_path / "images")
    sets.write_json(tmp_path / "annotations.json", content)
    data = read_data(tmp_path)
    assert described(data) == WANTED
    assert any("listed more than once" in note for note in data.notes)


def test_roboflows_first_category_is_left_out(tmp_path):
    content = sets.coco_content(range(6), False)
    for category in content["categories"]:
        category["supercategory"] = "animals"
    content["categories"].insert(0, dict(id=0, name="animals", supercategory="none"))
    sets.write_images(tmp_path / "images")
    sets.write_json(tmp_path / "annotations.json", content)
    data = read_data(tmp_path)
    assert data.classes == sets.NAMES
    assert described(data) == WANTED


def test_unknown_and_ambiguous_data(tmp_path):
    with pytest.raises(AnnotationError, match="no such file or folder"):
        read_data(tmp_path / "missing")
    with pytest.raises(AnnotationError, match="the folder is empty"):
        read_data(tmp_path)
    sets.write_images(tmp_path)
    with pytest.raises(AnnotationError) as error:
        read_data(tmp_path)
    assert "Seen: 4 .jpg, 2 .png; no folders" in str(error.value)
    assert FORMATS["yolo"].layout in str(error.value)
    sets.voc(tmp_path / "a")
    sets.labelme(tmp_path / "b")
    with pytest.raises(
        AnnotationError, match=r"more than one format; choose one:\n  --format voc: .*\n  --format labelme"
    ):
        read_data(tmp_path)
    assert read_data(tmp_path / "a").format == "voc"
    for options in (dict(task="boxes"), dict(format_name="tfrecord")):
        with pytest.raises(UsageError, match="allowed: "):
            read_data(tmp_path, **options)
    sets.coco_one_file(tmp_path / "c")
    with pytest.raises(AnnotationError, match=r"task='segment': .*8 objects have no mask, such as"):
        read_data(tmp_path / "c", "segment")


@pytest.mark.parametrize(
    "name",
    [r"images\1/{}", r"..\..\label-studio\media\upload\4\{}", "images/1/{}", "/data/upload/1/{}", "./{}"],
)
def test_file_names_of_label_studios_coco_exports(name, tmp_path):
    """Its releases write paths of its own storage, with the slashes of its system."""
    content = sets.coco_content(range(6), False)
    for image in content["images"]:
        image["file_name"] = name.format(image["file_name"])
    sets.write_images(tmp_path / "images")
    sets.write_json(tmp_path / "result.json", content)
    assert described(read_data(tmp_path)) == WANTED


def test_crowds_are_named(tmp_path, capsys):
    """CVAT exports masks with iscrowd=1, which nothing would be learned from."""
    content = sets.coco_content(range(6), False)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    sets.write_images(tmp_path / "images")
    sets.write_json(tmp_path / "annotations.json", content)
    data = read_data(tmp_path)
    assert "8 objects have iscrowd=1: ignored in training and evaluation" in data.notes
    describe_data(data, None, print)
    print_counts(data)
    shown = capsys.readouterr().out
    assert ": 6 images, 0 objects, 4 classes" in shown
    assert [re.findall(r"\w+", line)[-1] for line in shown.splitlines() if "│" in line] == ["6", "6", "8", *"0000"]


@pytest.mark.parametrize("path", ["path: ../datasets/mine", "path: ''", "path: .", "test:  # none"])
def test_yolo_with_a_path_of_another_machine(path, tmp_path):
    sets.yolo(tmp_path)
    text = (tmp_path / "data.yaml").read_text(encoding="utf-8")
    (tmp_path / "data.yaml").write_text(text.replace("path: .", path), encoding="utf-8")
    assert described(read_data(tmp_path)) == WANTED
    assert described(read_data(tmp_path / "data.yaml")) == WANTED
