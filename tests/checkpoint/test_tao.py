"""Conversion of NVIDIA TAO's DINO to mmdet's DINO."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_fixtures import Detector, assert_loaded, authors_names
from conftest import ROOT, TINY, randomise
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tao_dino import TaoDetector
from torch import Tensor, nn

from mmgcvit import GCViT, GCViTClassifier, load_pretrained
from mmgcvit.__main__ import main
from mmgcvit.checkpoint import CheckpointError
from mmgcvit.checkpoint import tao as tao_module
from mmgcvit.checkpoint.commands import convert_file, inspect
from mmgcvit.checkpoint.layouts import export_state_dict
from mmgcvit.checkpoint.tao import TaoDino, convert_tao_dino, find_tao_dino
from mmgcvit.checkpoint.tao_settings import TaoSettings, read_categories

SIZES = [(150, 117), (101, 160)]
BODY = "model.model.backbone.0.body."


def tao_detector(stages: tuple[int, ...] = (1, 2, 3), seed: int = 0, **options: Any) -> TaoDetector:
    """Build TAO's DINO with random values everywhere, over a tiny GC ViT."""
    torch.manual_seed(seed)
    backbone = GCViT(TINY, out_indices=stages, pad="window")
    model = randomise(TaoDetector(backbone, tuple(16 * 2**i for i in stages), **options), seed).eval()
    for layer in (*model.model.model.bbox_embed, model.model.model.transformer.enc_out_bbox_embed):
        layer.layers[-1].weight.data *= 0.3  # boxes inside of the limits of mmdet
        layer.layers[-1].bias.data *= 0.3
    return model


def tao_names(model: TaoDetector) -> dict[str, Tensor]:
    """The state dict with the backbone under the authors' names, as TAO saves it."""
    state = model.state_dict()
    body = {name[len(BODY) :]: value for name, value in state.items() if name.startswith(BODY)}
    norms = {name: body.pop(name) for name in list(body) if name.startswith("norm")}
    body = authors_names(body, TINY) | norms
    return {f"{BODY}{name}": value for name, value in body.items()} | {
        name: value for name, value in state.items() if not name.startswith(BODY)
    }


def mmdet_detector(converted: TaoDino) -> nn.Module:
    """Build the config of this repository with the converted settings, and load the converted tensors strictly."""
    pytest.importorskip("mmdet")
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    config = Config.fromfile(ROOT / "configs/detection/dino-4scale_gcvit-tiny_8xb2-12e_coco.py")
    config.merge_from_dict(dict(model=copy.deepcopy(converted.model)))
    model = MODELS.build(config.model)
    model.load_state_dict(converted.state_dict, strict=True)
    return model.eval()


def predict(model: nn.Module, images: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Scores and boxes of mmdet's DINO for all layers, as those of :class:`TaoDetector`."""
    from mmdet.structures import DetDataSample

    samples = [
        DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=tuple(images.shape[2:]))) for size in sizes
    ]
    outputs = model.forward_transformer(model.extract_feat(images), samples)
    outputs = {name: value for name, value in outputs.items() if name in ("hidden_states", "references")}
    return model.bbox_head(**outputs)


def batch(sizes: list[tuple[int, int]]) -> Tensor:
    """Random images, padded with zeros."""
    images = torch.zeros(len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    return images


def differ(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> float:
    """Largest difference of scores and boxes."""
    return max((a - b).abs().max().item() for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(shared=True, classes=3, levels=5),
        dict(stages=(0, 1, 2, 3), levels=5, points=(2, 4), layers=(1, 2), seed=1),
        dict(stages=(2, 3), levels=2, queries=9),
    ],
)
@torch.no_grad()
def test_equal_outputs(options: dict):
    """Batch of two odd sizes with padding: mmdet's scores and boxes of each layer are those of TAO's layout."""
    theirs = tao_detector(**options)
    converted = convert_tao_dino(tao_names(theirs), keep_background=True)
    ours = mmdet_detector(converted)
    images = batch(SIZES)
    wanted = theirs(images, SIZES)
    assert wanted[1].min() > 0.002
    assert wanted[1].max() < 0.998
    assert wanted[1].std() > 0.1
    assert differ(predict(ours, images, SIZES), wanted) < 2e-4


@torch.no_grad()
def test_limit_of_boxes():
    """mmdet clips boxes between the layers of its decoder at other limits; this is the only difference."""
    theirs = tao_detector()
    theirs.model.model.transformer.enc_out_bbox_embed.layers[-1].bias.data += 10  # boxes as large as the image
    for layer in theirs.model.model.bbox_embed:
        layer.layers[-1].bias.data -= 4
    ours = mmdet_detector(convert_tao_dino(tao_names(theirs), keep_background=True))
    images = batch(SIZES)
    got = predict(ours, images, SIZES)
    assert differ(got, theirs(images, SIZES)) > 0.01
    theirs.limit = 1e-3
    assert differ(got, theirs(images, SIZES)) < 2e-4


@torch.no_grad()
def test_classes_without_background():
    """TAO's background, whose scores are low after training, takes part in the selection of queries only."""
    theirs = tao_detector()
    inner = theirs.model.model
    for layer in (*inner.class_embed, inner.transformer.enc_out_class_embed):
        layer.bias.data[0] -= 100
    images = batch(SIZES)
    scores, boxes = theirs(images, SIZES)
    converted = convert_tao_dino(tao_names(theirs))
    assert converted.model["bbox_head"] == dict(num_classes=4)
    assert converted.category_ids == (1, 2, 3, 4)
    assert converted.model["test_cfg"] == dict(max_per_img=12 * 4)  # mmdet selects among all scores
    assert differ(predict(mmdet_detector(converted), images, SIZES), (scores[..., 1:], boxes)) < 2e-4
    notes = "\n".join(converted.notes)
    assert "classes: 4 of TAO's 5; label = category id - 1" in notes
    assert "left out: TAO's class 0, its background" in notes

    state = tao_names(theirs)
    named = convert_tao_dino(state, {4: "dog", 2: "cat"})
    assert (named.classes, named.category_ids) == (("dog", "cat"), (4, 2))
    labels = named.state_dict["dn_query_generator.label_embedding.weight"]
    assert torch.equal(labels, state["model.model.label_enc.weight"][[4, 2]])
    for i in range(4):
        name = f"class_embed.{i}" if i < 3 else "transformer.enc_out_class_embed"
        for kind in ("weight", "bias"):
            wanted = state[f"model.model.{name}.{kind}"][[4, 2]]
            assert torch.equal(named.state_dict[f"bbox_head.cls_branches.{i}.{kind}"], wanted)
    assert "left out: TAO's classes 0, 1, 3, which are no categories" in named.notes
    with pytest.raises(CheckpointError, match="category ids 5; allowed: 0 to 4"):
        convert_tao_dino(state, {1: "a", 5: "b"})
    with pytest.raises(CheckpointError, match="allowed: one of them"):
        convert_tao_dino(state, {1: "a"}, keep_background=True)


def test_every_tensor_is_used_once():
    model = tao_detector()
    state = tao_names(model)
    assert find_tao_dino(state) == "model.model."
    converted = convert_tao_dino(state, keep_background=True)
    outside = {name.removeprefix("model.model.") for name in state if not name.startswith(BODY)}
    second = {
        name for name in outside if name.startswith(("transformer.decoder.class_e", "transformer.decoder.bbox_e"))
    }
    assert converted.used.keys() == outside - second
    assert len(set(converted.used.values())) == len(converted.used)
    ours = mmdet_detector(converted).state_dict()
    assert {name for name in ours if not name.startswith("backbone.")} == set(converted.used.values())
    assert f"left out: {len(second)} tensors of transformer.decoder, equal to those of the heads" in (converted.notes)
    index = [name for name in state if name.endswith("relative_position_index")]
    assert f"left out: {len(index)} constants of the backbone, which are computed: relative_position_index" in (
        converted.notes
    )
    body = [name for name in state if name.startswith(BODY)]
    assert len(body) - len(index) == sum(name.startswith("backbone.") for name in converted.state_dict)
    for name in ("level_embed", "memory_trans_norm.bias", "decoder.layers.2.norms.0.weight"):
        source = next(theirs for theirs, other in converted.used.items() if other == name)
        assert torch.equal(ours[name], state[f"model.model.{source}"])
    body = GCViT(TINY, out_indices=(1, 2, 3))
    body.load_state_dict({k[9:]: v for k, v in ours.items() if k.startswith("backbone.")})
    for name, value in model.model.model.backbone[0].body.state_dict().items():
        assert torch.equal(body.state_dict()[name], value), name


@pytest.mark.parametrize(("name", "arch"), [("tiny", "tiny"), ("large", "large-384")])
def test_published_sizes(name: str, arch: str):
    """TAO's DINO of full size, without values, is that of our configs, but for the listed settings."""
    pytest.importorskip("mmdet")
    from mmdet.registry import MODELS

    base = Config.fromfile(ROOT / f"configs/detection/dino-4scale_gcvit-{name}_8xb2-12e_coco.py").model
    channels = tuple(base.neck.in_channels)
    with torch.device("meta"):
        theirs = TaoDetector(
            GCViT(arch, out_indices=(1, 2, 3)),
            channels,
            classes=91,
            queries=900,
            layers=(6, 6),
            points=(4, 4),
            hidden=2048,
        )
    state = {
        k: v for k, v in theirs.state_dict().items() if "decoder.class_embed" not in k and "decoder.bbox_" not in k
    }
    body, left = export_state_dict({k[len(BODY) :]: v for k, v in state.items() if k.startswith(BODY)}, "nvidia")
    assert left == []
    state = {f"{BODY}{k}": v for k, v in body.items()} | {k: v for k, v in state.items() if not k.startswith(BODY)}
    converted = convert_tao_dino(state, {i: f"class {i}" for i in range(1, 81)})
    config = Config(dict(model=copy.deepcopy(base)))
    config.merge_from_dict(dict(model=copy.deepcopy(converted.model)))
    given, own = leaves(config.model), leaves(base)
    assert {key: value for key, value in given.items() if own.get(key) != value} == {
        "num_feature_levels": 4, "backbone.pad": "window", "neck.bias": True,
        "backbone.global_query_reductions": (3, 2, 0, 0), "encoder.layer_cfg.self_attn_cfg.num_heads": 8,
        "encoder.layer_cfg.self_attn_cfg.num_points": 4, "decoder.layer_cfg.cross_attn_cfg.num_heads": 8,
        "decoder.layer_cfg.cross_attn_cfg.num_points": 4,
    }  # fmt: skip
    assert config.model.backbone.init_cfg is None
    init_default_scope("mmdet")
    with torch.device("meta"):
        model = MODELS.build(config.model)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in converted.state_dict.items()} == shapes


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings of a config by their dotted names."""
    found = {}
    for key, value in config.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_tensors_without_a_counterpart():
    state = tao_names(tao_detector(layers=(1, 1)))
    add = {
        "transformer.encoder.norm.weight": "pre_norm=True",
        "label_embedding.weight": "decoder_sa_type='ca_label'",
        "transformer.decoder.layers.0.self_attn.value_proj.weight": "decoder_sa_type='ca_content'",
        "refpoint_embed.weight": "two_stage_type='no' or additional queries",
        "transformer.two_stage_wh_embedding.weight": "two_stage_learn_wh=True",
        "transformer.encoder.layers.0.norm_channel.weight": "add_channel_attention=True",
    }
    for name, setting in add.items():
        with pytest.raises(CheckpointError) as caught:
            convert_tao_dino(state | {f"model.model.{name}": torch.ones(2)})
        assert f"1 tensor has no counterpart in mmdet's DINO: {name}" in str(caught.value)
        assert f"trained with settings of TAO that mmdet's DINO does not have: {setting}" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"no counterpart in mmdet's DINO: criterion\.weight"):
        convert_tao_dino(state | {"criterion.weight": torch.ones(2)})
    for name in (
        "input_proj.3.1.bias",
        "transformer.tgt_embed.weight",
        "label_enc.weight",
        "transformer.enc_out_class_embed.bias",
    ):
        with pytest.raises(CheckpointError, match=f"1 tensor is missing: {name}"):
            convert_tao_dino({k: v for k, v in state.items() if k != f"model.model.{name}"})
    with pytest.raises(CheckpointError, match=r"has no norm2\.bias, norm2\.weight: the norm of each map"):
        convert_tao_dino({k: v for k, v in state.items() if not k.startswith(f"{BODY}norm2.")})
    other = state | {"model.model.transformer.decoder.class_embed.0.bias": torch.zeros(5)}
    with pytest.raises(CheckpointError, match=r"class_embed\.0\.bias differs from class_embed\.0\.bias"):
        convert_tao_dino(other)
    with pytest.raises(CheckpointError, match="not a DINO of NVIDIA TAO"):
        convert_tao_dino({k.removeprefix(BODY): v for k, v in state.items() if k.startswith(BODY)})
    with pytest.raises(CheckpointError, match="128 attention weights for 3 heads and 4 levels"):
        convert_tao_dino(state, settings=TaoSettings(nheads=3))


def test_impossible_shapes():
    """Wrong shapes and numbers of layers are errors of the conversion, not of torch."""
    state = tao_names(tao_detector(layers=(1, 1)))
    for name, value, message in (
        ("transformer.level_embed", torch.ones(0, 256), "no levels"),
        ("transformer.level_embed", torch.ones(4, 128), "a transformer of 128 channels"),
        ("transformer.level_embed", torch.ones(4), r"level_embed \(4,\); allowed: 2 axes"),
        ("label_enc.weight", torch.ones(5, 256), r"\(5, 256\); allowed for 5 classes: 6 rows"),
        ("label_enc.weight", torch.tensor(1.0), r"\(\); allowed for 5 classes: 6 rows"),
        ("transformer.enc_out_class_embed.bias", torch.ones(4), r"\(4,\); allowed for 5 classes: 5 rows"),
        ("transformer.decoder.ref_point_head.layers.0.weight", torch.ones(256, 256), r"allowed: \(256, 512\)"),
        ("input_proj.0.0.weight", torch.ones(256, 48, 1, 1), "input_proj has .* allowed: those of maps of a GC ViT-16"),
        ("transformer.decoder.class_embed.0.bias", torch.ones(5, dtype=torch.int32), "differs from class_embed"),
        (f"transformer.encoder.layers.{'9' * 5000}.norm1.bias", torch.ones(1), "no counterpart"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_tao_dino(state | {f"model.model.{name}": value})


def test_norms_and_stages_that_the_detector_does_not_use():
    state = tao_names(tao_detector((1, 2), levels=3, layers=(1, 1)))
    more = {f"{BODY}norm{i}.{kind}": torch.ones(16 * 2**i) for i in (0, 3) for kind in ("weight", "bias")}
    assert convert_tao_dino(state | more).state_dict.keys() == convert_tao_dino(state).state_dict.keys()
    assert any(
        note.startswith("left out: norm0.weight, norm0.bias, norm3.weight")
        for note in convert_tao_dino(state | more).notes
    )


@pytest.mark.parametrize("features", [128, 256])
def test_encoding_of_boxes(features: int, monkeypatch):
    """The first layer gives the same numbers with the encodings of mmdet 3.3 and of OneDL's mmdet."""
    transformer = pytest.importorskip("mmdet.models.layers.transformer.utils")
    state = tao_names(tao_detector(layers=(1, 1)))
    monkeypatch.setattr(tao_module, "dino_coordinate_features", lambda channels: features)
    name = "transformer.decoder.ref_point_head.layers.0.weight"
    weight = convert_tao_dino(state).state_dict[name.removeprefix("transformer.")]
    boxes = torch.rand(2, 7, 4)
    wanted = transformer.coordinate_to_encoding(boxes, 128) @ state[f"model.model.{name}"].T
    assert torch.allclose(transformer.coordinate_to_encoding(boxes, features) @ weight.T, wanted, atol=1e-5)
    monkeypatch.setattr(tao_module, "dino_coordinate_features", lambda channels: 64)
    with pytest.raises(CheckpointError, match="encodes a coordinate in 64 numbers; allowed: 128, 256"):
        convert_tao_dino(state)


def write_lightning(path: Path, state: dict[str, Tensor]) -> Path:
    """Write a checkpoint as PyTorch Lightning does."""
    content = {
        "epoch": 11, "global_step": 700, "pytorch-lightning_version": "2.0.8", "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}}}, "optimizer_states": [{"state": {}, "param_groups": []}],
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None, "dirpath": "results"}},
        "lr_schedulers": [{"milestones": {11: 1}, "last_epoch": 12}],
    }  # fmt: skip
    torch.save(content, path)
    return path


@torch.no_grad()
def test_convert_file(tmp_path: Path):
    """The written config builds a model into which the written checkpoint loads whole."""
    pytest.importorskip("mmdet")
    from mmdet.apis import init_detector

    from mmgcvit.checkpoint.complete import require_complete

    theirs = tao_detector()
    source = write_lightning(tmp_path / "dino_model.pth", tao_names(theirs))
    names = [dict(id=i, name=name) for i, name in ((3, "screw"), (1, "nut"), (4, "bolt"))]
    (tmp_path / "train.json").write_text(json.dumps(dict(categories=names)))
    spec = dict(model=dict(nheads=8, num_select=25), dataset=dict(augmentation=dict(input_std=[0.2, 0.2, 0.2])))
    (tmp_path / "tao.yaml").write_text(json.dumps(spec))
    path, report = convert_file(
        str(source), tmp_path / "ours.pth", categories=tmp_path / "train.json", spec=tmp_path / "tao.yaml"
    )
    assert report.target == "mmdet-dino"
    assert report.layout == "nvidia-detection"
    assert "left in the file" not in str(report)
    assert f"config: {tmp_path / 'ours.py'}" in str(report)
    content = torch.load(path, weights_only=True)
    assert content["meta"]["dataset_meta"] == dict(classes=("screw", "nut", "bolt"))
    assert content["meta"]["category_ids"] == (3, 1, 4)

    config = Config.fromfile(tmp_path / "ours.py")
    assert config.load_from == str(path)
    assert config.val_dataloader.dataset.metainfo.classes == ("screw", "nut", "bolt")
    assert config.model.data_preprocessor.std == [51.0] * 3
    assert config.model.test_cfg.max_per_img == 25
    assert config.model.type == "DINO"
    assert config.model.backbone.pad == "window"
    model = init_detector(config, str(path), device="cpu")
    assert require_complete(model, content).is_exact
    assert model.dataset_meta["classes"] == ("screw", "nut", "bolt")
    with pytest.raises(
        CheckpointError, match=r"It is a DINO of NVIDIA TAO: convert it by `mmgcvit convert-checkpoint`"
    ):
        require_complete(model, torch.load(source, weights_only=True))
    images = batch(SIZES)
    scores, boxes = predict(model, images, SIZES)
    theirs.model.model.class_embed = nn.ModuleList(cut(x) for x in theirs.model.model.class_embed)
    theirs.model.model.transformer.enc_out_class_embed = cut(theirs.model.model.transformer.enc_out_class_embed)
    assert differ((scores, boxes), theirs(images, SIZES)) < 2e-4


def cut(layer: nn.Linear) -> nn.Linear:
    """A layer with the scores of the classes 3, 1 and 4."""
    layer.weight, layer.bias = (nn.Parameter(x[[3, 1, 4]]) for x in (layer.weight, layer.bias))
    return layer


def test_convert_file_options(tmp_path: Path, files):
    source = write_lightning(tmp_path / "dino_model.pth", tao_names(tao_detector(layers=(1, 1))))
    path, report = convert_file(
        str(source), tmp_path / "a.safetensors", "mmdet-dino", keep_background=True, hashed=True
    )
    assert path.with_suffix(".py").is_file()
    assert "label = category id" in str(report)
    assert {p.name for p in tmp_path.iterdir()} == {source.name, path.name, path.with_suffix(".py").name}
    (tmp_path / "b.py").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b\.py exists"):
        convert_file(str(source), tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()
    convert_file(str(source), tmp_path / "b.pth", force=True)
    assert "DINO of NVIDIA TAO" in (tmp_path / "b.py").read_text()
    _, report = convert_file(str(source), tmp_path / "c.pth", "mmgcvit")
    assert "the detector's other parts keep TAO's names: mmdet cannot load them" in report.notes
    with pytest.raises(CheckpointError, match=r"allowed with: mmdet-dino"):
        convert_file(str(files["nvidia"]), tmp_path / "d.pth", keep_background=True)
    with pytest.raises(CheckpointError, match="not a DINO of NVIDIA TAO"):
        convert_file(str(files["nvidia"]), tmp_path / "d.pth", "mmdet-dino")
    assert not (tmp_path / "d.py").exists()


def test_backbone_alone(tmp_path: Path):
    """TAO's detector file initialises the backbone of any detector."""
    theirs = tao_detector((0, 1, 2, 3), levels=5, layers=(1, 1))
    source = write_lightning(tmp_path / "dino_model.pth", tao_names(theirs))
    model = Detector()
    report = load_pretrained(model, source)
    assert report.layout == "nvidia-detection"
    assert report.left_initial == []
    assert "the file has a whole DINO of NVIDIA TAO: `mmgcvit convert-checkpoint` converts it" in report.notes
    for name, value in theirs.model.model.backbone[0].body.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    said = inspect(str(source))
    assert "optimizer state  yes\n" in said
    assert "layout           nvidia-detection under 'model.model.backbone.0.body.'\n" in said
    assert "NVIDIA TAO's DINO: 5 classes with the background, 12 queries, 5 levels" in said
    more = dict(tao_names(theirs)) | {"model.model.transformer.encoder.norm.bias": torch.ones(2)}
    said = inspect(str(write_lightning(tmp_path / "other.pth", more)))
    assert "NVIDIA TAO's DINO; it cannot be converted whole: " in said


def test_classifier(authors_dict, classifier, tmp_path: Path):
    """TAO's classifiers have the network under ``model.backbone.`` and the head under ``model.decoder.fc.``."""
    state = {f"model.backbone.{k}": v for k, v in authors_dict.items() if not k.startswith("head.")}
    state |= {f"model.decoder.fc.{kind}": authors_dict[f"head.{kind}"] for kind in ("weight", "bias")}
    source = write_lightning(tmp_path / "classifier.pth", state)
    model = GCViTClassifier(dict(arch=TINY), num_classes=5)
    report = load_pretrained(model, source)
    assert report.is_exact
    assert_loaded(model.backbone, classifier)
    assert torch.equal(model.head.weight, classifier.head.weight)
    path, _ = convert_file(str(source), tmp_path / "ours.pth")
    again = GCViTClassifier(dict(arch=TINY), num_classes=5)
    again.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    assert torch.equal(again.head.bias, classifier.head.bias)


def test_encrypted_files(tmp_path: Path, capsys):
    torch.save(dict(state_dict=b"\x8a\x01secret", state_dict_encrypted=True, epoch=3), tmp_path / "model.tlt")
    (tmp_path / "model.etlt").write_bytes(bytes(4) + b"secret" * 100)
    for name in ("model.tlt", "model.etlt"):
        assert main(["weights", "inspect", str(tmp_path / name)]) == 1
        said = capsys.readouterr().err
        assert "encrypted by NVIDIA TAO: load it in TAO with your key, and save it as .pth" in said


def test_list_and_fetch(capsys):
    assert main(["weights", "list"]) == 0
    said = capsys.readouterr().out
    assert "…" not in said
    (line,) = [line for line in said.splitlines() if "pretrained_dino_coco:" in line]
    for value in ("ngc://nvidia/tao/pretrained_dino_coco:dino_gc_vit_tiny_trainable_v1.0", "tiny", "CC BY-NC-SA 4.0"):
        assert value in line
    assert "by hand" in said
    assert "NVIDIA AI Enterprise EULA" in said
    assert main(["weights", "fetch", "ngc://nvidia/tao/pretrained_dino_nvimagenet:gcvit_tiny_nvimagenet"]) == 1
    said = capsys.readouterr().err
    assert "to download by hand from https://catalog.ngc.nvidia.com/orgs/nvidia/teams/tao/models/" in said
    with pytest.raises(CheckpointError, match="ngc://nvidia/tao/other"):
        load_pretrained(Detector(), "ngc://nvidia/tao/other")


def test_experiment_files(tmp_path: Path):
    path = tmp_path / "tao.yaml"
    path.write_text("model: {nheads: 4, pe_temperatureH: 10, pe_temperatureW: 10}\nresults_dir: x\n")
    assert TaoSettings.from_spec(path) == TaoSettings(nheads=4, temperature=10)
    path.write_text("dataset: {augmentation: {input_mean: [0, 0, 0], input_std: [1, 1, 1]}}")
    assert TaoSettings.from_spec(path) == TaoSettings(mean=(0, 0, 0), std=(1, 1, 1))
    for text, message in {
        "model: {pe_temperatureH: 10}": "pe_temperatureH=10, pe_temperatureW=20; allowed: the same",
        "model: {nheads: no}": "nheads=False; allowed: a positive integer",
        "model: {num_select: 2.5}": "num_select=2.5; allowed: a positive integer",
        "model: {num_select: [300]}": "num_select=.*; allowed: a positive integer",
        "dataset: {augmentation: {input_std: [0.2, 0.2]}}": r"std=\(0.2, 0.2\); allowed: three numbers >= 1e-06",
        "dataset: {augmentation: {input_std: [0.2, 0.2, 0]}}": r"std=\(0.2, 0.2, 0\); allowed: three numbers",
        "dataset: {augmentation: {input_mean: a}}": "mean='a'; allowed: three numbers >= 0",
        "model: [1]": "no section 'model'",
        "- 1": "no section 'model'",
        "a: [": "cannot be read",
    }.items():
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            TaoSettings.from_spec(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        TaoSettings.from_spec(tmp_path / "none.yaml")


def test_category_files(tmp_path: Path):
    path = tmp_path / "train.json"
    for text, message in {
        "[]": "allowed: a COCO annotation file",
        '{"categories": []}': "categories is empty",
        '{"categories": [{"id": 1}]}': "has no 'name'",
        '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}': "an entry above has the same id",
        '{"categories": [{"id": "x", "name": "a"}]}': "allowed: ids that are integers",
        "{": "not JSON",
    }.items():
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_categories(path)
    path.write_text('{"categories": [{"id": 3, "name": "b"}, {"id": "1", "name": "a"}]}')
    assert list(read_categories(path).items()) == [(3, "b"), (1, "a")]
