"""Preprocessing in the graph against the preprocessors of mmdet, mmseg and the package."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

import mmgcvit  # noqa: F401
from mmgcvit.errors import ExportError
from mmgcvit.export.graph import Preprocess

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def detection(**arguments):
    from mmdet.models import DetDataPreprocessor

    return DetDataPreprocessor(mean=MEAN, std=STD, **arguments)


def segmentation(**arguments):
    from mmseg.models import SegDataPreProcessor

    return SegDataPreProcessor(mean=MEAN, std=STD, **arguments)


def several(**arguments):
    from mmgcvit.tasks.detection.preprocessor import DetDataPreprocessor

    return DetDataPreprocessor(mean=[1.0, 2.0, 3.0, 4.0], std=[2.0, 3.0, 4.0, 5.0], **arguments)


def reference(preprocessor, images: torch.Tensor, samples: list) -> torch.Tensor:
    """What the preprocessor makes of RGB images that mmcv loads as BGR."""
    loaded = torch.cat([images[:, :3].flip(1), images[:, 3:]], dim=1) if images.shape[1] >= 3 else images
    return preprocessor(dict(inputs=list(loaded), data_samples=samples), False)["inputs"]


def det_samples(images: torch.Tensor) -> list:
    from mmdet.structures import DetDataSample

    size = tuple(images.shape[2:])
    return [DetDataSample(metainfo=dict(img_shape=size, ori_shape=size)) for _ in images]


def seg_samples(images: torch.Tensor) -> list:
    from mmseg.structures import SegDataSample

    size = tuple(images.shape[2:])
    return [SegDataSample(metainfo=dict(img_shape=size, ori_shape=size)) for _ in images]


@pytest.mark.parametrize("reverse", [True, False])
@pytest.mark.parametrize("divisor", [1, 32])
def test_as_mmdet(reverse, divisor):
    images = torch.randint(0, 256, (2, 3, 45, 70), dtype=torch.uint8)
    theirs = detection(bgr_to_rgb=reverse, pad_size_divisor=divisor)
    ours = Preprocess(theirs)
    torch.testing.assert_close(ours(images), reference(theirs, images, det_samples(images)))
    colour = torch.tensor(ours.pad_values).view(1, 3, 1, 1).expand(1, 3, 33, 40)
    assert ours(colour)[..., :33, :40].abs().max() < 1e-5, "the padding values do not become zero"


@pytest.mark.parametrize("reverse", [True, False])
def test_as_mmseg(reverse):
    images = torch.randint(0, 256, (2, 3, 45, 70), dtype=torch.uint8)
    theirs = segmentation(bgr_to_rgb=reverse, pad_val=0, seg_pad_val=255, test_cfg=dict(size_divisor=32))
    torch.testing.assert_close(Preprocess(theirs)(images), reference(theirs, images, seg_samples(images)))


@pytest.mark.parametrize("reverse", [True, False])
def test_several_channels(reverse):
    images = torch.randint(0, 256, (2, 4, 40, 50), dtype=torch.uint8)
    theirs = several(bgr_to_rgb=reverse, pad_size_divisor=32)
    ours = Preprocess(theirs, 4)
    torch.testing.assert_close(ours(images), reference(theirs, images, det_samples(images)))
    padding = torch.tensor(ours.pad_values).view(1, 4, 1, 1).expand(1, 4, 32, 32)
    assert ours(padding).abs().max() < 1e-5


@pytest.mark.parametrize("backend", ["cv2", "tifffile"])
@pytest.mark.parametrize("reverse", [True, False])
def test_order_of_the_loader(tmp_path, backend, reverse):
    """tifffile loads channels in the order of the file, OpenCV the first three in reverse."""
    tifffile = pytest.importorskip("tifffile")
    from mmgcvit.datasets.loading import LoadCheckedImage

    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    color_type = "color" if backend == "cv2" else "unchanged"
    loaded = LoadCheckedImage(imdecode_backend=backend, color_type=color_type).decode((tmp_path / "a.tif").read_bytes())
    theirs = detection(bgr_to_rgb=reverse)
    images = torch.from_numpy(pixels.transpose(2, 0, 1))[None]
    expected = theirs(
        dict(
            inputs=[torch.from_numpy(np.ascontiguousarray(loaded.transpose(2, 0, 1)))], data_samples=det_samples(images)
        )
    )["inputs"]
    torch.testing.assert_close(Preprocess(theirs, bgr=backend == "cv2")(images), expected)


def test_classifier():
    images = torch.randint(0, 256, (2, 3, 40, 50), dtype=torch.uint8)
    theirs = MODELS.build(dict(type="mmgcvit.ClassificationPreprocessor"))
    torch.testing.assert_close(Preprocess(theirs, bgr=False)(images), theirs(dict(inputs=images))["inputs"])


def test_wrong_number_of_channels():
    with pytest.raises(ExportError, match="mean: 3 values; allowed: 4, or 1"):
        Preprocess(detection(), 4)


def test_fixed_padding_is_refused():
    with pytest.raises(ExportError, match=r"test_cfg\.size="):
        Preprocess(segmentation(test_cfg=dict(size=(64, 64))))
