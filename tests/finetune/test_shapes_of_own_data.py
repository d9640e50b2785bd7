"""Shapes beyond boxes and polygons: masks with holes, ellipses, rotated boxes, groups, choices."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import own_data_sets as sets
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from mmgcvit.errors import AnnotationError
from mmgcvit.finetune.data import Data, Instance
from mmgcvit.finetune.formats import read_data
from mmgcvit.finetune.write import area, coco, convert


def decoded(instance: Instance, width: int, height: int) -> np.ndarray:
    """Mask (H, W) of an object, decoded by pycocotools."""
    return coco_masks.decode(coco_masks.merge(_runs(instance.segmentation, width, height))).astype(bool)


def _runs(segmentation, width: int, height: int):
    found = coco_masks.frPyObjects(segmentation, height, width)
    return found if isinstance(found, list) else [found]


def ring() -> np.ndarray:
    """A mask (20, 30) with a hole."""
    mask = np.zeros((20, 30), bool)
    mask[2:18, 1:29] = True
    mask[6:12, 8:20] = False
    return mask


def one_image(data: Data) -> list[Instance]:
    (item,) = data.items
    return item.instances


def test_cvat_masks_with_holes_ellipses_and_rotated_boxes(tmp_path):
    Image.new("RGB", (97, 64)).save(tmp_path / "a.png")
    runs, values = [0], ring().ravel()
    for before, value in zip(np.concatenate([[False], values]), values, strict=False):
        runs = [*runs, 1] if value != before else [*runs[:-1], runs[-1] + 1]
    shapes = [
        f'<mask label="a" rle="{", ".join(map(str, runs))}" left="5" top="7" width="30" height="20"/>',
        '<ellipse label="a" cx="50" cy="30" rx="20" ry="10" rotation="90"/>',
        '<box label="a" xtl="20" ytl="20" xbr="40" ybr="30" rotation="90"/>',
        '<polygon label="a" group_id="3" points="1,1;5,1;5,5"/>',
        '<polygon label="a" group_id="3" points="11,1;15,1;15,5"/>',
    ]
    text = "<annotations><meta><job><labels><label><name>a</name></label></labels></job></meta>"
    text += f'<image name="a.png" width="97" height="64">{"".join(shapes)}</image></annotations>'
    (tmp_path / "annotations.xml").write_text(text)
    mask, ellipse, box, pair = one_image(read_data(tmp_path))
    wanted = np.zeros((64, 97), bool)
    wanted[7:27, 5:35] = ring()
    assert (decoded(mask, 97, 64) == wanted).all()
    assert area(mask) == wanted.sum()
    np.testing.assert_allclose(ellipse.box, (40, 10, 20, 40), atol=0.2)
    np.testing.assert_allclose(area(ellipse), np.pi * 200, rtol=0.01)
    np.testing.assert_allclose(box.box, (25, 15, 10, 20))
    assert pair.box == (1, 1, 14, 4)
    assert pair.segmentation == [[1, 1, 5, 1, 5, 5], [11, 1, 15, 1, 15, 5]]


def test_labelme_masks_circles_and_groups(tmp_path):
    Image.new("L", (97, 64)).save(tmp_path / "a.png")
    file = io.BytesIO()
    Image.fromarray(ring()).save(file, "PNG")
    shapes = [
        dict(label="m", shape_type="mask", points=[[5, 7], [34, 26]], mask=base64.b64encode(file.getvalue()).decode()),
        dict(label="c", shape_type="circle", points=[[50, 30], [50, 40]]),
        dict(label="g", shape_type="polygon", points=[[1, 1], [5, 1], [5, 5]], group_id=0),
        dict(label="g", shape_type="polygon", points=[[11, 1], [15, 1], [15, 5]], group_id=0),
    ]
    sets.write_json(tmp_path / "a.json", dict(shapes=shapes, imagePath="a.png"))
    data = read_data(tmp_path)
    assert data.classes == ["c", "g", "m"]
    mask, circle, pair = one_image(data)
    wanted = np.zeros((64, 97), bool)
    wanted[7:27, 5:35] = ring()
    assert (decoded(mask, 97, 64) == wanted).all()
    np.testing.assert_allclose(circle.box, (40, 20, 20, 20), atol=0.1)
    assert len(pair.segmentation) == 2
    shapes[0]["mask"] = "x"
    sets.write_json(tmp_path / "a.json", dict(shapes=shapes, imagePath="a.png"))
    with pytest.raises(AnnotationError, match=r"shapes\[0\].mask: not a PNG in base64"):
        read_data(tmp_path)


def test_coco_keeps_crowds_and_runs(tmp_path):
    content = sets.coco_content(range(6), True)
    runs = dict(size=[64, 97], counts=[10, 50, 64 * 97 - 60])
    content["annotations"][0].update(segmentation=runs, iscrowd=1)
    compressed = coco_masks.encode(np.asfortranarray(np.pad(ring(), ((0, 44), (0, 67))), np.uint8))
    text = dict(size=compressed["size"], counts=compressed["counts"].decode())
    content["annotations"][1]["segmentation"] = text
    sets.write_images(tmp_path / "images")
    sets.write_json(tmp_path / "annotations.json", content)
    data = read_data(tmp_path)
    assert data.tasks == ("segment", "detect")
    written = coco(list(data.items), data.classes, tmp_path, masks=True)["annotations"]
    assert (written[0]["segmentation"], written[0]["iscrowd"], written[0]["area"]) == (runs, 1, 50)
    assert (written[1]["segmentation"], written[1]["iscrowd"], written[1]["area"]) == (text, 0, ring().sum())


def test_label_studio_choices_and_short_export(tmp_path):
    sets.write_images(tmp_path)
    tasks = [
        dict(data=dict(image=f"https://host/{sets.file_name(i).replace(' ', '%20')}", text="x"),
             annotations=[dict(result=[dict(type="choices", value=dict(choices=[sets.NAMES[i % 2]]))])])
        for i in range(6)
    ]  # fmt: skip
    sets.write_json(tmp_path / "export.json", tasks)
    data = read_data(tmp_path)
    assert data.tasks == ("classify",)
    assert [(item.path.name, data.classes[item.label]) for item in data.items] == [
        (sets.file_name(i), sets.NAMES[i % 2]) for i in range(6)
    ]
    box = dict(x=50, y=25, width=20, height=10, rotation=90, rectanglelabels=["a"])
    short = [dict(image=f"/data/local-files/?d=x/{sets.file_name(0)}", label=[box], annotator=1, id=1)]
    sets.write_json(tmp_path / "export.json", short)
    data = read_data(tmp_path)
    (instance,) = one_image(data)
    # turned about its top left corner, in an image of 97 x 64
    np.testing.assert_allclose(instance.box, (48.5 - 6.4, 16, 6.4, 19.4))
    assert any("5 image files are not in the annotations" in note for note in data.notes)


def test_cityscapes_and_ade(tmp_path):
    for split, chosen in (("train", [0, 1]), ("val", [4])):
        for i in chosen:
            for kind, end, image in (
                ("leftImg8bit", "leftImg8bit", sets.image(i).convert("RGB")),
                ("gtFine", "gtFine_labelTrainIds", Image.fromarray(sets.label_map(i))),
                ("gtFine", "gtFine_color", sets.image(i).convert("RGB")),
            ):
                folder = tmp_path / "city" / kind / split / "ulm"
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"ulm_{i}_{end}.png")
    data = read_data(tmp_path / "city")
    assert len(data.classes) == 19
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 2, "val": 1}
    sets.label_maps(tmp_path / "ade", names=False)
    for kind, new in (("images", "images"), ("masks", "annotations")):
        (tmp_path / "ade" / kind / "train").rename(tmp_path / "ade" / kind / "training")
        (tmp_path / "ade" / kind / "val").rename(tmp_path / "ade" / kind / "validation")
        (tmp_path / "ade" / kind).rename(tmp_path / "ade" / new)
    lines = ["Idx\tRatio\tName", *(f"{i}\t0.1\t{name}" for i, name in enumerate(sets.NAMES, 1))]
    (tmp_path / "ade" / "objectInfo150.txt").write_text("\n".join(lines), encoding="utf-8")
    data = read_data(tmp_path / "ade")
    assert data.classes == sets.NAMES
    assert data.ignore_zero
    assert convert(data, tmp_path / "out") == tmp_path / "out"


def test_several_images_with_the_name_in_an_annotation(tmp_path):
    for folder in "ab":
        sets.write_images(tmp_path / folder, [0])
    sets.write_json(tmp_path / "c" / "all.json", sets.coco_content([0], False))
    with pytest.raises(
        AnnotationError, match=r"images\[0\].file_name: image .*: several images have this name: .*/a/.*, .*/b/"
    ):
        read_data(tmp_path)


def test_voc_with_objects_and_label_maps(tmp_path):
    """The task decides; the lists of ImageSets/Segmentation are those of the label maps."""
    sets.voc(tmp_path)
    for folder in ("SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir()
    for i in range(6):
        image = Image.fromarray(sets.label_map(i)).convert("P")
        image.save((tmp_path / "SegmentationClass" / sets.file_name(i)).with_suffix(".png"))
    for split, chosen in (("train", [0, 1, 2]), ("val", [4])):
        names = [Path(sets.file_name(i)).stem for i in chosen]
        (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names), encoding="utf-8")
    (tmp_path / "classes.txt").write_text("\n".join(["background", *sets.NAMES]), encoding="utf-8")
    with pytest.raises(AnnotationError, match="more than one format"):
        read_data(tmp_path)
    assert read_data(tmp_path, "detect").format == "voc"
    data = read_data(tmp_path, "semantic")
    assert {split: len(items) for split, items in data.splits.items()} == {"train": 3, "val": 1}
    assert any(note.startswith("2 images are in none of") for note in data.notes)
