"""Validation of COCO files: each error is reported with the file, the image id and the annotation id."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgcvit.datasets.problems import data_sets
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.detection.annotations import check_before_run, outside, read_coco
from mmgcvit.tasks.detection.coco import LEFT_OUT

SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]


def content() -> dict:
    return dict(
        images=[dict(id=7, file_name="a.jpg", width=64, height=48), dict(id=8, file_name="b.jpg", width=48, height=64)],
        categories=[dict(id=5, name="dog"), dict(id=2, name="cat")],
        annotations=[
            dict(id=1, image_id=7, category_id=2, bbox=[10, 10, 10, 10], area=100, iscrowd=0, segmentation=SQUARE),
            dict(id=2, image_id=8, category_id=5, bbox=[0, 0, 48, 64], area=3072, iscrowd=0, segmentation=SQUARE),
            dict(id=3, image_id=8, category_id=2, bbox=[5.5, 5, 20, 20], area=400, iscrowd=0, segmentation=SQUARE),
        ],
    )


def write(folder: Path, coco: dict, images: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for image in content()["images"] if images else ():
        noise = rng.integers(0, 255, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / image["file_name"], quality=90)
    path = folder / "coco.json"
    path.write_text(json.dumps(coco))
    return path


def dataset(folder: Path, classes: tuple[str, ...] | None = ("dog", "cat"), with_mask: bool = True, **more) -> dict:
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=with_mask),
        dict(type="PackDetInputs"),
    ]
    metainfo = dict(metainfo=dict(classes=classes)) if classes else {}
    return dict(
        type="CocoDataset",
        data_root=str(folder),
        ann_file="coco.json",
        data_prefix=dict(img="images/"),
        pipeline=pipeline,
        **metainfo,
        **more,
    )


def test_valid_annotations(tmp_path: Path):
    found = read_coco(write(tmp_path, content()), with_mask=True)
    assert found.problems == []
    assert found.categories == ("dog", "cat")  # in the order of the file, as in mmdet
    assert [image.boxes for image in found.images] == [
        [(10.0, 10.0, 20.0, 20.0)],
        [(0.0, 0.0, 48.0, 64.0), (5.5, 5.0, 25.5, 25.0)],
    ]
    assert [image.labels for image in found.images] == [["cat"], ["dog", "cat"]]
    check_before_run(dict(dataset=dataset(tmp_path)))


def test_uses_the_same_objects_as_mmdet(tmp_path: Path):
    """Keeps the same objects as mmdet's CocoDataset, for a file with many objects that it drops."""
    datasets = pytest.importorskip("mmdet.datasets")
    coco = content()
    base = coco["annotations"][0]
    for i, change in enumerate([
            dict(bbox=[60, 40, 20, 20]), dict(bbox=[64, 10, 10, 10]), dict(bbox=[-20, 10, 20, 10]), dict(area=0),
            dict(bbox=[5, 5, 0.5, 10]), dict(bbox=[5, 5, 10, 0]), dict(category_id=99), dict(category_id=5),
            dict(image_id=99), dict(ignore=1)]):  # fmt: skip
        coco["annotations"].append(base | change | dict(id=10 + i))
    write(tmp_path, coco)
    for classes in (("dog", "cat"), ("dog",), None):
        kwargs = dataset(tmp_path, classes)
        kwargs.pop("type")
        names = classes or ("dog", "cat")
        built = datasets.CocoDataset(**(kwargs | dict(pipeline=[], metainfo=dict(classes=names))))
        found = read_coco(tmp_path / "coco.json", classes, with_mask=True)
        theirs = {
            Path(info["img_path"]).name: [tuple(map(float, instance["bbox"])) for instance in info["instances"]]
            for info in map(built.get_data_info, range(len(built)))
        }
        assert {Path(image.path).name: image.boxes for image in found.images} == theirs
        labels = {
            Path(info["img_path"]).name: [names[instance["bbox_label"]] for instance in info["instances"]]
            for info in map(built.get_data_info, range(len(built)))
        }
        assert {Path(image.path).name: image.labels for image in found.images} == labels
        left_out = [problem for problem in found.problems if problem.kind in LEFT_OUT]
        assert len(left_out) == 13 - sum(map(len, theirs.values()))
        assert not any(problem.breaks for problem in found.problems)


@pytest.mark.parametrize(("change", "says"), [
    (dict(bbox=None), "image id 7, annotation id 1: bbox=None; allowed: [x, y, width, height] in pixels"),
    (dict(bbox=[1, 2, 3]), "bbox=[1, 2, 3]"),
    (dict(bbox=[1, 2, float("nan"), 3]), "bbox=[1, 2, nan, 3]"),
    (dict(bbox=[1, 2, "3", 3]), "bbox=[1, 2, '3', 3]"),
    (dict(area=None), "area=None; allowed: a number"),
    (dict(id=2), "image id 8, annotation id 2: two annotations with this id"),
    (dict(segmentation=[]), "no segmentation; use a detector without masks if there are only boxes"),
    (dict(segmentation=[[1, 2, "x", 4, 5, 6]]), "a polygon contains something other than numbers"),
    (dict(segmentation="none"), "segmentation; allowed: a list of polygons, or run lengths"),
])  # fmt: skip
def test_errors_name_the_annotation(tmp_path: Path, change: dict, says: str):
    coco = content()
    coco["annotations"][0].update(change)
    path = write(tmp_path, coco)
    with pytest.raises(AnnotationError) as error:
        check_before_run(dict(dataset=dataset(tmp_path)))
    assert str(error.value).startswith(f"{path}: image id ")
    assert says in str(error.value)


@pytest.mark.parametrize(("part", "change", "says"), [
    ("images", dict(file_name=""), "image id 7: no file_name"),
    ("images", dict(id=8), "image id 8: two images with this id"),
    ("images", dict(width=0), "image id 7: width=0, height=48; allowed: more than 0"),
    ("images", dict(height="48"), "image id 7: width=64, height='48'; allowed"),
    ("categories", dict(name="cat"), "category 'cat': 2 categories with this name"),
    ("categories", dict(id=2), "category id 2: occurs twice"),
    ("categories", dict(id="two"), "categories[0]: {'id': 'two', 'name': 'dog'}; allowed"),
])  # fmt: skip
def test_invalid_images_and_categories(tmp_path: Path, part: str, change: dict, says: str):
    coco = content()
    coco[part][0].update(change)
    write(tmp_path, coco)
    with pytest.raises(AnnotationError) as error:
        check_before_run(dict(dataset=dataset(tmp_path)))
    assert says in str(error.value)


def test_masks_are_checked_only_if_trained(tmp_path: Path):
    coco = content()
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path, with_mask=False)))
    with pytest.raises(AnnotationError) as error:
        check_before_run(dict(dataset=dataset(tmp_path)))
    assert str(error.value).count("no segmentation") == 3


def test_polygons_with_two_points_are_skipped(tmp_path: Path):
    coco = content()
    coco["annotations"][0]["segmentation"] = [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]]
    found = read_coco(write(tmp_path, coco), with_mask=True)
    (problem,) = found.problems
    assert not problem.breaks
    assert "polygons of 4, 7 numbers" in problem.what


def test_many_problems_are_counted(tmp_path: Path):
    coco = content()
    coco["annotations"] = [coco["annotations"][0] | dict(id=i, bbox=None) for i in range(12)]
    write(tmp_path, coco)
    with pytest.raises(AnnotationError) as error:
        check_before_run(dict(dataset=dataset(tmp_path)))
    assert str(error.value).count("bbox=None") == 5
    assert str(error.value).endswith("... and 8 more")  # the 13th problem is that the data set is empty


@pytest.mark.parametrize(("text", "says"), [
    ("{", "is not JSON"), ("[]", "no list 'images'"), ('{"images": [], "annotations": 3, "categories": []}',
                                                       "no list 'annotations'")])  # fmt: skip
def test_invalid_files(tmp_path: Path, text: str, says: str):
    write(tmp_path, content()).write_text(text)
    with pytest.raises(AnnotationError) as error:
        check_before_run(dict(dataset=dataset(tmp_path)))
    assert str(tmp_path / "coco.json") in str(error.value)
    assert says in str(error.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(AnnotationError, match=r"coco.json': no such file"):
        check_before_run(dict(dataset=dataset(tmp_path)))


def test_no_usable_objects(tmp_path: Path):
    coco = content()
    coco["annotations"] = [annotation | dict(area=0) for annotation in coco["annotations"]]
    write(tmp_path, coco)
    with pytest.raises(AnnotationError, match="none of 3 annotations can be used: training would hang"):
        check_before_run(dict(dataset=dataset(tmp_path)))
    check_before_run(dict(dataset=dataset(tmp_path, test_mode=True)))


def test_class_tuple_without_comma(tmp_path: Path):
    write(tmp_path, content())
    with pytest.raises(AnnotationError, match=r"metainfo.classes='cat'; allowed: a tuple of names, such as \('cat'"):
        check_before_run(dict(dataset=dataset(tmp_path) | dict(metainfo=dict(classes="cat"))))


def test_classes_from_file(tmp_path: Path):
    write(tmp_path, content())
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    check_before_run(dict(dataset=dataset(tmp_path) | dict(metainfo=dict(classes=str(tmp_path / "classes.txt")))))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(AnnotationError, match=r"allowed, as .* has them: 'dog', 'cat'"):
        check_before_run(dict(dataset=dataset(tmp_path) | dict(metainfo=dict(classes=str(tmp_path / "classes.txt")))))


def test_classes_not_set(tmp_path: Path):
    """mmdet then uses COCO's 80 classes."""
    pytest.importorskip("mmdet")
    coco = content()
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path, None)))  # the categories are among these 80
    coco["categories"] = [dict(id=5, name="fig"), dict(id=2, name="date")]
    write(tmp_path, coco)
    with pytest.raises(AnnotationError, match=r"has 'fig', 'date', none of which is a class of CocoDataset; set"):
        check_before_run(dict(dataset=dataset(tmp_path, None)))


def test_test_set_without_annotations(tmp_path: Path):
    coco = content()
    del coco["annotations"]
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path, test_mode=True)))
    with pytest.raises(AnnotationError, match="no list 'annotations'"):
        check_before_run(dict(dataset=dataset(tmp_path)))


def test_min_size_filter(tmp_path: Path):
    write(tmp_path, content())
    check_before_run(dict(dataset=dataset(tmp_path, filter_cfg=dict(filter_empty_gt=True, min_size=48))))
    with pytest.raises(AnnotationError, match=r"can be used \(filter_cfg.min_size=49\): training would hang"):
        check_before_run(dict(dataset=dataset(tmp_path, filter_cfg=dict(filter_empty_gt=True, min_size=49))))


def test_lvis_is_checked_and_remote_files_are_not(tmp_path: Path):
    coco = content()
    for image in coco["images"]:
        image["coco_url"] = f"http://images.example.org/train2017/{image.pop('file_name')}"
    write(tmp_path, coco)
    (tmp_path / "images").rename(tmp_path / "train2017")
    lvis = dataset(tmp_path) | dict(type="LVISV1Dataset", data_prefix=dict(img=""))
    check_before_run(dict(dataset=lvis))
    found = read_coco(tmp_path / "coco.json")
    assert [image.path for image in found.images] == ["train2017/a.jpg", "train2017/b.jpg"]
    coco["annotations"][0]["bbox"] = None
    write(tmp_path, coco, images=False)
    with pytest.raises(AnnotationError, match="bbox=None"):
        check_before_run(dict(dataset=lvis))
    check_before_run(dict(dataset=lvis | dict(data_root="s3://bucket", backend_args=dict(backend="petrel"))))


def test_data_sets_inside_wrappers_are_checked(tmp_path: Path):
    coco = content()
    coco["annotations"][0]["bbox"] = None
    write(tmp_path, coco)
    inner = dataset(tmp_path)
    wrapped = dict(type="RepeatDataset", dataset=dict(type="ConcatDataset", datasets=[inner, inner]))
    assert list(data_sets(wrapped)) == [inner, inner]
    with pytest.raises(AnnotationError, match="bbox=None"):
        check_before_run(dict(dataset=wrapped))
    check_before_run(None)
    check_before_run(dict(dataset=copy.deepcopy(inner) | dict(type="VOCDataset")))


@pytest.mark.parametrize(("box", "bad"), [
    ((0, 0, 10, 10), False), ((-5, -5, 2, 2), False), ((95, 45, 120, 60), False), ((0, 0, 1, 1), False),
    ((0, 0, 0.9, 5), True), ((0, 0, 5, 0), True), ((100, 0, 110, 10), True), ((0, -10, 10, 0), True)])  # fmt: skip
def test_outside(box: tuple, bad: bool):
    assert (outside(box, 100, 50) is not None) == bad
