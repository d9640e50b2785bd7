"""Contradictions inside a config: each is found before a run, and the message names both values."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from test_annotations import content, dataset, write

from mmengine.config import Config  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip

from mmgcvit import apis
from mmgcvit.datasets.check import check_data
from mmgcvit.datasets.consistency import check_config
from mmgcvit.datasets.problems import Problem, metrics_of, refuse
from mmgcvit.datasets.report import print_reports
from mmgcvit.tasks.detection.coco import evaluation
from mmgcvit.tasks.segmentation.unlabelled import formats_only

CONFIGS = ROOT / "configs"
DETECTION = "detection/custom_coco_template.py"  # Mask R-CNN, classes cat and dog
FASTER = "detection/_base_/faster-rcnn_gcvit-nano_fpn.py"
SEGMENTATION = "segmentation/custom_template.py"  # UPerNet with an auxiliary head, background, cat and dog
CLASSIFICATION = "classification/custom_template.py"  # cat and dog
BBOX, MASK = "model.roi_head.bbox_head", "model.roi_head.mask_head"


def load(name: str, options: dict | None = None) -> Config:
    cfg = apis.load_config(CONFIGS / name, cfg_options=options or {})
    init_default_scope(cfg.default_scope)
    return cfg


def problems(name: str, options: dict, splits: tuple[str, ...] = ("train", "val")) -> list[tuple[bool, str]]:
    return [(problem.breaks, str(problem)) for problem in check_config(load(name, options), splits)]


@pytest.mark.parametrize(
    "path", sorted(set(CONFIGS.glob("*/*.py")) - set(CONFIGS.glob("libraries/*"))), ids=lambda path: path.stem
)
def test_shipped_configs_are_consistent(path: Path):
    assert [str(problem) for problem in check_config(load(str(path.relative_to(CONFIGS))))] == []


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (DETECTION, {f"{BBOX}.num_classes": 7}, [f"{BBOX}: num_classes=7; train_dataloader.dataset has 2 classes"]),
        (DETECTION, {f"{MASK}.num_classes": 80}, [f"{MASK}: num_classes=80; train_dataloader.dataset has 2 classes"]),
        (
            "detection/cascade-rcnn_gcvit-tiny_fpn_1x_coco.py",
            {"model.roi_head.bbox_head.2.num_classes": 5},
            ["model.roi_head.bbox_head[2]: num_classes=5; train_dataloader.dataset has 80 classes; allowed: 80"],
        ),
        (
            "detection/retinanet_gcvit-tiny_fpn_1x_coco.py",
            {"model.bbox_head.num_classes": 3},
            ["model.bbox_head: num_classes=3; train_dataloader.dataset has 80 classes"],
        ),
        (
            DETECTION,
            {f"{BBOX}.loss_cls.class_weight": [1.0, 2.0]},
            [f"{BBOX}.loss_cls: class_weight has 2 values; allowed: 3, as the head has num_classes=2 and the last"],
        ),
        (
            FASTER,
            {"val_evaluator.metric": ["bbox", "segm"]},
            ["val_evaluator: metric='segm', but the model has no mask_head; allowed: metric='bbox'"],
        ),
        (DETECTION, {"val_evaluator.metric": "keypoints"}, ["val_evaluator: metric='keypoints'; allowed: bbox, segm"]),
        (
            DETECTION,
            {"val_evaluator.ann_file": "data/coco/annotations/instances_val2017.json"},
            [
                "val_evaluator: ann_file='data/coco/annotations/instances_val2017.json'; val_dataloader.dataset reads "
                "'data/my_data/val.json'; allowed: the same file"
            ],
        ),
        (DETECTION, {"val_evaluator.ann_file": None}, ["val_evaluator: CocoMetric without ann_file, and"]),
        (
            DETECTION,
            {"val_dataloader.dataset.indices": 10},
            ["val_evaluator: CocoMetric counts every image of 'data/my_data/val.json', but val_dataloader.dataset has"],
        ),
        (
            DETECTION,
            {"val_evaluator": dict(type="IoUMetric")},
            ["val_evaluator: IoUMetric is a metric for segmentation; val_dataloader.dataset.type='CocoDataset'"],
        ),
        (
            DETECTION,
            {"val_evaluator": None, "default_hooks.checkpoint.save_best": None},
            ["config: val_dataloader, val_cfg without val_evaluator; allowed: all of"],
        ),
        (
            DETECTION,
            {"val_dataloader.dataset.metainfo.classes": ("dog", "cat")},
            [
                "val_dataloader.dataset: classes=('dog', 'cat'); train_dataloader.dataset has classes=('cat', 'dog'); "
                "allowed: the same names in the same order"
            ],
        ),
        (
            DETECTION,
            {"train_dataloader.dataset.pipeline.1.with_mask": False},
            [
                "train_dataloader.dataset.pipeline: LoadAnnotations has with_mask=False; model.roi_head.mask_head is "
                "trained on masks"
            ],
        ),
        (
            FASTER,
            {"default_hooks.checkpoint.save_best": "coco/segm_mAP"},
            ["default_hooks.checkpoint.save_best: 'coco/segm_mAP'; allowed, as val_evaluator gives them: coco/bbox_"],
        ),
        (
            SEGMENTATION,
            {"model.decode_head.loss_decode.class_weight": [0.1, 1.0]},
            ["model.decode_head.loss_decode: class_weight has 2 values; allowed: 3, as the head has num_classes=3"],
        ),
        (
            SEGMENTATION,
            {"model.auxiliary_head.loss_decode": [dict(type="CrossEntropyLoss", class_weight=[1.0] * 4)]},
            ["model.auxiliary_head.loss_decode: class_weight has 4 values; allowed: 3"],
        ),
        (
            SEGMENTATION,
            {"model.decode_head.loss_decode": dict(type="CrossEntropyLoss", use_sigmoid=True, class_weight=[1.0] * 3)},
            ["model.decode_head.loss_decode: class_weight with use_sigmoid=True"],
        ),
        (
            "segmentation/gcvit-tiny_mask2former_8xb2-160k_ade20k-512x512.py",
            {"model.decode_head.loss_cls.class_weight": [1.0] * 150},
            ["model.decode_head.loss_cls: class_weight has 150 values; allowed: 151"],
        ),
        (
            SEGMENTATION,
            {"model.decode_head.ignore_index": 3, "model.auxiliary_head.ignore_index": 3},
            [
                "model.decode_head: ignore_index=3; model.data_preprocessor.seg_pad_val=255: padded pixels would have "
                "a label that is no class; allowed: model.data_preprocessor.seg_pad_val=3"
            ],
        ),
        (
            SEGMENTATION,
            {"val_evaluator.iou_metrics": ["mAP"], "default_hooks.checkpoint.save_best": None},
            ["val_evaluator: iou_metrics: 'mAP'; allowed: mIoU, mDice"],
        ),
        (
            SEGMENTATION,
            {"val_dataloader.dataset.pipeline": [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]},
            ["val_evaluator: IoUMetric compares with label maps, but val_dataloader.dataset.pipeline has no LoadAnno"],
        ),
        (
            SEGMENTATION,
            {"val_evaluator.iou_metrics": ["mFscore"], "default_hooks.checkpoint.save_best": "mIoU"},
            ["default_hooks.checkpoint.save_best: 'mIoU'; allowed, as val_evaluator gives them: aAcc, mFscore, mPrec"],
        ),
        (
            SEGMENTATION,
            {"model.test_cfg": dict(mode="slide", crop_size=(64, 64), stride=(96, 64))},
            ["model.test_cfg: mode='slide' with crop_size=(64, 64), stride=(96, 64)"],
        ),
        (
            SEGMENTATION,
            {"val_evaluator": dict(type="mmdet.CocoMetric")},
            ["val_evaluator: CocoMetric is a metric for det"],
        ),
        (
            CLASSIFICATION,
            {"model.class_weight": [1.0] * 3},
            ["model: class_weight=[1.0, 1.0, 1.0] (3 values); allowed: "],
        ),
        (
            CLASSIFICATION,
            {"model.class_weight": [2, 0]},
            ["model: class_weight=[2, 0] (2 values); allowed: num_classes="],
        ),
        (CLASSIFICATION, {"model.class_weight": 2.0}, ["model: class_weight=2.0; allowed: num_classes=2 numbers"]),
        (
            SEGMENTATION,
            {"model.decode_head.loss_decode": dict(type="FocalLoss", alpha=[0.5, 0.5])},
            ["model.decode_head.loss_decode: alpha has 2 values; allowed: 3, as the head has num_classes=3"],
        ),
        (
            SEGMENTATION,
            {"model.decode_head.loss_decode.class_weight": 1.5},
            ["model.decode_head.loss_decode: class_weight=1.5; allowed: a list of 3 values"],
        ),
        (
            CLASSIFICATION,
            {"val_dataloader.dataset.classes": ("cat", "dog", "fox"), "model.num_classes": 3},
            ["val_dataloader.dataset: classes=('cat', 'dog', 'fox'); train_dataloader.dataset has classes=('cat', "],
        ),
        (
            CLASSIFICATION,
            {"model.num_classes": 1},
            ["train_dataloader.dataset: 2 classes; allowed: at most", "val_data"],
        ),
        (
            CLASSIFICATION,
            {"val_dataloader.dataset.classes": ("dog", "cat")},
            ["val_dataloader.dataset: classes=('dog', 'cat'); train_dataloader.dataset has classes=('cat', 'dog')"],
        ),
        (
            CLASSIFICATION,
            {"val_dataloader.dataset": dict(type="RepeatDataset", times=2, dataset=dict(type="ClassificationDataset"))},
            ["val_dataloader.dataset: RepeatDataset around ClassificationDataset; allowed in evaluation"],
        ),
        (
            CLASSIFICATION,
            {"model.data_preprocessor.mixup": dict(mixup_alpha=0.8), "train_dataloader.batch_size": 5},
            ["train_dataloader: batch_size=5 with model.data_preprocessor.mixup, which pairs images"],
        ),
        (
            CLASSIFICATION,
            {"custom_hooks": [dict(type="EarlyStoppingHook", monitor="accuracy/top2")]},
            ["custom_hooks[0].monitor: 'accuracy/top2'; allowed, as val_evaluator gives them: accuracy/mean_class"],
        ),
        (
            CLASSIFICATION,
            {
                "custom_hooks": [dict(type="EMAHook")],
                "default_hooks.checkpoint.save_best": ["accuracy/top1_raw", "accuracy/top5"],
            },
            [
                "default_hooks.checkpoint.save_best: 'accuracy/top5'; allowed, as val_evaluator gives them: "
                "accuracy/mean_class, accuracy/mean_class_raw, accuracy/top1, accuracy/top1_raw"
            ],
        ),
        (
            CLASSIFICATION,
            {"default_hooks.checkpoint.save_best": "accuracy/top1_raw"},  # no averaged weights
            ["default_hooks.checkpoint.save_best: 'accuracy/top1_raw'; allowed, as val_evaluator gives them: acc"],
        ),
        (
            SEGMENTATION,
            {"param_scheduler": [dict(type="ReduceOnPlateauLR", factor=0.5), dict(type="LinearLR", by_epoch=False)]},
            ["param_scheduler[0].monitor: 'loss'; allowed, as val_evaluator gives them: aAcc, mAcc, mIoU"],
        ),
        (
            DETECTION,
            {"val_evaluator.classwise": True, "default_hooks.checkpoint.save_best": "coco/bird_precision"},
            ["default_hooks.checkpoint.save_best: 'coco/bird_precision'; allowed, as val_evaluator gives them: coco/b"],
        ),
        (
            DETECTION,
            {"val_evaluator": dict(type="LVISMetric", ann_file="data/my_data/val.json")},
            [
                "default_hooks.checkpoint.save_best: 'coco/bbox_mAP'; allowed, as val_evaluator gives them: "
                "lvis/bbox_AP, lvis/bbox_AP50"
            ],
        ),
    ],
)
def test_contradictions_are_errors(name: str, options: dict, expected: list[str]):
    cfg = load(name)
    for key, value in options.items():  # merge_from_dict would merge dicts into those of the config
        *path, last = key.split(".")
        part = cfg
        for step in path:
            part = part[int(step)] if isinstance(part, (list, tuple)) else part[step]
        part[int(last) if isinstance(part, list) else last] = value
    found = check_config(cfg, ("train", "val"))
    assert all(problem.breaks for problem in found)
    assert len(found) == len(expected), list(map(str, found))
    for problem, start in zip(found, expected, strict=True):
        assert str(problem).startswith(start)


@pytest.mark.parametrize(
    ("name", "options", "best"),
    [
        (CLASSIFICATION, {"model.num_classes": 6}, "accuracy/top5"),
        (CLASSIFICATION, {"val_evaluator.prefix": "held_out"}, "held_out/top1"),
        (DETECTION, {"val_evaluator.classwise": True}, "coco/cat_precision"),
        (DETECTION, {"val_evaluator.prefix": None}, "coco/bbox_mAP_50"),
        ("detection/mask2former_gcvit-tiny_8xb2-lsj-50e_coco-panoptic.py", {}, "coco_panoptic/PQ_th"),
        (DETECTION, {"val_evaluator": dict(type="CityScapesMetric", ann_file="data/my_data/val.json")}, "unknown/here"),
    ],
)
def test_hooks_may_wait_for_every_result_that_is_given(name: str, options: dict, best: str):
    cfg = load(name, options)
    cfg.default_hooks.checkpoint.save_best = best
    cfg.custom_hooks = [dict(type="EMAHook"), dict(type="EarlyStoppingHook", monitor=best)]
    found = [str(problem) for problem in check_config(cfg, ("train", "val"))]
    assert not [problem for problem in found if "save_best" in problem or "monitor" in problem]


def panoptic() -> Config:
    """Mask R-CNN with a head for stuff, trained on COCO's 80 things and 53 kinds of stuff."""
    cfg = load("detection/mask-rcnn_gcvit-tiny_fpn_1x_coco.py")
    cfg.model.type = "PanopticFPN"
    cfg.model.semantic_head = dict(type="PanopticFPNHead", num_things_classes=80, num_stuff_classes=53)
    for split in ("train", "val"):
        cfg[f"{split}_dataloader"].dataset.type = "CocoPanopticDataset"
    return cfg


def test_heads_for_things_of_a_panoptic_data_set():
    cfg = panoptic()
    assert [str(problem) for problem in check_config(cfg, ("train", "val"))] == []
    cfg.model.roi_head.bbox_head.num_classes = 133
    cfg.model.semantic_head.num_stuff_classes = 50
    assert [str(problem) for problem in check_config(cfg, ("train",))] == [
        f"{BBOX}: num_classes=133; train_dataloader.dataset has 80 thing classes; allowed: 80",
        "model.semantic_head: num_things_classes=80, num_stuff_classes=50; train_dataloader.dataset has 133 classes; "
        "allowed: 133",
    ]


def test_metrics_with_another_file_of_the_same_data(tmp_path: Path):
    cfg = panoptic()
    cfg.val_evaluator.ann_file = "instances.json"  # objects of the panoptic data set
    assert check_config(cfg, ("val",)) == []
    cfg = load(DETECTION)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text("{}")
    second.write_text("{}")
    cfg.val_dataloader.dataset.update(data_root="", ann_file=str(first))
    cfg.val_evaluator.ann_file = str(second)
    assert check_config(cfg, ("val",)) == []
    second.write_text("[]")
    assert "allowed: the same file" in str(check_config(cfg, ("val",))[0])


@pytest.mark.parametrize(
    ("head", "learns"),
    [
        ("RTMDetInsSepBNHead", True),
        ("RTMDetSepBNHead", False),
        ("BoxInstBboxHead", False),
        ("MultiInstanceBBoxHead", False),
    ],
)
def test_detectors_trained_on_masks(head: str, learns: bool):
    cfg = load(FASTER, {"train_dataloader.dataset.pipeline.1.with_mask": False})
    cfg.model = dict(type="RTMDet", bbox_head=dict(type=head, num_classes=80))
    if head.startswith("BoxInst"):
        cfg.model.mask_head = dict(type="BoxInstMaskHead")
    masks = [problem for problem in check_config(cfg, ("train",)) if problem.kind == "masks"]
    assert len(masks) == learns


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        (CLASSIFICATION, {"val_dataloader.dataset.classes": ("n01", "n02")}, {}),  # synonyms
        (DETECTION, {"val_dataloader.dataset.metainfo.classes": ("fox",)}, dict(tracker=dict(type="ByteTracker"))),
        (DETECTION, {"val_dataloader.dataset.metainfo.classes": ("fox",)}, dict(language_model=dict(type="BertModel"))),
    ],
)
def test_other_classes_that_may_be_intended_are_a_warning(name: str, options: dict, part: dict):
    cfg = load(name, options)
    cfg.model.update(part)
    (found,) = check_config(cfg, ("train", "val"))
    assert (found.kind, found.breaks) == ("classes", False)


def test_segmentation_heads_with_other_outputs_than_the_classes():
    from mmgcvit.tasks.segmentation.label_maps import _outputs

    cfg = load(SEGMENTATION)
    loss = dict(type="CrossEntropyLoss", class_weight=[1.0] * 3 + [0.1])
    cfg.model.decode_head = dict(type="SideAdapterCLIPHead", num_classes=3, loss_decode=[loss])
    assert check_config(cfg, ("train",)) == []
    cfg.model.auxiliary_head = dict(type="STDCHead", num_classes=2)
    maps = SimpleNamespace(classes=("a", "b", "c"), ignored={"decode_head": 255})
    assert list(_outputs(cfg.model, maps)) == []
    cfg.model.auxiliary_head.type = "FCNHead"
    assert len(list(_outputs(cfg.model, maps))) == 1


def test_ignored_class_and_depth():
    cfg = load(SEGMENTATION, {"model.decode_head.ignore_index": 0, "model.auxiliary_head.ignore_index": 0})
    (found,) = check_config(cfg, ("train",))
    assert (found.kind, found.breaks) == ("ignore_index", False)
    cfg.model.pop("auxiliary_head")
    cfg.model.decode_head = dict(type="VPDDepthHead", ignore_index=0)
    assert check_config(cfg, ("train",)) == []


def test_metrics_of_every_form_of_evaluator():
    metric = dict(type="CocoMetric", metric="segm", ann_file="val.json")
    for evaluator in (metric, [metric], dict(type="Evaluator", metrics=[metric]), dict(metrics=metric)):
        assert metrics_of(evaluator) == [metric]
        assert evaluation(evaluator).masks
        cfg = load(FASTER)
        cfg.val_evaluator = evaluator
        assert "metric='segm', but the model has no mask_head" in str(check_config(cfg, ("val",))[0])
    assert metrics_of(None) == metrics_of([]) == []
    writes = dict(type="IoUMetric", format_only=True, output_dir="out")
    assert formats_only(dict(type="Evaluator", metrics=[writes]))


def test_warnings_name_their_kind_once(logged: list[str]):
    refuse([Problem("param_scheduler", "param_scheduler[0]", "ends early", False)])
    refuse([Problem("sampler", "train_dataloader.sampler", "is slow", False)])
    assert logged == ["param_scheduler[0]: ends early", "sampler: train_dataloader.sampler: is slow"]


def test_default_number_of_classes_of_a_head():
    cfg = load(DETECTION)
    del cfg.model.roi_head.bbox_head["num_classes"]
    (found,) = check_config(cfg, ("train", "val"))
    assert str(found).startswith(f"{BBOX}: num_classes=80; train_dataloader.dataset has 2 classes")


def test_padding_that_is_learned_is_a_warning():
    cfg = load(SEGMENTATION, {"model.data_preprocessor.seg_pad_val": 0})
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type="RandomRotate", prob=0.5, degree=10, seg_pad_val=1))
    found = check_config(cfg, ("train",))
    assert [(problem.breaks, str(problem).partition("; allowed")[0]) for problem in found] == [
        (False, f"model.decode_head: ignore_index=255; {name}={value}: padded pixels would be learned as class {value}")
        for name, value in (
            ("model.data_preprocessor.seg_pad_val", 0),
            ("train_dataloader.dataset.pipeline[2].seg_pad_val", 1),
        )
    ]


def test_crop_larger_than_the_batch_is_a_warning():
    (found,) = problems(SEGMENTATION, {"model.data_preprocessor.size": (128, 128)})
    assert not found[0]
    assert "crop_size=(192, 256), model.data_preprocessor.size=(128, 128)" in found[1]


def test_voc_metric_with_another_data_set_is_a_warning():
    cfg = load(DETECTION)
    cfg.val_evaluator = dict(type="VOCMetric", metric="mAP")
    cfg.default_hooks.checkpoint.save_best = None
    (found,) = check_config(cfg, ("train", "val"))
    assert not found.breaks
    assert "VOCMetric evaluates val_dataloader.dataset.type='CocoDataset' by VOC's rules" in str(found)
    del cfg.val_dataloader.dataset.pipeline[2]
    assert any("has no LoadAnnotations" in str(problem) for problem in check_config(cfg, ("val",)))


def test_own_transforms_may_load_the_annotations():
    class LoadColourMasks:
        pass

    cfg = load(SEGMENTATION)
    pipeline = cfg.val_dataloader.dataset.pipeline
    place = next(i for i, step in enumerate(pipeline) if step.type == "LoadAnnotations")
    pipeline[place] = dict(type=LoadColourMasks)
    assert check_config(cfg, ("val",)) == []
    del pipeline[place]
    assert any("has no LoadAnnotations" in str(problem) for problem in check_config(cfg, ("val",)))


def test_panoptic_head():
    head = dict(
        type="Mask2FormerHead", num_things_classes=2, num_stuff_classes=1, loss_cls=dict(class_weight=[1.0] * 3)
    )
    cfg = load(DETECTION)
    cfg.model = dict(type="Mask2Former", panoptic_head=head)
    assert [str(problem).partition(";")[0] for problem in check_config(cfg, ("train", "val"))] == [
        "model.panoptic_head: num_things_classes=2, num_stuff_classes=1",
        "model.panoptic_head.loss_cls: class_weight has 3 values",
    ]


def test_test_compares_the_test_data_only():
    options = {f"{BBOX}.num_classes": 7, "train_dataloader.sampler.type": "InfiniteSampler"}
    assert [text.partition(";")[0] for _, text in problems(DETECTION, options, ("test",))] == [f"{BBOX}: num_classes=7"]


def test_every_tool_stops(tmp_path: Path, capsys):
    write(tmp_path, content())
    cfg = load(FASTER, {f"{BBOX}.num_classes": 7, "work_dir": str(tmp_path / "run")})
    for split in ("train", "val", "test"):
        data = dataset(tmp_path, test_mode=split != "train")
        cfg[f"{split}_dataloader"].dataset = data
        cfg[f"{split}_evaluator"] = dict(type="CocoMetric", ann_file=f"{tmp_path}/{data['ann_file']}")
    for run in (lambda: apis.train(cfg), lambda: apis.test(cfg, __file__)):
        with pytest.raises(apis.UsageError, match=r"bbox_head: num_classes=7; t\w+_dataloader.dataset has 2 classes"):
            run()
    *_, report = check_data(cfg, progress=False)
    assert (report.name, report.broken, len(report.problems)) == ("config", True, 1)
    print_reports([report])
    assert "error: config: classes: 1" in capsys.readouterr().out
