"""Detection on images, folders, videos and tiles and with test-time augmentation, with an untrained detector."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY

pytest.importorskip("mmcv._ext")
pytest.importorskip("mmdet")

import cv2
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

from mmgcvit.apis import UsageError, inference, predict
from mmgcvit.apis.runs import use_tta
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.tasks.detection.predictor import Detector
from mmgcvit.tasks.sources import Source
from mmgcvit.utils.inputs import tile_starts

BASES = ROOT / "configs/detection/_base_"
CLASSES = ("cat", "dog")


def config(name: str = "mask-rcnn", scale: tuple[int, int] = (160, 96)) -> Config:
    cfg = Config.fromfile(BASES / f"{name}_gcvit-nano_fpn.py")
    owner = cfg.model.get("roi_head", cfg.model)
    for head in (owner.bbox_head, owner.get("mask_head")):
        for part in head if isinstance(head, list) else [head]:
            if part:
                part.num_classes = len(CLASSES)
    if "rcnn" in cfg.model.test_cfg:
        cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=6)
    else:
        cfg.model.test_cfg.update(score_thr=0.0, max_per_img=6)
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = scale
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three images of different sizes, a video of four frames, and checkpoints."""
    folder = tmp_path_factory.mktemp("user")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name, (height, width) in {"a.jpg": (60, 90), "b.png": (97, 51), "c.jpg": (64, 64)}.items():
        image = cv2.resize(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8), (width, height))
        cv2.imwrite(str(folder / "images" / name), image)
    (folder / "images/notes.txt").write_text("no image")
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 8, (64, 48))
    for _ in range(4):
        writer.write(cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (64, 48)))
    writer.release()
    init_default_scope("mmdet")
    for name in ("mask-rcnn", "cascade-mask-rcnn", "retinanet"):
        torch.manual_seed(0)
        model = MODELS.build(config(name).model)
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES))), folder / f"{name}.pth"
        )
    return folder


def call(folder: Path, tmp_path: Path, inputs: list, name: str = "mask-rcnn", **kwargs) -> tuple[list, dict]:
    predict(config(name), str(folder / f"{name}.pth"), inputs, str(tmp_path / "out"), device="cpu", **kwargs)
    return tuple(json.loads((tmp_path / "out" / f"{part}.json").read_text()) for part in ("predictions", "images"))


@pytest.mark.parametrize("name", ["mask-rcnn", "cascade-mask-rcnn", "retinanet"])
def test_folder_in_batches(folder: Path, tmp_path: Path, name: str):
    results, images = call(folder, tmp_path, [folder / "images"], name, batch_size=2)
    assert [(image["file_name"], image["height"], image["width"]) for image in images["images"]] == [
        ("a.jpg", 60, 90),
        ("b.png", 97, 51),
        ("c.jpg", 64, 64),
    ]
    assert images["categories"] == [dict(id=1, name="cat"), dict(id=2, name="dog")]
    coco = COCO(str(tmp_path / "out/images.json"))
    found = coco.loadRes(str(tmp_path / "out/predictions.json"))
    assert len(found.anns) == len(results) == 18
    for result in results:
        image = coco.imgs[result["image_id"]]
        x, y, w, h = result["bbox"]
        assert x >= -0.01
        assert y >= -0.01
        assert x + w <= image["width"] + 0.02
        assert y + h <= image["height"] + 0.02
        assert ("segmentation" in result) == ("mask" in name)
        if "mask" in name:
            assert found.annToMask(found.anns[1]).shape == (60, 90)
    assert sorted(p.name for p in (tmp_path / "out/vis").iterdir()) == ["a.jpg", "b.png", "c.jpg"]
    assert cv2.imread(str(tmp_path / "out/vis/b.png")).shape == (5 * 97, 5 * 51, 3)
    one_by_one, _ = call(folder, tmp_path / "again", [folder / "images"], name, draw=False)
    # mmdet pads the images of a batch to one size, which changes the results of an untrained detector; c.jpg is in a
    # separate batch
    assert one_by_one[12:] == results[12:]
    assert {result["image_id"] for result in one_by_one[:12]} == {1, 2}
    assert not (tmp_path / "again/out/vis").exists()


def test_drawing_keeps_image_colours(folder: Path, tmp_path: Path):
    call(folder, tmp_path, [folder / "images/c.jpg"], score_thr=1.1)
    drawn, source = (
        cv2.imread(str(path)).astype(int) for path in (tmp_path / "out/vis/c.jpg", folder / "images/c.jpg")
    )
    assert drawn.shape == (512, 512, 3)  # small images are enlarged
    assert abs(drawn[::8, ::8] - source).mean() < 6  # JPEG-compressed twice


def test_video(folder: Path, tmp_path: Path):
    results, images = call(folder, tmp_path, [folder / "clip.avi", folder / "images/a.jpg"], batch_size=3)
    assert [(image["id"], image["file_name"], image.get("frame")) for image in images["images"]] == [
        (1, "a.jpg", None),
        (2, "clip.avi", 0),
        (3, "clip.avi", 1),
        (4, "clip.avi", 2),
        (5, "clip.avi", 3),
    ]
    assert {result["image_id"] for result in results} == {1, 2, 3, 4, 5}
    capture = cv2.VideoCapture(str(tmp_path / "out/vis/clip.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (4, 8)
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (512, 384)
    assert [p.name for p in (tmp_path / "out/vis").iterdir() if p.name.startswith(".")] == []


def test_ids_from_annotation_file(folder: Path, tmp_path: Path):
    ann = dict(
        images=[
            dict(id=70 + i, file_name=f"sub/{name}", width=1, height=1)
            for i, name in enumerate(("c.jpg", "a.jpg", "b.png"))
        ],
        annotations=[],
        categories=[dict(id=18, name="dog"), dict(id=17, name="cat"), dict(id=1, name="person")],
    )
    path = tmp_path / "ann.json"
    path.write_text(json.dumps(ann))
    results, _ = call(folder, tmp_path, [folder / "images"], ann_file=str(path), draw=False)
    assert {result["image_id"] for result in results} == {70, 71, 72}
    assert {result["category_id"] for result in results} <= {17, 18}
    ann["images"].pop()
    path.write_text(json.dumps(ann))
    with pytest.raises(UsageError, match=r"ann.json: has no image with the file name 'b.png'"):
        call(folder, tmp_path, [folder / "images"], ann_file=str(path))
    ann["images"].append(dict(id=99, file_name="other/a.jpg", width=1, height=1))
    path.write_text(json.dumps(ann))
    with pytest.raises(UsageError, match=r"two images with the file name 'a.jpg'"):
        call(folder, tmp_path, [folder / "images"], ann_file=str(path))
    path.write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        call(folder, tmp_path, [folder / "images"], ann_file=str(path))
    ann["images"].pop()
    ann["categories"].pop(0)
    path.write_text(json.dumps(ann))
    with pytest.raises(UsageError, match=r"has no category 'dog' of the model's classes; it has 'cat', 'person'"):
        call(folder, tmp_path, [folder / "images"], ann_file=str(path))


@pytest.mark.parametrize("name", ["mask-rcnn", "retinanet"])
def test_single_tile_equals_whole_image(folder: Path, tmp_path: Path, name: str):
    whole, _ = call(folder, tmp_path, [folder / "images/a.jpg"], name)
    tiled, _ = call(folder, tmp_path / "tiled", [folder / "images/a.jpg"], name, tile=90)
    kept = {json.dumps(result["bbox"]) for result in tiled}
    assert kept <= {json.dumps(result["bbox"]) for result in whole}
    assert tiled[0] == whole[0]


def test_instances_of_tiles_are_shifted_to_image_coordinates(folder: Path):
    """Uses a fake detector that returns one box with a mask at the centre of each input."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    detector = Detector(config(), str(folder / "mask-rcnn.pth"), PredictionOptions("cpu", tile=64, overlap=0.5))
    image = np.zeros((100, 130, 3), np.uint8)

    def middle(images: list[np.ndarray], **_: object) -> dict:
        samples = []
        for tile in images:
            height, width = tile.shape[:2]
            mask = torch.zeros(1, height, width, dtype=torch.bool)
            mask[:, height // 2 - 4 : height // 2 + 4, width // 2 - 6 : width // 2 + 6] = True
            box = [[width / 2 - 6, height / 2 - 4, width / 2 + 6, height / 2 + 4]]
            samples.append(
                DetDataSample(
                    pred_instances=InstanceData(
                        bboxes=torch.tensor(box), scores=torch.tensor([0.9]), labels=torch.tensor([0]), masks=mask
                    )
                )
            )
        return dict(predictions=samples)

    detector.inferencer.__class__.__call__, original = (
        lambda self, images, **k: middle(images),
        detector.inferencer.__class__.__call__,
    )
    try:
        ((_, found),) = detector(iter([Source("x", image)]))
    finally:
        detector.inferencer.__class__.__call__ = original
    corners = [(y, x) for y in (0, 32, 36) for x in (0, 32, 64, 66)]
    from pycocotools import mask as coco_mask

    assert 0 < len(found) < len(corners)  # tiles 2 and 4 pixels apart overlap by more than half: merged
    for box, mask in zip(found.bboxes.tolist(), found.masks, strict=True):
        assert (box[1] + 4 - 32, box[0] + 6 - 32) in corners
        rows, columns = np.nonzero(coco_mask.decode(mask))
        assert coco_mask.decode(mask).shape == (100, 130)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box


@pytest.mark.parametrize(
    ("length", "tile", "step", "starts"),
    [(10, 64, 32, [0]), (64, 64, 32, [0]), (65, 64, 32, [0, 1]), (128, 64, 64, [0, 64]), (130, 64, 48, [0, 48, 66])],
)
def test_tiles_cover_the_side(length: int, tile: int, step: int, starts: list[int]):
    assert tile_starts(length, tile, step) == starts
    assert {i for start in starts for i in range(start, min(start + tile, length))} == set(range(length))


@pytest.mark.parametrize("name", ["mask-rcnn", "cascade-mask-rcnn", "retinanet"])
def test_tta(folder: Path, tmp_path: Path, name: str):
    results, _ = call(folder, tmp_path, [folder / "images"], name, batch_size=2, tta=True)
    assert results
    assert not any("segmentation" in result for result in results)


def test_tta_uses_scale_or_tta_pipeline_of_config():
    cfg = config()
    use_tta(cfg)
    scales = [t["scale"] for t in cfg.test_dataloader.dataset.pipeline[-1].transforms[0]]
    assert scales == [(128, 77), (160, 96), (192, 115)]
    own = config()
    own.tta_model = dict(type="DetTTAModel")
    own.tta_pipeline = [dict(type="LoadImageFromFile")]
    use_tta(own)
    assert own.tta_model == dict(type="mmgcvit.BoxTTAModel")  # DetTTAModel with support for masks
    assert own.test_dataloader.dataset.pipeline == [dict(type="LoadImageFromFile")]
    lvis = config(scale=96)
    lvis.test_evaluator = dict(type="LVISMetric", metric=["bbox", "segm"])
    use_tta(lvis)
    assert lvis.test_evaluator.metric == "bbox"
    assert lvis.test_dataloader.dataset.pipeline[-1].transforms[0][0]["scale"] == (77, 77)
    none = config()
    none.test_dataloader.dataset.pipeline = [dict(type="LoadImageFromFile")]
    with pytest.raises(UsageError, match="has no Resize with a scale"):
        use_tta(none)


def test_tta_file_works_as_base_config(tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text(f"_base_ = ['{BASES}/mask-rcnn_gcvit-nano_fpn.py', '{BASES}/tta.py']\n")
    cfg = Config.fromfile(mine)
    use_tta(cfg)
    assert [t["scale"] for t in cfg.tta_pipeline[-1].transforms[0]] == [(1066, 640), (1333, 800), (1600, 960)]


@pytest.mark.parametrize(("kwargs", "says"), [
    (dict(batch_size=0), "batch_size=0; allowed: at least 1"), (dict(tile=10), "tile=10; allowed: at least 32"),
    (dict(overlap=1.0), r"overlap=1.0; allowed: from 0 to below 1")])  # fmt: skip
def test_bad_arguments(folder: Path, tmp_path: Path, kwargs: dict, says: str):
    with pytest.raises(UsageError, match=says):
        call(folder, tmp_path, [folder / "images"], **kwargs)
    assert not (tmp_path / "out").exists()


def test_unreadable_inputs(folder: Path, tmp_path: Path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UsageError, match=r"empty.jpg': cannot be decoded"):
        call(folder, tmp_path, [tmp_path / "empty.jpg"])
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"broken.jpg': cannot be decoded"):
        call(folder, tmp_path, [tmp_path / "broken.jpg"])
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"broken.mp4': not a video that OpenCV can read"):
        call(folder, tmp_path, [tmp_path / "broken.mp4"])


def test_broken_images_are_named_and_the_others_done(folder: Path, tmp_path: Path):
    (tmp_path / "in/sub").mkdir(parents=True)
    whole = (folder / "images/a.jpg").read_bytes()
    for name, content in (("a.jpg", whole), ("b.jpg", whole[:400]), ("sub/a.jpg", whole), ("sub/d.png", b"")):
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(UsageError) as error:
        call(folder, tmp_path, [tmp_path / "in"], batch_size=2)
    first, second, last = str(error.value).splitlines()
    assert first.startswith(f"input '{tmp_path}/in/b.jpg': cannot be decoded: ")
    assert second == f"input '{tmp_path}/in/sub/d.png': cannot be decoded: the file is empty"
    assert last == f"2 of 4 inputs failed; the results of the others are in {tmp_path}/out/predictions.json"
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [(1, "a.jpg"), (2, "sub/a.jpg")]
    results = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2}
    assert sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.jpg")) == [
        "vis/a.jpg",
        "vis/sub/a.jpg",
    ]
    (tmp_path / "in/a.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="2 of 2 inputs failed; there are no results"):
        call(folder, tmp_path / "none", [tmp_path / "in/a.jpg", tmp_path / "in/b.jpg"])
    assert not (tmp_path / "none/out/predictions.json").exists()


def test_results_are_saved_on_the_way(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "SAVE_EVERY", 0.0)
    saved: list[int] = []
    write = Detector.write

    def count(self: Detector, out: Path) -> Path:
        file = write(self, out)
        saved.append(len(json.loads((out / "images.json").read_text())["images"]))
        return file

    monkeypatch.setattr(Detector, "write", count)
    call(folder, tmp_path, [folder / "images"], draw=False)
    assert saved[0] == 1
    assert saved[-1] == 3
    saved.clear()
    monkeypatch.setattr(inference, "SAVE_EVERY", 1e9)
    kept: list[str] = []

    def interrupt(*_: object) -> None:
        kept.extend((tmp_path / "again/out/results.jsonl").read_text().splitlines())
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(folder, tmp_path / "again", [folder / "images"])
    assert saved == [1]
    results = json.loads((tmp_path / "again/out/predictions.json").read_text())
    assert json.loads(kept[0]) == {"image": "a.jpg", "frame": None, "results": results}
    assert len(kept) == 1
    assert not (tmp_path / "again/out/results.jsonl").exists()


def test_images_on_which_the_model_fails_do_not_stop_the_others(folder: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    whole = (folder / "images/a.jpg").read_bytes()
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / "in" / name).write_bytes(whole)
    Image.new("RGB", (30_000, 1)).save(tmp_path / "in/b.png")  # no line is left of it after resizing
    Image.new("1", (20_000, 20_000)).save(tmp_path / "in/bomb.png")
    (tmp_path / "in/gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in/pipe.png")
    with pytest.raises(UsageError) as error:
        call(folder, tmp_path, [tmp_path / "in"], batch_size=2)
    said = str(error.value)
    assert "input 'b.png' (30000 x 1): the model failed on it: " in said
    assert "bomb.png': 20000 x 20000 = 400.0 million pixels; allowed: at most 100 million; --max-pixels" in said
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert sorted(image["file_name"] for image in images) == ["a.jpg", "c.jpg"]
    results = json.loads((tmp_path / "out/predictions.json").read_text())
    assert {result["image_id"] for result in results} == {image["id"] for image in images}


def test_cut_off_video_is_reported(folder: Path, tmp_path: Path):
    writer = cv2.VideoWriter(str(tmp_path / "long.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 8, (64, 48))
    for seed in range(12):
        writer.write(np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    content = (tmp_path / "long.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UsageError, match=r"cut.avi': ends after \d of 12 frames: cut off or damaged") as error:
        call(folder, tmp_path, [tmp_path / "cut.avi"], "retinanet")
    (count,) = re.findall(r"after (\d)", str(error.value))
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert [image["frame"] for image in images] == list(range(int(count)))
    drawn = cv2.VideoCapture(str(tmp_path / "out/vis/cut.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == int(count)
    call(folder, tmp_path / "whole", [tmp_path / "long.avi"], "retinanet", draw=False)


@pytest.mark.parametrize(("channels", "loader"), [
    (1, dict(color_type="grayscale")), (4, dict(color_type="unchanged", to_float32=True)),
    (6, dict(color_type="unchanged", imdecode_backend="tifffile"))])  # fmt: skip
def test_other_numbers_of_channels(folder: Path, tmp_path: Path, channels: int, loader: dict):
    """Whole, in tiles and with test-time augmentation, the model gets the channels of the file."""
    if channels == 6:
        pytest.importorskip("tifffile")
    cfg = config("retinanet")
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(mean=[90.0] * channels, std=[50.0] * channels, bgr_to_rgb=False)
    cfg.test_dataloader.dataset.pipeline[0].update(loader)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=CLASSES))), tmp_path / "model.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, channels), np.uint8)
    path = tmp_path / ("a.tif" if channels == 6 else "a.png")
    if channels == 6:
        import tifffile

        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    else:
        cv2.imwrite(str(path), pixels)
    seen = []
    preprocessor = MODELS.get("mmgcvit.DetDataPreprocessor")
    original = preprocessor._convert

    def spy(self, image: torch.Tensor) -> torch.Tensor:
        seen.append(image)
        return original(self, image)

    preprocessor._convert = spy
    try:
        for options in ({}, dict(tile=64), dict(tta=True)):
            found = predict(cfg, str(tmp_path / "model.pth"), [path], str(tmp_path / "out"), "cpu", **options)
            assert found.objects > 0
    finally:
        preprocessor._convert = original
    pixels = pixels.astype(np.float32) if loader.get("to_float32") else pixels
    expected = cv2.resize(pixels, (144, 96), interpolation=cv2.INTER_LINEAR).reshape(96, 144, channels)
    np.testing.assert_array_equal(seen[0].permute(1, 2, 0).numpy(), expected)
    assert {image.shape[0] for image in seen} == {channels}
    if channels == 4:  # an image with 3 is named, and the others are done
        cv2.imwrite(str(tmp_path / "0.bmp"), np.zeros((9, 9, 3), np.uint8))
        with pytest.raises(UsageError, match=rf"input '{tmp_path}/0.bmp': 3 channels .*allowed: 4") as error:
            predict(cfg, str(tmp_path / "model.pth"), [tmp_path / "0.bmp", path], str(tmp_path / "out"), "cpu")
        assert "1 of 2 inputs failed; the results of the others are in" in str(error.value)
    assert cv2.imread(str(tmp_path / "out/vis/a.tif" if channels == 6 else tmp_path / "out/vis/a.png")).shape == (
        6 * 60,
        6 * 90,
        3,
    )


def test_tta_keeps_all_transforms_of_the_test_pipeline():
    cfg = config()
    cfg.test_dataloader.dataset.pipeline[0].color_type = "unchanged"
    normalize, pad = dict(type="Normalize", mean=[1] * 4, std=[2] * 4, to_rgb=False), dict(type="Pad", size_divisor=32)
    cfg.test_dataloader.dataset.pipeline[1:1] = [normalize]
    cfg.test_dataloader.dataset.pipeline[3:3] = [pad]
    use_tta(cfg)
    load, first, views = cfg.test_dataloader.dataset.pipeline
    assert (load.color_type, first) == ("unchanged", normalize)
    assert [steps[0]["type"] for steps in views.transforms] == [
        "Resize", "RandomFlip", "Pad", "LoadAnnotations", "PackDetInputs"]  # fmt: skip
    own = config()
    own.test_dataloader.dataset.pipeline[0].color_type = "unchanged"
    own.tta_model = dict(type="DetTTAModel")
    own.tta_pipeline = [dict(type="LoadImageFromFile")]
    use_tta(own)
    assert own.test_dataloader.dataset.pipeline[0].color_type == "unchanged"
    own.tta_pipeline = [dict(type="LoadImageFromFile", color_type="color")]
    use_tta(own)
    assert own.test_dataloader.dataset.pipeline[0].color_type == "color"


def test_checkpoints_of_other_models(folder: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"it lacks bbox_head\.cls_convs .* Not used by the model: roi_head"):
        predict(config("retinanet"), str(folder / "mask-rcnn.pth"), [folder / "images"], str(tmp_path / "out"), "cpu")
    three = config()
    three.model.roi_head.bbox_head.num_classes = 3
    with pytest.raises(
        UsageError, match=r"has other shapes: roi_head.bbox_head.fc_cls.weight \(3, \d+\), in the model"
    ):
        predict(three, str(folder / "mask-rcnn.pth"), [folder / "images"], str(tmp_path / "out"), "cpu")
    turned = config()
    turned.test_dataloader.dataset.metainfo = dict(classes=CLASSES[::-1])
    with pytest.raises(UsageError, match="the checkpoint has cat, dog; the config has dog, cat"):
        predict(turned, str(folder / "mask-rcnn.pth"), [folder / "images"], str(tmp_path / "out"), "cpu")
    (tmp_path / "half.pth").write_bytes((folder / "mask-rcnn.pth").read_bytes()[:5000])
    (tmp_path / "empty.pth").touch()
    for name in ("half", "empty"):
        with pytest.raises(UsageError, match=rf"{name}.pth' \([\d,]+ bytes\): "):
            predict(config(), str(tmp_path / f"{name}.pth"), [folder / "images"], str(tmp_path / "out"), "cpu")
    assert not (tmp_path / "out").exists()


def test_weights_with_a_mask_head_in_a_box_detector(folder: Path, tmp_path: Path):
    """They are complete; and the boxes are those of the whole model."""
    boxes = config()
    del boxes.model.roi_head["mask_head"]
    boxes.model.roi_head.mask_roi_extractor = None
    found = predict(boxes, str(folder / "mask-rcnn.pth"), [folder / "images/a.jpg"], str(tmp_path / "box"), "cpu")
    whole, _ = call(folder, tmp_path, [folder / "images/a.jpg"])
    assert found.results == [{key: value for key, value in one.items() if key != "segmentation"} for one in whole]


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_checkpoint_is_read_safely_and_names_come_from_the_config(folder: Path, tmp_path: Path):
    from safetensors.torch import save_file

    content = torch.load(folder / "retinanet.pth")
    torch.save(dict(content, evil=Code(tmp_path / "executed")), tmp_path / "evil.pth")
    with pytest.raises(UsageError, match=r"evil.pth.*refused without executing anything"):
        predict(config("retinanet"), str(tmp_path / "evil.pth"), [folder / "images"], str(tmp_path / "out"), "cpu")
    assert not (tmp_path / "executed").exists()
    save_file(content["state_dict"], tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="has no names for its 2 classes, and neither has the config; add metainfo"):
        predict(config("retinanet"), str(tmp_path / "w.safetensors"), [folder / "images"], str(tmp_path / "out"), "cpu")
    named = config("retinanet")
    named.test_dataloader.dataset.metainfo = dict(classes=("Katze", "Hund"))
    torch.save(dict(content, meta=dict(dataset_meta=dict(classes=[f"c{i}" for i in range(80)]))), tmp_path / "coco.pth")
    for name in ("w.safetensors", "coco.pth"):
        predict(named, str(tmp_path / name), [folder / "images"], str(tmp_path / name[:4]), "cpu")
        categories = json.loads((tmp_path / name[:4] / "images.json").read_text())["categories"]
        assert [category["name"] for category in categories] == ["Katze", "Hund"]


def condinst() -> Config:
    """mmdet's one-stage instance segmentor CondInst with a tiny backbone."""
    cfg = Config.fromfile(BASES / "retinanet_gcvit-nano_fpn.py")
    theirs = get_config("mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py").model
    theirs.backbone = dict(type="GCViT", arch=TINY, out_indices=(1, 2, 3), pad="window")
    theirs.neck.update(in_channels=[32, 64, 128], start_level=0)
    theirs.bbox_head.num_classes = len(CLASSES)
    theirs.test_cfg.update(score_thr=0.0, max_per_img=6)
    cfg.model = theirs
    cfg.test_dataloader.dataset.metainfo = dict(classes=CLASSES)
    for transform in cfg.test_dataloader.dataset.pipeline:
        if transform.type == "Resize":
            transform.scale = (96, 64)
    return cfg


def test_one_stage_instance_segmentor(folder: Path, tmp_path: Path):
    """Masks alone, boxes with test-time augmentation, and multiply-adds."""
    from pycocotools import mask as coco_mask

    from mmgcvit.analysis import build_model, count_flops

    built = build_model(condinst())
    torch.save(built.state_dict(), tmp_path / "c.pth")
    images = [folder / "images/a.jpg", folder / "images/b.png"]
    for tta in (False, True):
        found = predict(condinst(), str(tmp_path / "c.pth"), images, str(tmp_path / "out"), "cpu", tta=tta)
        assert found.objects > 0
        assert all(("segmentation" in result) != tta for result in found.results)
    flops = {part.name: part.macs for part in count_flops(built, (64, 96)).parts}
    assert flops["bbox_head"] > 0
    assert flops["mask_head"] > 0
    assert built.bbox_head.test_cfg.score_thr == 0.0
    solo = condinst()
    solo.model = get_config("mmdet::solo/decoupled-solo-light_r50_fpn_3x_coco.py").model
    solo.model.backbone, solo.model.neck.in_channels = dict(type="GCViT", arch=TINY), [16, 32, 64, 128]
    solo.model.mask_head.num_classes = len(CLASSES)
    solo.model.test_cfg.update(score_thr=0.0, filter_thr=0.0, max_per_img=4)
    torch.save(build_model(solo).state_dict(), tmp_path / "solo.pth")
    for result in predict(solo, str(tmp_path / "solo.pth"), images, str(tmp_path / "solo"), "cpu").results:
        x, y, width, height = result["bbox"]  # of the mask: SOLO has no boxes
        rows, columns = np.nonzero(coco_mask.decode(result["segmentation"]))
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x, y, x + width, y + height]
    with pytest.raises(UsageError, match=r"--tta: model.type='SOLO' predicts no boxes to be merged"):
        use_tta(solo)
    del built.mask_head
    built.mask_head = torch.nn.Linear(1, 1)
    with pytest.raises(UsageError, match=r"model.type='CondInst': its forward pass on an image alone fails"):
        count_flops(built, (64, 96))
