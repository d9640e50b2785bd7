"""Panoptic data sets: reading, checks, loading as mmdet does, PQ as mmdet computes it."""

from __future__ import annotations

import json
import re
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from panoptic_fixtures import METAINFO, SIZES, STUFF, THINGS, dataset_of, write_ids, write_panoptic
from PIL import Image

pytest.importorskip("mmdet")

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import PixelData

from mmgcvit.datasets.check import check_data
from mmgcvit.datasets.consistency import check_config
from mmgcvit.datasets.pipelines import use_checked_loading
from mmgcvit.errors import AnnotationError
from mmgcvit.tasks import find_task, task_of_dataset
from mmgcvit.tasks.detection.consistency import detection_result_names
from mmgcvit.tasks.panoptic.annotations import ids_of, read_panoptic
from mmgcvit.tasks.panoptic.check import check_before_run
from mmgcvit.tasks.panoptic.metric import PanopticMetric, compare, qualities


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_panoptic(tmp_path)
    return tmp_path


def checked(folder: Path, **changes) -> list[str]:
    """Messages of the full check, those that break a run first."""
    cfg = Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset_of(folder, **changes))))
    report = check_data(cfg, workers=1, progress=False)[0]
    return [str(problem) for problem in sorted(report.problems, key=lambda problem: not problem.breaks)]


def test_intact(data: Path):
    assert task_of_dataset(dataset_of(data)).name == "panoptic segmentation"
    check_before_run(dataset_of(data))
    found = read_panoptic(dataset_of(data))
    assert not found.problems
    assert (found.objects, found.crowds, found.classes) == (10, 1, THINGS + STUFF)
    cfg = Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset_of(data))))
    (report,) = check_data(cfg, workers=1, progress=False)
    assert not report.problems
    assert report.unit == "segments"
    assert report.classes == dict(ball=2, box=3, sky=2, grass=2)
    assert report.sizes == {(width, height): 1 for height, width in SIZES}


def _set(place, **values):
    def change(content: dict) -> None:
        place(content).update(values)

    return change


def _segment(number: int):
    return lambda content: content["annotations"][0]["segments_info"][number]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["categories"][0].pop("isthing"), r"categories\[0\], 'ball': no isthing; allowed: 1 for things"),
        (_set(lambda c: c["categories"][0], isthing=0), r"thing_classes=\('ball', 'box'\); by isthing .* \('box'\)"),
        (_set(lambda c: c["categories"][1], id=3), "category id 3: occurs twice"),
        (_set(lambda c: c["categories"][2], name="fog"), r"classes=\('ball', .* has 'ball', 'box', 'fog'"),
        (lambda c: c["categories"].reverse(), r"the file has 'grass', 'sky'.* in this order"),
        (lambda c: c["annotations"][0].pop("segments_info"), r"annotations\[0\]: no list segments_info"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "image id 1: two annotations for this image"),
        (lambda c: c["images"].append(dict(c["images"][0])), "image id 1: two images with this id"),
        (_set(lambda c: c["annotations"][0], image_id=8), "image_id=8: unknown image"),
        (_set(lambda c: c["annotations"][0], file_name="a.png"), "file_name='a.png' of .*; mmdet reads '1.png'"),
        (_set(lambda c: c["images"][0], file_name="1.jpeg"), "file_name='1.png' of its segments; mmdet reads '1.jpeg'"),
        (_set(_segment(0), id=0), "segment {'id': 0,.*integer id from 1 to 16777215"),
        (_set(_segment(0), id=2**24), "segment {'id': 16777216"),
        (_set(_segment(0), id=300), "segment id 300: two segments of the image with this id"),
        (_set(_segment(0), category_id=4), "segment id 70001: category_id=4 is not among the categories"),
        (_set(_segment(1), bbox=[1, 2, 3]), r"segment id 300: bbox=\[1, 2, 3\]; allowed"),
        (_set(_segment(1), area=None), "segment id 300: area=None; allowed"),
        (_set(_segment(1), iscrowd=2), "segment id 300: iscrowd=2; allowed: 0 or 1"),
        (_set(_segment(1), id=301), "1.png: 2768 pixels have an id that is not in segments_info: 300"),
        (_set(_segment(1), id=301), "1.png: has no pixels of the segments 301 of segments_info"),
        (lambda c: [a["segments_info"].clear() for a in c["annotations"]], "no image has a segment: training"),
    ],
)  # fmt: skip
def test_faults_of_the_json_file(tmp_path: Path, change, words: str):

    write_panoptic(tmp_path, change=change)
    messages = checked(tmp_path)
    assert any(re.search(words, message) for message in messages), messages
    with pytest.raises(AnnotationError):
        check_before_run(dataset_of(tmp_path))


def test_a_category_that_is_no_class_breaks_mmdet(data: Path):
    metainfo = dict(classes=("ball", "sky", "grass"), thing_classes=("ball",), stuff_classes=STUFF)
    assert any("'box' is not among the config's classes" in message for message in checked(data, metainfo=metainfo))
    with pytest.raises(KeyError):
        DATASETS.build(dataset_of(data, metainfo=metainfo, pipeline=[]))


def test_coco_classes_of_the_data_set_class_do_not_fit(data: Path):
    (message, *_) = checked(data, metainfo={})
    assert "classes=('person', " in message
    (message, *_) = checked(data, metainfo=dict(classes=THINGS + STUFF))
    assert "metainfo.thing_classes=('person', " in message
    assert "by isthing in the file they are ('ball', 'box')" in message


def test_things_after_stuff(tmp_path: Path):
    write_panoptic(tmp_path, change=lambda c: c["categories"].insert(0, c["categories"].pop(2)))
    metainfo = dict(METAINFO, classes=("sky", "ball", "box", "grass"))
    assert any("thing 'ball' after stuff 'sky': mmdet's heads number things first" in message
               for message in checked(tmp_path, metainfo=metainfo))  # fmt: skip


def test_images_without_segments(tmp_path: Path):
    write_panoptic(tmp_path, change=lambda content: content.pop("annotations"))
    dataset = dataset_of(tmp_path, test_mode=True, data_prefix=dict(img="images/"))
    with pytest.raises(AnnotationError, match=r"nothing to evaluate\. To predict .* use `mmgcvit predict`"):
        check_before_run(dataset, dict(type="mmgcvit.PanopticMetric"))
    metric = dict(type="CocoPanopticMetric", format_only=True, outfile_prefix="results")
    check_before_run(dataset, metric)
    cfg = Config(dict(default_scope="mmdet", test_dataloader=dict(dataset=dataset), test_evaluator=metric))
    report = check_data(cfg, workers=1, progress=False)[0]
    assert (report.images, report.objects, report.problems) == (2, 0, [])


def test_boxes_that_do_not_fit_their_pixels_are_warned_of(tmp_path: Path):
    write_panoptic(tmp_path, change=_set(_segment(2), bbox=[60, 40, 20, 20]))
    (message,) = checked(tmp_path)
    assert "1.png: the boxes of the segments 4000000 in the JSON file do not fit their pixels" in message
    check_before_run(dataset_of(tmp_path))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.unlink(), "1.png: no such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "1.png: cannot be decoded"),
        (lambda path: write_ids(path, np.full((101, 75), 300)), "is 75 x 101 .*, and its image 101 x 75"),
        (lambda path: Image.fromarray(np.zeros((75, 101), np.uint8)).save(path), "pixels of mode 'L'; allowed: 'RGB'"),
        (lambda path: Image.fromarray(np.zeros((75, 101), np.uint16)).save(path), "pixels of mode 'I;16'"),
        (lambda path: Image.fromarray(np.asarray(Image.open(path))[..., ::-1].copy()).save(path),
         "no id of segments_info is in the file. Are its channels in the order RGB?"),
    ],
)  # fmt: skip
def test_faults_of_a_png(tmp_path: Path, write, words: str):

    def keep_asymmetric(content: dict) -> None:
        content["annotations"][0]["segments_info"] = content["annotations"][0]["segments_info"][:2]

    write_panoptic(tmp_path, change=keep_asymmetric)
    ids = ids_of((tmp_path / "panoptic/1.png").read_bytes())
    write_ids(tmp_path / "panoptic/1.png", np.where(np.isin(ids, (70_001, 300)), ids, 0))
    assert not [message for message in checked(tmp_path) if "1.png" in message]
    write(tmp_path / "panoptic/1.png")
    messages = checked(tmp_path)
    assert any(re.search(words, message) for message in messages), messages
    with pytest.raises(AnnotationError, match=words):
        check_before_run(dataset_of(tmp_path))


def test_pngs_in_the_folder_of_the_images(tmp_path: Path):
    def rename(content: dict) -> None:
        for entry in content["images"]:
            entry["file_name"] = entry["file_name"].replace(".jpg", ".png")

    write_panoptic(tmp_path, change=rename)
    messages = checked(tmp_path, data_prefix=dict(img="images/", seg="images/"))
    assert any("the image; allowed: another folder for data_prefix.seg" in message for message in messages)


@pytest.fixture
def panopticapi(monkeypatch) -> None:
    """A stand-in for what mmdet uses of panopticapi."""
    from mmdet.evaluation.functional import panoptic_utils

    def rgb2id(colours: np.ndarray) -> np.ndarray:
        return colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)

    class Stat(defaultdict):
        def __init__(self) -> None:
            super().__init__(lambda: types.SimpleNamespace(iou=0.0, tp=0, fp=0, fn=0))

    package, utils = types.ModuleType("panopticapi"), types.ModuleType("panopticapi.utils")
    utils.rgb2id = package.utils = rgb2id
    package.utils = utils
    monkeypatch.setitem(sys.modules, "panopticapi", package)
    monkeypatch.setitem(sys.modules, "panopticapi.utils", utils)
    monkeypatch.setattr(panoptic_utils, "PQStat", Stat)
    monkeypatch.setattr(panoptic_utils, "rgb2id", rgb2id)


def test_annotations_are_loaded_as_by_mmdet(data: Path, panopticapi):
    theirs, ours = dataset_of(data), dataset_of(data)
    use_checked_loading(ours)
    assert ours["pipeline"][1]["type"] == "mmgcvit.LoadPanopticAnnotations"
    theirs, ours = (DATASETS.build(dict(dataset, pipeline=dataset["pipeline"][:2])) for dataset in (theirs, ours))
    assert len(ours) == 2
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert len(a["gt_bboxes"]) == 3 - i  # without the crowd
        assert torch.equal(a["gt_bboxes"].tensor, b["gt_bboxes"].tensor)
        assert np.array_equal(a["gt_bboxes_labels"], b["gt_bboxes_labels"])
        assert np.array_equal(a["gt_masks"].masks, b["gt_masks"].masks)
        assert np.array_equal(a["gt_seg_map"], b["gt_seg_map"])
        assert set(np.unique(a["gt_seg_map"])) == {0, 1, 2, 3, 255}


def test_loading_names_the_file(data: Path):
    dataset = dataset_of(data)
    use_checked_loading(dataset)
    built = DATASETS.build(dataset)
    ids = ids_of((data / "panoptic/2.png").read_bytes())
    write_ids(data / "panoptic/2.png", np.where(ids == 7, 0, ids))
    assert built[0] is not None
    with pytest.raises(AnnotationError, match=r"2\.png: no pixels of segment 7"):
        built[1]
    write_ids(data / "panoptic/2.png", ids[:-1])
    with pytest.raises(AnnotationError, match=r"2\.png: is 97 x 63"):
        built[1]


def predictions(folder: Path, seed: int) -> list[np.ndarray]:
    """mmdet's predictions: the truth with shifted borders, wrong classes, objects split in two, and pixels of none."""
    random = np.random.RandomState(seed)
    found = []
    for number in (1, 2):
        ids = ids_of((folder / f"panoptic/{number}.png").read_bytes())
        prediction = np.full(ids.shape, 4, np.int32)
        for key, value in ((70_000 + number, 2), (300, 3), (4_000_000, 1000), (7, 2001), (9, 3001)):
            prediction[ids == key] = value
        shifted = np.roll(prediction, random.randint(-9, 10, 2), (0, 1))
        if seed % 2:
            shifted[shifted == 1000] = 1001
        shifted[20:24, random.randint(60) :] = 4001
        shifted[-random.randint(1, 30) :] = random.choice([2, 3, 4])
        found.append(shifted)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_quality_is_that_of_mmdet(data: Path, panopticapi, seed: int):
    from mmdet.evaluation.functional import pq_compute_single_core

    content = json.loads((data / "panoptic.json").read_text())
    images = predictions(data, seed)
    metric = PanopticMetric(str(data / "panoptic.json"), str(data / "panoptic"), classwise=True)
    metric.dataset_meta = METAINFO
    samples = [dict(img_id=i + 1, pred_panoptic_seg=dict(sem_seg=torch.from_numpy(image)[None]))
               for i, image in enumerate(images)]  # fmt: skip
    metric.process(None, samples)
    found = metric.evaluate(2)
    assert set(found) == detection_result_names(
        dict(type="mmgcvit.PanopticMetric", classwise=True), METAINFO["classes"]
    )

    pairs = []
    (data / "found").mkdir()
    for annotation, image in zip(content["annotations"], images, strict=True):
        write_ids(data / "found" / annotation["file_name"], np.where(image % 1000 == 4, 0, image))
        infos = [
            dict(id=int(key), category_id=int(10 * (key % 1000) + 3)) for key in np.unique(image) if key % 1000 < 4
        ]
        pairs.append((annotation, dict(annotation, segments_info=infos)))
    stat = pq_compute_single_core(0, pairs, str(data / "panoptic"), str(data / "found"),
                                  {c["id"]: c for c in content["categories"]})  # fmt: skip
    theirs = np.array([[getattr(stat[10 * i + 3], name) for name in ("iou", "tp", "fp", "fn")] for i in range(4)])
    assert np.allclose(np.sum(metric_sums(data, images), axis=0), theirs)
    table, there = qualities(theirs)
    assert found["coco_panoptic/PQ"] == pytest.approx(table[there, 0].mean())
    assert found["coco_panoptic/PQ_th"] == pytest.approx(table[:2][there[:2], 0].mean())
    assert found["coco_panoptic/box_PQ"] == pytest.approx(table[1, 0])
    assert 0 < found["coco_panoptic/PQ"] < 100


def metric_sums(folder: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    content = json.loads((folder / "panoptic.json").read_text())
    sums = []
    for annotation, image in zip(content["annotations"], images, strict=True):
        ids = ids_of((folder / "panoptic" / annotation["file_name"]).read_bytes())
        known = {s["id"]: (s["category_id"] // 10, bool(s["iscrowd"])) for s in annotation["segments_info"]}
        sums.append(compare(ids, known, image, 4))
    return sums


def test_quality_by_hand():
    truth = np.array([[1, 1, 1, 2], [1, 1, 1, 2], [0, 0, 3, 3]])
    found = np.array([[1000, 1000, 2, 2], [1000, 1000, 2, 2], [1000, 1000, 2001, 2001]])
    sums = compare(truth, {1: (0, False), 2: (2, False), 3: (1, True), 9: (1, False)}, found, 3)
    # thing 0: 4 of 6 pixels; stuff 2: 2 of 4, which is not more than half; the object on a crowd is no error
    assert np.allclose(sums, [[4 / 6, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]])
    table, there = qualities(np.vstack([sums, np.zeros(4)]))
    assert np.allclose(table[0], [100 * 4 / 6, 100 * 4 / 6, 100])
    assert list(there) == [True, True, True, False]


def test_perfect_prediction(data: Path):
    images = []
    for number in (1, 2):
        ids = ids_of((data / f"panoptic/{number}.png").read_bytes())
        image = np.full(ids.shape, 4)
        for key, value in ((70_000 + number, 2), (300, 3), (4_000_000, 1000), (7, 2001), (9, 3001)):
            image[ids == key] = value
        images.append(image)
    table, there = qualities(np.sum(metric_sums(data, images), axis=0))
    assert there.all()
    assert np.allclose(table, 100)


def config(folder: Path, metric: str) -> Config:
    """A config with heads for four classes and validation data."""
    classes = dict(num_things_classes=2, num_stuff_classes=2)
    return Config(dict(
        default_scope="mmdet",
        model=dict(type="PanopticFPN", semantic_head=dict(type="PanopticFPNHead", **classes),
                   panoptic_fusion_head=dict(type="HeuristicFusionHead", **classes)),
        val_dataloader=dict(dataset=dataset_of(folder, test_mode=True)), val_cfg={},
        val_evaluator=dict(type=metric, ann_file=str(folder / "panoptic.json"), seg_prefix=str(folder / "panoptic"))),
    )  # fmt: skip


def test_metrics(data: Path):
    assert not [p for p in check_config(config(data, "mmgcvit.PanopticMetric"), ("val",)) if p.breaks]
    (problem,) = [p for p in check_config(config(data, "CocoPanopticMetric"), ("val",)) if p.breaks]
    assert "needs panopticapi; allowed: type='mmgcvit.PanopticMetric', or `pip install git+" in problem.what
    (problem,) = [p for p in check_config(config(data, "IoUMetric"), ("val",)) if p.breaks]
    assert "IoUMetric is a metric for segmentation" in problem.what
    other = config(data, "mmgcvit.PanopticMetric")
    other.val_evaluator.ann_file = "other.json"
    (problem,) = [p for p in check_config(other, ("val",)) if p.breaks]
    assert "ann_file='other.json'" in problem.what


def test_a_mask2former_for_instances_is_a_detector():
    model = dict(type="Mask2Former", panoptic_head={}, panoptic_fusion_head={}, test_cfg=dict(panoptic_on=True))
    assert find_task(model).name == "panoptic segmentation"
    model["test_cfg"]["panoptic_on"] = False
    assert find_task(model).name == "detection"


@pytest.mark.parametrize("axis", [-1, -2])
def test_semantic_head_is_not_shifted(axis: int):
    """The loss of mirrored scores and labels is the same; mmdet's head compares with the labels at top left corners."""
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 9, 13, generator=random)
    labels = torch.randint(0, 5, (2, 1, 36, 52), generator=random)
    labels[labels == 4] = 255
    losses = []
    for kind in ("mmgcvit.PanopticFPNHead", "PanopticFPNHead"):
        loss = dict(type="CrossEntropyLoss", ignore_index=255)
        head = MODELS.build(dict(type=kind, num_things_classes=2, num_stuff_classes=2, loss_seg=loss))
        for turned in (False, True):
            seen, truth = (part.flip(axis) if turned else part for part in (scores, labels))
            head.forward = lambda _, seen=seen: dict(seg_preds=seen)
            samples = [DetDataSample(gt_sem_seg=PixelData(sem_seg=part)) for part in truth]
            losses.append(float(head.loss((), samples)["loss_seg"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert abs(losses[2] - losses[3]) > 1e-3
