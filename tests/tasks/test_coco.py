"""COCO files whose content would be learned or evaluated wrongly, or would end a run late."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image
from test_annotations import SQUARE, content, dataset, write

from mmgcvit.errors import AnnotationError
from mmgcvit.tasks.detection import Detection, coco
from mmgcvit.tasks.detection.annotations import check_before_run, coco_like, read_coco, read_dataset
from mmgcvit.tasks.detection.coco import Evaluation, evaluation

METRIC = dict(type="CocoMetric", ann_file="coco.json", metric=["bbox", "segm"])


def refused(folder: Path, coco: dict, evaluator: object = None, **more: Any) -> str:
    write(folder, coco)
    with pytest.raises(AnnotationError) as error:
        check_before_run(dict(dataset=dataset(folder, **more)), evaluator)
    return str(error.value)


def change(part: str, **values: Any) -> dict:
    coco = content()
    coco[part][0].update(values)
    return coco


def test_evaluation():
    nothing = Evaluation()
    assert evaluation(None) == evaluation([]) == evaluation(dict(type="VOCMetric")) == nothing
    assert evaluation(METRIC | dict(format_only=True)) == nothing
    assert evaluation(METRIC) == Evaluation(boxes=True, masks=True, from_file=True)
    assert evaluation([dict(type="mmdet.CocoMetric"), dict(type="DumpDetResults")]) == Evaluation(boxes=True)
    assert evaluation(dict(type="Evaluator", metrics=[METRIC])).masks
    assert evaluation(dict(type="LVISMetric", ann_file="a", metric="segm")) == Evaluation(True, True, True, True)


@pytest.mark.parametrize("value", [None, True, [1], {}, float("nan"), 2**2000])
def test_ids_of_wrong_types(tmp_path: Path, value: Any):
    for part, key in (("images", "id"), ("annotations", "id"), ("annotations", "image_id"), ("categories", "id")):
        text = refused(tmp_path, change(part, **{key: value}))
        assert "allowed: " in text
        assert len(text) < 2000
    text = refused(tmp_path, change("annotations", category_id=value))
    assert "category_id=" in text


@pytest.mark.parametrize(("part", "values", "says"), [
    ("images", dict(file_name=None), "image id 7: no file_name"),
    ("images", dict(file_name=7), "image id 7: file_name=7; allowed: a string"),
    ("images", dict(file_name=["a.jpg"]), "image id 7: file_name=['a.jpg']; allowed: a string"),
    ("images", dict(width=True), "image id 7: width=True, height=48; allowed: more than 0, whole numbers"),
    ("images", dict(width=64.5), "width=64.5, height=48; allowed"),
    ("images", dict(width=10**30), "allowed: more than 0"),
    ("categories", dict(name={"a": 1}), "allowed: an object with an integer id and a name"),
    ("categories", dict(name=None), "allowed: an object with an integer id and a name"),
    ("categories", dict(id="5"), "allowed: an object with an integer id and a name"),
    ("annotations", dict(iscrowd="0"), "annotation id 1: iscrowd='0'; allowed: 0 or 1"),
    ("annotations", dict(iscrowd=None), "annotation id 1: iscrowd=None; allowed: 0 or 1"),
    ("annotations", dict(iscrowd=[]), "annotation id 1: iscrowd=[]; allowed: 0 or 1"),
    ("annotations", dict(bbox=[0, 0, 1e38, 1e38]), "allowed: at most 10000000 pixels"),
    ("annotations", dict(bbox=[True, 0, 10, 10]), "bbox=[True, 0, 10, 10]; allowed: [x, y, width, height]"),
    ("annotations", dict(segmentation=dict(size=[64, 48], counts=[3072])), "size [64, 48]; allowed: [48, 64]"),
])  # fmt: skip
def test_values_of_wrong_types(tmp_path: Path, part: str, values: dict, says: str):
    assert says in refused(tmp_path, change(part, **values))


@pytest.mark.parametrize("text", ["[" * 100000, '{"images": [' + "9" * 5000 + "]}"])
def test_json_that_python_refuses(tmp_path: Path, text: str):
    path = write(tmp_path, content())
    path.write_text(text)
    with pytest.raises(AnnotationError, match="is not JSON"):
        read_coco(path)


def test_whole_numbers_as_floats(tmp_path: Path):
    """Tables of numbers and gaps turn integers into floats."""
    coco = change("images", width=64.0, id=7.0)
    coco["annotations"][0].update(image_id=7.0, category_id=2.0, id=1.0)
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path)))
    assert "width=64.0, height=48; allowed" in refused(tmp_path, coco, METRIC)


def test_iscrowd_is_needed_by_the_evaluation(tmp_path: Path):
    coco = content()
    for annotation in coco["annotations"][:2]:
        del annotation["iscrowd"]
    assert refused(tmp_path, coco, METRIC | dict(metric="bbox")) == (
        f"{tmp_path}/coco.json: 2 of 3 annotations without iscrowd, which COCO's evaluation "
        'needs; add "iscrowd": 0 to each'
    )
    for evaluator in (None, dict(METRIC, ann_file=None), dict(METRIC, format_only=True)):
        check_before_run(dict(dataset=dataset(tmp_path)), evaluator)


def test_crowds_are_counted_and_not_used(tmp_path: Path):
    coco = content()
    coco["annotations"][1]["iscrowd"] = 1
    found = read_coco(write(tmp_path, coco))
    assert (found.objects, found.crowds, [image.labels for image in found.images]) == (3, 1, [["cat"], ["cat"]])
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    says = "none of 3 annotations can be used: {} (iscrowd=1, which are ignored: 3)"
    assert says.format("training would hang") in refused(tmp_path, coco)
    assert says.format("the metrics would be meaningless") in refused(tmp_path, coco, METRIC, test_mode=True)
    check_before_run(dict(dataset=dataset(tmp_path, test_mode=True)))  # not evaluated


def test_validation_without_objects(tmp_path: Path):
    coco = content() | dict(annotations=[])
    assert "coco.json: has no annotations, so there is nothing" in refused(tmp_path, coco, METRIC, test_mode=True)
    coco["annotations"] = [content()["annotations"][0] | dict(iscrowd=1)]
    assert "none of 1 annotation can be used" in refused(tmp_path, coco, METRIC, test_mode=True)


def test_masks_are_checked_where_they_are_evaluated(tmp_path: Path):
    coco = content()
    coco["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path)), METRIC | dict(metric="bbox"))
    assert "the evaluation of masks would fail" in refused(tmp_path, coco, METRIC, test_mode=True, with_mask=False)
    for values in (
        dict(ignore=1),
        dict(area=0),
        dict(bbox=[64, 10, 10, 10]),
    ):  # mmdet leaves it out; pycocotools does not
        coco["annotations"][0].update(content()["annotations"][0] | dict(segmentation=[[1, 2, 3, 4]]) | values)
        assert "the evaluation of masks would fail" in refused(tmp_path, coco, METRIC, test_mode=True)
    coco["annotations"][0].update(image_id=99)
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path, test_mode=True)), METRIC)


def test_ids_of_evaluated_files(tmp_path: Path):
    assert "id='a'; allowed: a number, as the evaluation calculates" in refused(
        tmp_path, change("annotations", id="a"), METRIC
    )
    assert "some ids are numbers, others strings" in refused(
        tmp_path, change("images", id="a") | dict(annotations=content()["annotations"][1:]), METRIC
    )
    write(tmp_path, change("annotations", id=0))
    (problem,) = read_dataset(dataset(tmp_path), METRIC).problems
    assert (problem.what, problem.breaks) == (
        "the annotation with id 0 always counts as missed by the model; number from 1", False
    )  # fmt: skip
    assert read_dataset(dataset(tmp_path)).problems == []


def test_an_object_with_id_0_counts_as_missed(tmp_path: Path):
    """What the warning says is true of pycocotools."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    recall = []
    for first in (0, 1):
        coco = content()
        for i, annotation in enumerate(coco["annotations"], first):
            annotation["id"] = i
        truth = COCO(str(write(tmp_path, coco)))
        found = [dict(annotation, score=1.0) for annotation in content()["annotations"]]
        metric = COCOeval(truth, truth.loadRes(found), "bbox")
        metric.evaluate()
        metric.accumulate()
        metric.summarize()
        recall.append(metric.stats[8])
    assert recall == [0.75, 1.0]  # one of two cats; one dog


def test_lvis_metric_needs_lists_per_image(tmp_path: Path):
    coco = content()
    evaluator = dict(type="LVISMetric", ann_file="coco.json", metric="bbox")
    assert "image id 7: no lists neg_category_ids and not_exhaustive_category_ids" in refused(tmp_path, coco, evaluator)
    for image in coco["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path)), evaluator)
    lvis = dataset(tmp_path) | dict(type="LVISV1Dataset")
    with pytest.raises(AnnotationError, match="image id 7: no coco_url"):
        check_before_run(dict(dataset=lvis))


def test_several_files(tmp_path: Path):
    write(tmp_path, content())
    with pytest.raises(AnnotationError, match=r"ann_file=\['a.json', 'b.json'\]; allowed: one file.*='ConcatDataset'"):
        check_before_run(dict(dataset=dataset(tmp_path) | dict(ann_file=["a.json", "b.json"])))


def test_other_encodings(tmp_path: Path):
    path = write(tmp_path, content())
    for encoding, says in (("utf-8-sig", "is UTF-8 with a byte order mark"), ("utf-16", "is UTF-16; allowed")):
        path.write_text(json.dumps(content()), encoding)
        with pytest.raises(AnnotationError, match=says):
            check_before_run(dict(dataset=dataset(tmp_path)))
    write(tmp_path, content())
    names = tmp_path / "names.txt"
    names.write_text("dog\ncat\n", "utf-8-sig")
    with pytest.raises(AnnotationError, match=r"names.txt' is UTF-8 with a byte order mark"):
        check_before_run(dict(dataset=dataset(tmp_path) | dict(metainfo=dict(classes=str(names)))))


def test_images_are_looked_up_before_a_run(tmp_path: Path):
    write(tmp_path, content())
    Image.new("RGB", (48, 64)).save(tmp_path / "images/a.jpg")
    for more in (dict(), dict(test_mode=True)):
        with pytest.raises(AnnotationError, match=r"a.jpg: is 48 x 64 \(width x height\), but 64 x 48 in the annot"):
            check_before_run(dict(dataset=dataset(tmp_path, **more)))
    (tmp_path / "images/a.jpg").unlink()
    for more in (dict(), dict(test_mode=True)):
        with pytest.raises(AnnotationError, match=r"images/a.jpg: no such file"):
            check_before_run(dict(dataset=dataset(tmp_path, **more)))
    skipping = dataset(tmp_path)
    skipping["pipeline"][0] = dict(type="mmgcvit.LoadCheckedImage", corrupt="skip")
    check_before_run(dict(dataset=skipping))  # the run will skip and count it
    Image.new("RGB", (48, 64)).save(tmp_path / "images/a.jpg")
    check_before_run(dict(dataset=skipping))
    remote = dataset(tmp_path)
    remote["pipeline"][0]["backend_args"] = dict(backend="petrel")
    check_before_run(dict(dataset=remote))


def test_names_in_several_entries(tmp_path: Path):
    coco = content()
    coco["images"].append(dict(id=9, file_name="a.jpg", width=64, height=48))
    coco["images"].append(dict(id=10, file_name="../images/b.jpg", width=48, height=64))
    write(tmp_path, coco)
    found = read_dataset(dataset(tmp_path))
    assert [(problem.kind, problem.what, problem.breaks) for problem in found.problems] == [
        (
            "image twice",
            f"1 file name in several entries: the objects of one are background in the others: {tmp_path}/images/a.jpg",
            False,
        ),
        ("folder", f"1 file name outside of the folder of the images, {tmp_path}/images/: ../images/b.jpg", False),
    ]


def test_parts_of_polygons_and_warnings_in_the_log(tmp_path: Path, logged: list[str]):
    coco = content()
    coco["annotations"][0]["segmentation"] = [*SQUARE, [1, 2]]
    for annotation in coco["annotations"][1:]:
        annotation["area"] = 0
    write(tmp_path, coco)
    check_before_run(dict(dataset=dataset(tmp_path)))
    assert [line for line in logged if not line.startswith("Get class")] == [
        f"area: {tmp_path}/coco.json: image id 8, annotation id 2: area=0; allowed: more than 0 (2 of this kind; "
        "`mmgcvit check-data` lists them)",
        f"polygon part: {tmp_path}/coco.json: 1 object has polygons of fewer than 3 points among others; training "
        "leaves them out",
    ]


def test_subclasses_of_coco_dataset(tmp_path: Path):
    datasets = pytest.importorskip("mmdet.datasets")

    class Mine(datasets.CocoDataset):
        METAINFO: ClassVar = dict(classes=("dog", "cat"))

    class Parsing(datasets.CocoDataset):
        def parse_data_info(self, raw_data_info: dict) -> dict:
            return raw_data_info

    given = dataset(tmp_path)
    for kind in ("mmdet.CocoDataset", datasets.CityscapesDataset, Mine):
        assert coco_like(given | dict(type=kind))
    for kind in (Parsing, datasets.CocoPanopticDataset, datasets.VOCDataset):
        assert not coco_like(given | dict(type=kind))
    for kind in ("mmdet.CityscapesDataset", Mine, Parsing):
        with pytest.raises(AnnotationError, match=r"other\.json': no such file"):
            Detection().check_before_run(given | dict(type=kind, ann_file="other.json"), None, None)
    bad = content()
    bad["annotations"][0]["bbox"] = [1, 2]
    write(tmp_path, bad)
    with pytest.raises(AnnotationError, match="bbox"):
        check_before_run(dict(dataset=given | dict(type=Mine)))
    check_before_run(dict(dataset=given | dict(type=Parsing)))  # may read anything


def test_a_test_set_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, content())
    read: list[str] = []
    monkeypatch.setattr(coco, "read_utf8", lambda what, path: read.append(what) or Path(path).read_text())
    Detection().check_before_run(dataset(tmp_path, test_mode=True), None, METRIC)
    assert read == ["annotation file"]
