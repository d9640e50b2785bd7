"""Segmentation on images, folders and videos: whole, by sliding window, and with TTA; with an untrained model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, randomise

pytest.importorskip("mmcv._ext")
pytest.importorskip("mmseg")
pytest.importorskip("sklearn")

import cv2
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample

from mmgcvit import apis
from mmgcvit.apis import UsageError, load_config, predict, use_tta
from mmgcvit.tasks.base import PredictionOptions
from mmgcvit.tasks.segmentation.predictor import Segmentor
from mmgcvit.tasks.sources import Source

BASES = ROOT / "configs/segmentation/_base_"
CLASSES = ("ground", "cat", "dog")
PALETTE = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
KINDS = ("upernet", "fpn", "segformer")
ALL = (*KINDS, "mask2former")


def config(kind: str = "upernet", scale: tuple[int, int] | None = (128, 64)) -> Config:
    if kind == "mask2former":
        cfg = Config.fromfile(BASES.parent / "gcvit-tiny_mask2former_8xb2-160k_ade20k-512x512.py")
        nano = Config.fromfile(BASES / "upernet_gcvit-nano.py").model
        cfg.model.backbone, cfg.model.decode_head.in_channels = nano.backbone, nano.decode_head.in_channels
        cfg.model.decode_head.loss_cls.class_weight = [1.0] * (len(CLASSES) + 1)
    else:
        cfg = Config.fromfile(BASES / f"{kind}_gcvit-nano.py")
    for name in ("decode_head", "auxiliary_head"):
        if cfg.model.get(name):
            cfg.model[name].num_classes = len(CLASSES)
    cfg.model.data_preprocessor.pop("size")
    pipeline = cfg.test_dataloader.dataset.pipeline
    if scale is None:
        pipeline.pop(1)
    else:
        pipeline[1].scale = scale
    cfg.tta_pipeline[1].transforms[0] = [
        dict(type="Resize", scale=side, keep_ratio=True) for side in ((96, 48), (128, 64))
    ]
    return cfg


def model(kind: str = "upernet", cfg: Config | None = None) -> torch.nn.Module:
    cfg = cfg or config(kind)
    init_default_scope("mmseg")
    built = randomise(MODELS.build(cfg.model)).eval()
    with torch.no_grad():  # so that no class dominates everywhere
        if (
            kind == "mask2former"
        ):  # reduce the updates of the queries, which are equal for all, so that the queries differ
            built.decode_head.query_feat.weight *= 16
            for name, parameter in built.decode_head.transformer_decoder.named_parameters():
                if "out_proj" in name or ("ffn" in name and "layers.1" in name):
                    parameter *= 0.02
        logits = built.test_step(samples((48, 96), 1))[0].seg_logits.data
        if kind == "mask2former":
            built.decode_head.cls_embed.bias[:-1] -= logits.mean((1, 2)).log()
        else:
            built.decode_head.conv_seg.bias -= logits.mean((1, 2))
    return built


def samples(shape: tuple[int, int], count: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    return dict(
        inputs=[torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator) for _ in range(count)],
        data_samples=[SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape)) for _ in range(count)],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of two shapes, a video, and checkpoints."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    (folder / "in").mkdir()
    for name, shape in (("a.jpg", (48, 96)), ("b.png", (60, 70)), ("c.jpg", (48, 96))):
        image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), shape[::-1])
        cv2.imwrite(str(folder / "in" / name), image)
    writer = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(3):
        writer.write(cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (64, 48)))
    writer.release()
    for kind in ALL:
        torch.save(
            dict(state_dict=model(kind).state_dict(), meta=dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))),
            folder / f"{kind}.pth",
        )
    return folder


@pytest.mark.parametrize("kind", ALL)
def test_folder_in_batches(folder: Path, tmp_path: Path, kind: str):
    found = predict(config(kind), str(folder / f"{kind}.pth"), [folder / "in"], str(tmp_path / "one"), "cpu")
    assert (found.images, found.frames) == (3, 0)
    predict(config(kind), str(folder / f"{kind}.pth"), [folder / "in"], str(tmp_path / "two"), "cpu", batch_size=3)
    content = json.loads((tmp_path / "two/areas.json").read_text())
    assert content == json.loads((tmp_path / "one/areas.json").read_text())
    assert found.file == str(tmp_path / "one/areas.json")
    assert content["values"] == {"0": "ground", "1": "cat", "2": "dog"}
    seen = set()
    for image, (name, shape) in zip(
        content["images"], (("a.jpg", (48, 96)), ("b.png", (60, 70)), ("c.jpg", (48, 96))), strict=True
    ):
        assert (image["file_name"], image["height"], image["width"]) == (name, *shape)
        labels = cv2.imread(str(tmp_path / "two" / image["label_map"]), cv2.IMREAD_UNCHANGED)
        assert labels.shape == shape
        for i, label in enumerate(CLASSES):
            count = int((labels == i).sum())
            assert image["areas"].get(label, dict(pixels=0))["pixels"] == count
            assert count == 0 or image["areas"][label]["share"] == round(count / labels.size, 5)
        seen |= set(np.unique(labels))
        drawn = cv2.imread(str(tmp_path / "two/vis" / name)).shape
        zoom = round(512 / max(shape))  # small images are enlarged; the legend is below
        assert drawn[1] == zoom * shape[1]
        assert drawn[0] > zoom * shape[0]
    assert len(seen) > 1


def test_predictions_equal_mmsegs(folder: Path):
    """Compares with mmseg's own test step."""
    segmentor = Segmentor(config(scale=None), str(folder / "upernet.pth"), PredictionOptions("cpu", batch_size=2))
    data = samples((37, 51), 2)
    images = [image.permute(1, 2, 0).numpy() for image in data["inputs"]]
    found = [labels for _, labels in segmentor(iter([Source(str(i), p) for i, p in enumerate(images)]))]
    with torch.no_grad():
        for labels, sample in zip(found, model().test_step(data), strict=True):
            np.testing.assert_array_equal(labels, sample.pred_sem_seg.data[0])


def test_drawing_uses_class_colours(folder: Path):
    segmentor = Segmentor(config(), str(folder / "upernet.pth"), PredictionOptions("cpu"))
    labels = np.zeros((300, 300), np.uint8)
    labels[:, 150:] = 2
    grey = Source("a.jpg", np.full((300, 300, 3), 100, np.uint8))
    drawn = segmentor.draw(grey, labels, 0.3)
    np.testing.assert_array_equal(drawn[500, 100], [50, 50, 50])
    np.testing.assert_array_equal(drawn[500, 500], [50, 50, 177])  # RGB, enlarged twice
    assert segmentor.trained.palette == tuple(map(tuple, PALETTE))
    assert (drawn[600:] == (0, 0, 255)).all(-1).sum() > 100  # in the legend
    assert not (drawn[600:] == (255, 0, 0)).all(-1).any()  # this class is not in the image
    # frames of a video all have the same size, whatever is in them
    frames = [segmentor.draw(Source("a", grey.pixels, 0), (labels * value).astype(np.uint8), 0.3) for value in (0, 1)]
    assert frames[0].shape == frames[1].shape


def test_checkpoint_without_class_names(folder: Path, tmp_path: Path):
    """mmseg would use the names of Cityscapes."""
    cfg = config()
    for head in (cfg.model.decode_head, cfg.model.auxiliary_head):
        head.num_classes = 19
    bare = tmp_path / "bare.pth"
    torch.save(dict(state_dict=model(cfg=cfg).state_dict()), bare)

    def found(**dataset) -> tuple[str, ...]:
        cfg.test_dataloader.dataset = dict(_scope_="mmseg", pipeline=cfg.test_dataloader.dataset.pipeline, **dataset)
        return Segmentor(cfg, str(bare), PredictionOptions("cpu")).classes

    names = tuple(f"thing {i}" for i in range(19))
    assert found(type="BaseSegDataset", metainfo=dict(classes=names)) == names
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert found(type="BaseSegDataset", metainfo=dict(classes=str(tmp_path / "names.txt"))) == names
    assert found(type="CityscapesDataset")[:2] == ("road", "sidewalk")
    with pytest.raises(UsageError, match=r"has no names for its 19 classes, and neither has the config; add metainfo"):
        found(type="ADE20KDataset")
    with pytest.raises(UsageError, match=r"metainfo\.classes='abcdefghijklmnopqrs'; allowed: names, or a file"):
        found(type="BaseSegDataset", metainfo=dict(classes="abcdefghijklmnopqrs"))
    torch.save(dict(state_dict=torch.load(bare)["state_dict"], meta=dict(CLASSES=names)), bare)
    assert found(type="CityscapesDataset") == names


@pytest.mark.parametrize(("kind", "first"), [("ADE20KDataset", "wall"), ("PascalVOCDataset", "background")])
def test_class_names_of_data_set_class(folder: Path, kind: str, first: str):
    cfg = config()
    cfg.test_dataloader.dataset.type = kind
    head = dict(num_classes=150 if kind == "ADE20KDataset" else 21)
    inferencer = SimpleNamespace(has_names=False, model=SimpleNamespace(decode_head=SimpleNamespace(**head)))
    init_default_scope("mmseg")
    classes, palette = Segmentor.meta(SimpleNamespace(inferencer=inferencer), cfg, "bare.pth")
    assert classes[0] == first
    assert len(classes) == len(palette) == head["num_classes"]


def test_video(folder: Path, tmp_path: Path):
    found = predict(config(), str(folder / "upernet.pth"), [folder / "film.avi"], str(tmp_path), "cpu", batch_size=2)
    assert (found.images, found.frames) == (0, 3)
    capture = cv2.VideoCapture(str(tmp_path / "vis/film.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    images = json.loads((tmp_path / "areas.json").read_text())["images"]
    assert [image["frame"] for image in images] == [0, 1, 2]
    assert cv2.imread(str(tmp_path / images[2]["label_map"]), cv2.IMREAD_UNCHANGED).shape == (48, 64)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("shape", [(1, 1), (37, 501)])
def test_label_maps_have_image_size(kind: str, shape: tuple[int, int]):
    with torch.no_grad():
        result = model(kind).test_step(samples(shape, 1))[0]
    assert result.pred_sem_seg.data.shape == (1, *shape)
    assert result.seg_logits.data.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
def test_label_maps_of_large_images(kind: str):
    test_label_maps_have_image_size(kind, (1536, 2048))


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("shape", [(1, 1), (37, 501), pytest.param((1536, 2048), marks=pytest.mark.slow)])
def test_images_of_odd_sizes(folder: Path, tmp_path: Path, kind: str, shape: tuple[int, int]):
    """With the configs' own pipeline, which resizes the short side to 512."""
    cfg = config(kind)
    cfg.test_dataloader.dataset.pipeline = Config.fromfile(BASES / "ade20k_512x512.py").test_pipeline
    image = samples(shape, 1)["inputs"][0].permute(1, 2, 0).numpy()
    cv2.imwrite(str(tmp_path / "odd.png"), image)
    predict(cfg, str(folder / f"{kind}.pth"), [tmp_path / "odd.png"], str(tmp_path / "out"), "cpu")
    labels = cv2.imread(str(tmp_path / "out/labels/odd.png"), cv2.IMREAD_UNCHANGED)
    assert labels.shape == shape
    assert labels.max() < len(CLASSES)


@pytest.mark.parametrize("kind", ALL)
def test_sliding_window_equals_whole_if_image_fits(kind: str):
    whole = model(kind)
    with torch.no_grad():
        expected = whole.test_step(samples((60, 90), 1))[0].seg_logits.data
        whole.test_cfg = Config(dict(mode="slide", crop_size=(60, 100), stride=(40, 40)))
        torch.testing.assert_close(whole.test_step(samples((60, 90), 1))[0].seg_logits.data, expected)
        whole.test_cfg.crop_size = (40, 40)
        smaller = whole.test_step(samples((60, 90), 1))[0].seg_logits.data
    assert smaller.shape == expected.shape
    assert not torch.allclose(smaller, expected)


def test_tiles_equal_sliding_window(folder: Path):
    options = PredictionOptions("cpu", tile=40, overlap=0.25)
    segmentor = Segmentor(config(scale=None), str(folder / "upernet.pth"), options)
    assert segmentor.inferencer.model.test_cfg == dict(mode="slide", crop_size=(40, 40), stride=(30, 30))
    image = samples((60, 90), 1)["inputs"][0].permute(1, 2, 0).numpy()
    ((_, labels),) = segmentor(iter([Source("a", image)]))
    sliding = model()
    sliding.test_cfg = Config(dict(mode="slide", crop_size=(40, 40), stride=(30, 30)))
    with torch.no_grad():
        expected = sliding.test_step(samples((60, 90), 1))[0].pred_sem_seg.data[0]
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("kind", ALL)
def test_tta(folder: Path, kind: str):
    """The result is the mean of the probabilities over two scales and their mirror images."""
    cfg = config(kind)
    use_tta(cfg)
    segmentor = Segmentor(cfg, str(folder / f"{kind}.pth"), PredictionOptions("cpu", tta=True))
    image = samples((64, 128), 1)["inputs"][0].permute(1, 2, 0).numpy()
    ((_, labels),) = segmentor(iter([Source("a", image)]))
    probabilities, alone = [], model(kind)
    for side in ((96, 48), (128, 64)):
        for mirrored in (False, True):
            view = cv2.resize(image, side)
            view = np.ascontiguousarray(view[:, ::-1]) if mirrored else view
            meta = dict(img_shape=view.shape[:2], ori_shape=(64, 128), flip=mirrored, flip_direction="horizontal")
            data = dict(inputs=[torch.from_numpy(view).permute(2, 0, 1)], data_samples=[SegDataSample(metainfo=meta)])
            with torch.no_grad():
                probabilities.append(alone.test_step(data)[0].seg_logits.data.softmax(0))
    expected = torch.stack(probabilities).mean(0).argmax(0).numpy()
    assert (labels == expected).mean() > 0.999
    assert len(np.unique(labels)) > 1


def test_tta_of_ade20k_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Uses all twelve views of the shipped config, at smaller sizes."""
    from mmseg.models.segmentors import SegTTAModel

    cfg = load_config(
        BASES.parent / "gcvit-xxtiny_upernet_8xb2-160k_ade20k-512x512.py",
        str(tmp_path / "work"),
        {
            "test_dataloader.dataset.data_root": str(tmp_path),
            "test_dataloader.num_workers": 0,
            "test_dataloader.persistent_workers": False,
            "model.backbone.pad": "window",
            "model.backbone.init_cfg": None,
        },
    )
    for resize in cfg.tta_pipeline[1].transforms[0]:
        resize.scale = tuple(side // 8 for side in resize.scale)
    rng = np.random.default_rng(0)
    for name, values in (
        ("images/validation/a.jpg", rng.integers(0, 256, (40, 64, 3), np.uint8)),
        ("annotations/validation/a.png", rng.integers(0, 151, (40, 64), np.uint8)),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / name), values)
    init_default_scope("mmseg")
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / "untrained.pth")
    views, merge = [], SegTTAModel.merge_preds

    def spy(self, samples: list) -> list:
        views.extend((*sample.img_shape, sample.flip) for one in samples for sample in one)
        return merge(self, samples)

    monkeypatch.setattr(SegTTAModel, "merge_preds", spy)
    found = apis.test(cfg, str(tmp_path / "untrained.pth"), tta=True)
    assert sorted((view[0], view[2]) for view in views) == [
        (side, flip) for side in (32, 48, 64, 80, 96, 112) for flip in (False, True)
    ]
    assert 0 <= found["mIoU"] <= 100


@pytest.mark.parametrize("kind", ALL)
def test_iou_does_not_depend_on_the_batch(kind: str):
    segmentor = model(kind)
    generator = torch.Generator().manual_seed(1)
    truth = torch.randint(0, 3, (3, 1, 45, 70), generator=generator)
    ious = []
    for batch in (1, 3):
        metric = IoUMetric()
        metric.dataset_meta = dict(classes=CLASSES)
        data = samples((45, 70), 3)
        for start in range(0, 3, batch):
            with torch.no_grad():
                found = segmentor.test_step({key: value[start : start + batch] for key, value in data.items()})
            metric.process(
                {},
                [
                    dict(pred_sem_seg=dict(data=sample.pred_sem_seg.data), gt_sem_seg=dict(data=truth[start + i]))
                    for i, sample in enumerate(found)
                ],
            )
        ious.append(metric.compute_metrics(metric.results))
    assert ious[0] == ious[1]
    assert 0 < ious[0]["mIoU"] < 100


def test_bad_arguments(folder: Path, tmp_path: Path):
    checkpoint = str(folder / "upernet.pth")
    with pytest.raises(UsageError, match=r"--ann-file 'x\.json': a segmentor's predictions have no ids"):
        predict(config(), checkpoint, [folder / "in"], str(tmp_path), "cpu", ann_file="x.json")
    (tmp_path / "a.png").write_bytes((folder / "in/b.png").read_bytes())
    with pytest.raises(UsageError, match=r"would be written to the same file, a\.png; pass them in two calls"):
        predict(config(), checkpoint, [folder / "in/a.jpg", tmp_path / "a.png"], str(tmp_path / "out"), "cpu")
    assert not (tmp_path / "out").exists()


def with_data(tmp_path: Path, classes: tuple[str, ...] = CLASSES) -> Config:
    """Config with a data set of one image."""
    rng = np.random.default_rng(0)
    for name, values in (("img/a.jpg", rng.integers(0, 256, (40, 64, 3), np.uint8)), ("ann/a.png", np.zeros((40, 64)))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), values)
    cfg = config("fpn")
    for name in ("decode_head", "auxiliary_head"):
        cfg.model[name].num_classes = len(classes)
    cfg.work_dir, cfg.launcher, cfg.experiment_name = str(tmp_path / "work"), "none", f"{tmp_path.name}-{len(classes)}"
    prefix, pipeline = dict(img_path="img", seg_map_path="ann"), cfg.test_dataloader.dataset.pipeline
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.test_dataloader.dataset = dict(
        type="BaseSegDataset", data_root=str(tmp_path), data_prefix=prefix, metainfo=dict(classes=classes),
        pipeline=pipeline)  # fmt: skip
    return cfg


def test_checkpoints_of_other_models(folder: Path, tmp_path: Path):
    """In a test and for predictions: another number or order of classes, another head, no head, NaN."""
    content = torch.load(folder / "fpn.pth")
    state = content["state_dict"]
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    torch.save(backbone, tmp_path / "bare.pth")
    torch.save(dict(content, state_dict=dict(state, **{"neck.lateral_convs.0.conv.weight": torch.full(
        state["neck.lateral_convs.0.conv.weight"].shape, float("nan"))})), tmp_path / "nan.pth")  # fmt: skip
    found = apis.test(with_data(tmp_path), str(folder / "fpn.pth"))
    assert 0 <= found["mIoU"] <= 100
    four = (*CLASSES, "owl")
    for path, classes, says in (
        (
            folder / "fpn.pth",
            four,
            r"has other shapes: decode_head.conv_seg.weight \(3, 64, 1, 1\), in the model \(4, ",
        ),
        (folder / "fpn.pth", CLASSES[::-1], "'ground' is label 0 of the checkpoint and label 2 of the config"),
        (folder / "upernet.pth", CLASSES, r"it lacks neck \(\d+ tensors\), decode_head"),
        (tmp_path / "bare.pth", CLASSES, r"it lacks neck \(\d+ tensors\), decode_head \(\d+ tensors\); "),
        (tmp_path / "nan.pth", CLASSES, "NaN or infinite values in 1 tensor: neck.lateral_convs.0.conv.weight"),
    ):
        with pytest.raises(UsageError, match=says):
            apis.test(with_data(tmp_path, classes), str(path))
        with pytest.raises(UsageError, match=says):
            predict(with_data(tmp_path, classes), str(path), [folder / "in"], str(tmp_path / "out"), "cpu")
        assert not (tmp_path / "out").exists()
    renamed = predict(
        with_data(tmp_path, ("Boden", *CLASSES[1:])), str(folder / "fpn.pth"), [folder / "in"], str(tmp_path), "cpu"
    )
    assert json.loads(Path(renamed.file).read_text())["values"]["0"] == "ground"
    without_auxiliary = {name: value for name, value in state.items() if not name.startswith("auxiliary_head.")}
    torch.save(dict(content, state_dict=without_auxiliary), tmp_path / "deployed.pth")
    assert apis.test(with_data(tmp_path), str(tmp_path / "deployed.pth")) == found
