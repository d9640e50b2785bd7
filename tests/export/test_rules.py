"""Rules for the size of images against the test pipelines themselves."""

import numpy as np
import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmgcvit.errors import ExportError
from mmgcvit.export.rules import fit_rule, input_rule
from mmgcvit.runtime.metadata import ModelInfo, Resize
from mmgcvit.runtime.resize import prepare

SIZES = ((480, 640), (333, 500), (97, 401), (640, 427))


def info_for(rule) -> ModelInfo:
    return ModelInfo("detection", ("a",), ((1, 2, 3),), resize=rule.resize)


@pytest.mark.parametrize(
    "name",
    [
        "detection/mask-rcnn_gcvit-nano_fpn_digits.py",
        "detection/dino-4scale_gcvit-tiny_8xb2-12e_coco.py",
        "segmentation/gcvit-nano_fpn_digits-160x160.py",
        "segmentation/gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py",
        "segmentation/gcvit-tiny_upernet_4xb2-80k_cityscapes-512x1024.py",
    ],
)
def test_sizes_of_mmcv(name):
    from mmcv.transforms import TRANSFORMS

    pipeline = Config.fromfile(ROOT / "configs" / name).test_dataloader.dataset.pipeline
    rule = input_rule(pipeline)
    init_default_scope("mmcv")
    resizing = [TRANSFORMS.build({**t, "type": "mmcv.Resize"}) for t in pipeline if t["type"] == "Resize"]
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        expected = image
        for transform in resizing:
            expected = transform(dict(img=expected))["img"]
        found = prepare(image, info_for(rule)).pixels
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    "name", ["classification/gcvit-tiny_32xb128_in1k.py", "classification/gcvit-nano_digits.py",
             "classification/gcvit-large-384_32xb32_in1k.py"],
)  # fmt: skip
def test_images_of_timm(name):
    from mmgcvit.tasks.classification.transforms import TimmTransform

    pipeline = Config.fromfile(ROOT / "configs" / name).test_dataloader.dataset.pipeline
    rule = input_rule(pipeline)
    arguments = {key: value for key, value in pipeline[1].items() if key != "type"}
    transform = TimmTransform(**arguments)
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        expected = transform(dict(img=Image.fromarray(image), targets=0, sample_idx=0))["inputs"].numpy()
        np.testing.assert_array_equal(prepare(image, info_for(rule)).pixels.transpose(2, 0, 1), expected)
        assert rule.size == expected.shape[1:]


def test_padding_to_a_size():
    rule = input_rule(
        [
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(640, 480), keep_ratio=True),
            dict(type="Pad", size=(640, 480), pad_val=dict(img=(114, 114, 114))),
            dict(type="PackDetInputs"),
        ]
    )
    assert rule.size == (480, 640)
    assert rule.pad == 114
    assert rule.resize == Resize("keep_ratio", (640, 480))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (dict(type="RandomFlip", prob=0.5), "has 'RandomFlip'; allowed"),
        (dict(type="Resize", scale_factor=0.5), "scale_factor=0.5; allowed: scale"),
        (dict(type="Pad", size_divisor=32), "allowed: size"),
        (dict(type="Pad", pad_to_square=True), "allowed: size"),
        (dict(type="LoadProposals"), "has 'LoadProposals'; allowed"),
        (dict(type="TimmTransform", crop_mode="border"), "crop_mode='border'"),
    ],
)
def test_other_transforms_are_refused(transform, message):
    with pytest.raises(ExportError, match=message):
        input_rule([dict(type="LoadImageFromFile"), transform])


def test_two_resizes_are_refused():
    resize = dict(type="Resize", scale=(64, 64), keep_ratio=True)
    for first in (resize, dict(type="Pad", size=(64, 64))):
        with pytest.raises(ExportError, match="'Resize' after another transform of sizes"):
            input_rule([first, resize])


def test_another_shape():
    fixed = input_rule([dict(type="Resize", scale=(80, 64))])
    assert fixed.size == (64, 80)
    assert fit_rule(fixed, (96, 128), False).resize.size == (96, 128)
    assert fit_rule(fixed, None, False) == fixed
    ratio = input_rule([dict(type="Resize", scale=(80, 64), keep_ratio=True)])
    assert fit_rule(ratio, (96, 128), False) == ratio  # images are padded
    timm = input_rule([dict(type="TimmTransform", input_size=64, crop_pct=1.0)])
    assert fit_rule(timm, (64, 64), False) == timm
    with pytest.raises(ExportError, match="--shape 96 96: the test pipeline gives images of"):
        fit_rule(timm, (96, 96), False)
    padded = input_rule([dict(type="Resize", scale=(64, 64), keep_ratio=True), dict(type="Pad", size=(64, 64))])
    with pytest.raises(ExportError, match="--dynamic: the test pipeline pads"):
        fit_rule(padded, None, True)
