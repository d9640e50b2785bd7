"""The page of each task, made from small runs, and odd runs."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from classification_run import config, make_tree
from conftest import ROOT, randomise
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from mmgcvit import apis
from mmgcvit.classification import TopKAccuracy
from mmgcvit.errors import UsageError
from mmgcvit.report import make
from mmgcvit.report.base import encode_image
from mmgcvit.report.make import make_report, report_after_training
from mmgcvit.report.matching import Objects
from mmgcvit.report.page import Figure, Section, Table, render

COLOURS = ("blue", "green", "red")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A parsed page: its text, sections, tables by title, and images."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.images: list[dict] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(values["id"])
        if tag == "img":
            self.images.append(values)
        if tag in ("h2", "h3"):
            self.headings.append("")
        if tag == "table":
            self.tables[self.headings[-1]] = []
        if tag == "tr":
            self.tables[self.headings[-1]].append([])
        if tag in ("td", "th"):
            self.tables[self.headings[-1]][-1].append("")
        assert values.get("src", "data:image/").startswith("data:image/"), values["src"][:80]  # no other files needed
        assert values.get("href", "#").startswith(("#", "report/")), values["href"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings[-1] += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self.headings[-1]][-1][-1] += data

    def check_images(self) -> None:
        """Every image can be decoded and has a description, every plot a caption."""
        for image in self.images:
            assert image["alt"].strip()
            Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).verify()
        assert self.source.count("<figure") == len(re.findall(r"<figcaption>\s*\S", self.source))
        assert not re.search(r"https?://|@import|url\(", re.sub(r"<pre>.*?</pre>", "", self.source, flags=re.DOTALL))


def write_run(folder: Path, cfg: Config, classes: tuple[str, ...], metrics: dict | None = None) -> Path:
    """Write a work directory with an untrained model."""
    data = folder / "20260101_000000" / "vis_data"
    data.mkdir(parents=True)
    cfg.command = "python tools/train.py mine.py"
    cfg.dump(data / "config.py")
    rows = [dict(loss=2.0 / i, loss_cls=1.0 / i, lr=0.1, time=0.5, data_time=0.1, iter=i, step=i) for i in (1, 2, 3)]
    rows += [] if metrics is None else [{**metrics, "step": 0}]
    (data / "scalars.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    init_default_scope(cfg.default_scope)
    model = randomise(MODELS.build(cfg.model))
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), folder / "iter_3.pth"
    )
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """60 digit scenes, three of them for validation."""
    pytest.importorskip("mmcv._ext")
    from mmgcvit.datasets.digit_scenes import make_digit_scenes

    return make_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", images=60, size=96)


def digits(task: str, name: str, scenes: Path) -> Config:
    """Config of a demo with other data, without workers."""
    text = Config.fromfile(ROOT / "configs" / task / name).pretty_text.replace("data/digit_scenes", str(scenes))
    cfg = Config.fromstring(text, ".py")
    for split in ("train", "val", "test"):
        cfg[f"{split}_dataloader"].update(num_workers=0, persistent_workers=False, batch_size=2)
    return cfg


def test_classifier_from_training_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmgcvit.report import classification

    sizes: dict[str, np.ndarray] = {}
    original = classification.size_figure
    monkeypatch.setattr(
        classification, "size_figure", lambda found, *rest: [sizes.update(found), original(found, *rest)][1]
    )
    cfg = config(make_tree(tmp_path / "tree"), tmp_path / "work", workers=0)
    cfg.train_cfg.val_interval = 1
    apis.train(cfg)
    path = report_after_training(tmp_path / "work")
    assert path == tmp_path / "work" / "report.html"
    page = Page(path)
    page.check_images()
    assert page.sections == ["data", "learning", "evaluation", "results", "errors", "gallery", "time", "reproduce"]
    logged = json.loads(sorted((tmp_path / "work").glob("2*/vis_data/scalars.json"))[-1].read_text().splitlines()[-1])
    shown = dict(page.tables["Metrics"][1:])
    assert float(shown["accuracy/top1"]) == pytest.approx(logged["accuracy/top1"], abs=0.01)
    rows = page.tables["Classes"][1:]
    assert [row[0] for row in rows] == ["blue", "green", "red"]
    assert {row[1] for row in rows} == {"3"}
    assert len(sizes["validation"]) == 9
    assert len(sizes["training"]) >= 9
    assert np.mean([float(row[3]) for row in rows]) == pytest.approx(logged["accuracy/top1"], abs=0.1)
    assert {"Losses", "Learning rate", "Metrics", "Calibration", "Confusion matrix", "Worst images"} <= set(
        page.headings
    )
    assert "type='GCViTClassifier'" in page.text  # the config
    assert "The star marks the best value of accuracy/top1" in page.text
    files = {file.name for file in (tmp_path / "work" / "report").iterdir()}
    assert len(files) == len(page.images) + 1
    assert {"confusion.png", "accuracy.png", "worst_0.jpg", "files.txt"} <= files


def test_detector_page_equals_the_metrics(tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ground truth as predictions, but without the first object of each image, and with one wrong class."""
    from mmdet.models import MaskRCNN
    from mmengine.structures import InstanceData

    def predict(self, inputs, samples, rescale=True):
        for sample in samples:
            truth = sample.gt_instances
            labels = truth.labels.clone()
            labels[1] = (labels[1] + 1) % 10
            masks = torch.from_numpy(truth.masks.to_ndarray().astype(bool))
            boxes = getattr(truth.bboxes, "tensor", truth.bboxes)
            found = InstanceData(bboxes=boxes, labels=labels, scores=torch.linspace(0.9, 0.5, len(labels)), masks=masks)
            sample.pred_instances = found[1:]
        return samples

    monkeypatch.setattr(MaskRCNN, "predict", predict)
    cfg = digits("detection", "mask-rcnn_gcvit-nano_fpn_digits.py", scenes)
    cfg.test_dataloader.dataset.pipeline[1].scale = cfg.val_dataloader.dataset.pipeline[1].scale = (96, 96)
    run = write_run(tmp_path, cfg, tuple("0123456789"), {"coco/bbox_mAP": 0.5})
    page = Page(make_report(run, device="cpu"))
    page.check_images()
    assert page.sections == ["data", "learning", "evaluation", "results", "errors", "gallery", "time", "reproduce"]
    metrics = dict(page.tables["Metrics"][1:])
    assert 0.2 < float(metrics["coco/bbox_mAP"]) < 1
    assert not [name for name in metrics if name.endswith("_precision")]  # the table of classes has both of them
    header, *rows = page.tables["Classes"]
    for column, name in (
        ("box AP (%)", "coco/bbox_mAP"),
        ("box AP50 (%)", "coco/bbox_mAP_50"),
        ("mask AP (%)", "coco/segm_mAP"),
    ):
        values = [row[header.index(column)] for row in rows]
        assert np.mean([float(v) for v in values if v != "-"]) == pytest.approx(100 * float(metrics[name]), abs=0.1)
    annotations = json.loads((scenes / "annotations/instances_val.json").read_text())
    objects, images = len(annotations["annotations"]), len(annotations["images"])
    assert sum(int(row[1]) for row in rows) == objects
    confusions = page.tables["Most frequent confusions"][1:]
    assert {row[0] == "background" for row in confusions if not row[3]} <= {True}
    assert all(row[3].endswith(" %") for row in confusions if row[0] != "background")
    assert "chosen on these images, so F1 is optimistic" in page.text
    kinds = {row[0]: int(row[2]) for row in page.tables["What the kinds mean"][1:]}
    assert images == 3
    assert kinds["class"] + kinds["missed"] >= images
    assert sum(int(row[2]) for row in page.tables["Most frequent confusions"][1:]) == 2 * images
    assert f"{objects - 2 * images} of {objects} objects were found" in page.text
    assert "The run was validated once, at iteration" in page.text
    assert "python tools/train.py mine.py" in page.text


def test_segmentor_page_equals_the_metrics(tmp_path: Path, scenes: Path) -> None:
    pytest.importorskip("mmseg")
    cfg = digits("segmentation", "gcvit-nano_fpn_digits-160x160.py", scenes)
    classes = tuple(cfg.val_dataloader.dataset.metainfo.classes)
    page = Page(make_report(write_run(tmp_path, cfg, classes), out=tmp_path / "elsewhere" / "page.html", device="cpu"))
    page.check_images()
    assert (tmp_path / "elsewhere" / "report" / "iou.png").is_file()
    metrics = dict(page.tables["Metrics"][1:])
    header, *rows = page.tables["Classes"]
    ious = [float(row[header.index("IoU (%)")]) for row in rows if row[2] != "-"]
    assert np.mean(ious) == pytest.approx(float(metrics["mIoU"]), abs=0.02)
    assert [row[0] for row in rows] == list(classes)
    assert sum(float(row[1]) for row in rows) == pytest.approx(100, abs=0.1)
    assert {"Where errors are", "Calibration", "Image 1: 000000.jpg"} <= set(page.headings)
    assert "The run was never validated" in page.text


def test_run_without_checkpoint_validation_data_or_iterations(tmp_path: Path) -> None:
    cfg = config(make_tree(tmp_path / "tree"), tmp_path / "work")
    run = write_run(tmp_path / "work", cfg, COLOURS)
    (run / "iter_3.pth").rename(tmp_path / "kept.pth")
    page = Page(make_report(run))
    assert "left no checkpoint" in page.text
    assert "Losses" in page.headings
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.dump(run / "20260101_000000/vis_data/config.py")
    (run / "20260101_000000/vis_data/scalars.json").write_text("")
    (tmp_path / "kept.pth").rename(run / "iter_3.pth")
    page = Page(make_report(run))
    assert "no val_dataloader with a val_evaluator" in page.text
    assert "logged no iteration: it ended before the first one to be logged" in page.text
    assert page.sections == ["learning", "evaluation", "reproduce"]


def detection(found: list, truth: list, tmp_path: Path, classes: tuple[str, ...] = ("a",)) -> Page:
    """The page of a detector on one image with these boxes and scores."""
    from mmgcvit.report.detection import DetectionReport

    report = DetectionReport(classes, [(200, 30, 30)] * len(classes))
    for rows, kept in ((truth, report.truth), (found, report.found)):
        table = np.array(rows, float).reshape(-1, 5)
        labels, none = np.zeros(len(table), int), np.zeros(len(table), bool)
        kept.append(Objects(table[:, :4], labels, table[:, 4], none, None, 40, 50))
    report.paths.append("image.jpg")
    reader = SimpleNamespace(image=lambda _: np.zeros((40, 50, 3), np.uint8))
    section = Section("data", "Data")
    report.count(section, None)
    sections = [section, *report.sections(SimpleNamespace(predictor=SimpleNamespace(reader=reader)))]
    path = tmp_path / "page.html"
    path.write_text(render("title", "subtitle", [], sections))
    page = Page(path)
    page.check_images()
    return page


def test_one_image_of_one_class(tmp_path: Path) -> None:
    box, nan = (5, 5, 25, 25), float("nan")
    page = detection([(*box, 0.7)], [(*box, nan)], tmp_path)
    assert page.tables["Classes"][1][:4] == ["a", "1", "100.0", "100.0"]
    assert "There are no errors" in page.text
    assert "The only image, the lowest F1 first" in page.text


def test_share_of_wrong_pixels_is_of_labelled_ones() -> None:
    structures = pytest.importorskip("mmseg.structures")
    from mmengine.structures import PixelData

    from mmgcvit.report.segmentation import SegmentationReport

    truth, found = np.full((1, 20, 31), 255), np.zeros((1, 20, 31), int)
    truth[:, :10], found[:, 9] = 0, 1  # one of ten labelled rows is wrong
    sample = structures.SegDataSample(
        metainfo=dict(img_path="a.jpg"), gt_sem_seg=PixelData(data=torch.from_numpy(truth)),
        pred_sem_seg=PixelData(data=torch.from_numpy(found)),
    )  # fmt: skip
    report = SegmentationReport(("a", "b"), [(200, 30, 30), (30, 30, 200)])
    report.add({}, [sample, sample], None)
    reader = SimpleNamespace(image=lambda _: np.zeros((20, 31, 3), np.uint8))
    page = render("t", "s", [], report.sections(SimpleNamespace(predictor=SimpleNamespace(reader=reader))))
    assert page.count("Mean IoU 45.0 %, 10.0 % of the labelled pixels are wrong.") == 2


def test_background_has_no_share(tmp_path: Path) -> None:
    box, other, nan = (5, 5, 25, 25), (30, 5, 45, 25), float("nan")
    page = detection([(*other, 0.9), (*box, 0.8)], [(*box, nan), (5, 28, 25, 38, nan)], tmp_path)
    assert sorted(page.tables["Most frequent confusions"][1:]) == [
        ["a", "background", "1", "50.0 %"],
        ["background", "a", "1", ""],
    ]


def test_large_images_are_files_beside_the_page(tmp_path: Path) -> None:
    """The page has a small version, which links to the large one."""
    image = encode_image("worst_0", Image.new("RGB", (3840, 100)), "alt", "first\nsecond")
    sections = [Section("s", "S", [Figure("t", [image], "c")])]
    make.page.write(tmp_path / "a.html", render("t", "s", [], sections), sections)
    found = Page(tmp_path / "a.html")
    small = Image.open(io.BytesIO(base64.b64decode(found.images[0]["src"].partition(",")[2])))
    assert small.width == 640
    with Image.open(tmp_path / "report/worst_0.jpg") as large:
        assert large.size == (1920, 50)
    assert 'href="report/worst_0.jpg"' in found.source
    assert "first\nsecond" in found.text


def test_nothing_to_find_or_nothing_found(tmp_path: Path) -> None:
    box, nan = (5, 5, 25, 25), float("nan")
    assert "The validation data has no objects" in detection([(*box, 0.7)], [], tmp_path).text
    page = detection([], [(*box, nan)], tmp_path, ("a", "b"))
    assert "The model has found nothing" in page.text
    assert [row[2] for row in page.tables["Classes"][1:]] == ["0.0", "-"]  # no object of the second class
    assert "there are no precision-recall and F1 curves" in page.text
    assert "calibration cannot be computed" in page.text


def test_names_are_escaped() -> None:
    page = render("<b>", "x", [("a&b", "1")], [Section("s", "S", [Table("t", ("<i>",), [("<script>",)])])])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_pictures_of_an_earlier_report_are_removed_and_others_kept(tmp_path: Path) -> None:
    def page(name: str) -> None:
        sections = [Section("s", "S", [Figure.plot(name, "t", b"content", "c")])]
        make.page.write(tmp_path / "report.html", "text", sections)

    page("old")
    (tmp_path / "report" / "mine.png").write_bytes(b"")
    page("new")
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"new.png", "mine.png", "files.txt"}


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "_installed", lambda name: name != "sklearn")
    with pytest.raises(UsageError, match="a report needs scikit-learn: pip install scikit-learn"):
        make_report(tmp_path)


def test_failing_report_does_not_fail_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    monkeypatch.setattr(make, "collect", lambda *_: 1 / 0)
    assert report_after_training(tmp_path / "my run") is None
    assert "no report of the run: ZeroDivisionError" in logged[-1]
    assert f"mmgcvit report '{tmp_path / 'my run'}'" in logged[-1]


def test_only_the_first_process_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "get_rank", lambda: 1)
    monkeypatch.setattr(make, "make_report", lambda *_: pytest.fail("called"))
    assert report_after_training(tmp_path) is None


def test_failing_metric_leaves_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric may need a package, or annotations that are not there."""
    run = write_run(tmp_path / "work", config(make_tree(tmp_path / "tree"), tmp_path / "work", workers=0), COLOURS)
    monkeypatch.setattr(TopKAccuracy, "compute_metrics", lambda *_: 1 / 0)
    page = Page(make_report(run))
    assert "The metrics of the config cannot be computed: division by zero" in page.text
    assert [row[1] for row in page.tables["Classes"][1:]] == ["3", "3", "3"]


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "work", config(make_tree(tmp_path / "tree"), tmp_path / "work"), COLOURS)
    torch.save(dict(state_dict=dict(weight=torch.zeros(2))), tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"other\.pth"):
        make_report(run, str(tmp_path / "other.pth"))
    torch.save(dict(state_dict=dict(weight=torch.zeros(2))), run / "best_x_iter_9.pth")
    assert "There is no evaluation of" in Page(make_report(run)).text
