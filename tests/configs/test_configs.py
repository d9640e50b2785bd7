"""Every config is loaded, its model is built, trained for one step and run, and its optimizer settings are checked.

Everything is used as configured, except for smaller images and random weights.
"""

from __future__ import annotations

import copy
import functools
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, TINY

mmdet_testing = pytest.importorskip("mmdet.testing")

from mmengine.config import Config  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402

from mmgcvit.analysis import PUBLISHED  # noqa: E402
from mmgcvit.checkpoint.weights import WEIGHTS  # noqa: E402
from mmgcvit.datasets.pipelines import COLOUR  # noqa: E402

NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
CONFIGS = sorted(
    str(p.relative_to(ROOT / "configs"))
    for p in (ROOT / "configs").rglob("*.py")
    if not {"_base_", "libraries"} & set(p.parts)  # those of libraries train in test_library_configs.py
)


DETECTION = [config for config in CONFIGS if config.startswith("detection/")]
PANOPTIC = [config for config in DETECTION if "panoptic" in config]  # they train in test_panoptic_configs.py
SEGMENTATION = [config for config in CONFIGS if config.startswith("segmentation/")]
# One config of each kind runs in the fast suite; the others are marked slow.
QUICK = (
    "nano",
    "template",
    "faster-rcnn_gcvit-tiny_fpn_1x_coco",
    "retinanet",
    "dino-4scale_gcvit-tiny",
    "mask-rcnn_gcvit-xxtiny_fpn_1x",
    "mask-rcnn_gcvit-xxtiny_w24",
    "xxtiny_upernet_8xb2-160k_ade20k-512x512.py",
    "tiny_fpn_8xb2-80k_ade20k-512x512.py",
    "tiny_segformer_8xb2-160k_ade20k-512x512.py",
    "tiny_mask2former",
)
PARAMETERS = {
    "mask-rcnn_gcvit-tiny": 47.86,
    "cascade-mask-rcnn_gcvit-tiny": 84.72,
    "cascade-mask-rcnn_gcvit-small": 107.46,
    "cascade-mask-rcnn_gcvit-base": 146.56,
}  # in millions, with the same heads as the published models


@functools.cache
def parse(path: str) -> Config:
    """Parse a config file once; callers must not modify the result."""
    return Config.fromfile(path)


def load(config: str) -> Config:
    """Load a config of ``configs/`` and activate its default scope."""
    cfg = copy.deepcopy(parse(str(ROOT / "configs" / config)))
    init_default_scope(cfg.default_scope)
    return cfg


def build_untrained(cfg: Config) -> torch.nn.Module:
    """Build the model with random weights instead of downloaded ones."""
    cfg.model.backbone.pop("init_cfg", None)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


@functools.cache
def meta_model(config: str) -> torch.nn.Module:
    """Build a config's model once on the meta device; callers must not modify the result."""
    cfg = load(config)
    with torch.device("meta"):
        return MODELS.build(cfg.model)


def build_on_meta(config: str) -> tuple[Config, torch.nn.Module]:
    """Return a config and its model on the meta device, to check names and shapes without allocating memory."""
    return load(config), meta_model(config)


def make_detection_batch(with_mask: bool, classes: int, scale: int = 1, channels: int = 3) -> dict:
    """Two images of different odd sizes, with boxes and optionally masks."""
    shapes = [(channels, 90 * scale, 150 * scale), (channels, 129 * scale, 100 * scale)]
    return mmdet_testing.demo_mm_inputs(
        2, image_shapes=shapes, num_items=[3, 2], num_classes=classes, with_mask=with_mask
    )


def train_one_step(cfg: Config, model: torch.nn.Module, data: dict) -> dict[str, torch.Tensor]:
    """Run one training step, check that every trainable parameter gets a gradient, and return the losses."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train()
    loss, losses = model.parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
    assert loss.isfinite()
    optim_wrapper.backward(loss)
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, f"no gradient for {name}"
    optim_wrapper.step()
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n.startswith("backbone."))
    return losses


@pytest.mark.parametrize("config", [
    pytest.param(config, marks=() if any(name in config for name in QUICK) else pytest.mark.slow)
    for config in DETECTION if config not in PANOPTIC])  # fmt: skip
def test_detector_trains_a_step_and_infers(config: str) -> None:
    cfg = load(config)
    model = build_untrained(cfg)
    with_mask = getattr(getattr(model, "roi_head", None), "with_mask", False)
    # DINO selects its 900 queries from all feature map locations, so its images must not be too small
    data = make_detection_batch(with_mask, 2, 2 if "dino" in config else 1, model.backbone.in_channels)
    losses = train_one_step(cfg, model, data)
    kinds = {re.sub(r"^(s|d|enc_)\d*\.?", "", name) for name in losses}
    assert {"loss_cls", "loss_bbox"} <= kinds
    assert ("loss_mask" in kinds) == with_mask

    model.eval()
    with torch.no_grad():
        results = model.test_step(data)
    assert len(results) == 2
    for result in results:
        assert result.pred_instances.bboxes.shape[1] == 4
        assert not with_mask or result.pred_instances.masks.shape[1:] == result.ori_shape


@pytest.mark.parametrize("config", [
    pytest.param(config, marks=() if any(name in config for name in QUICK) else pytest.mark.slow)
    for config in SEGMENTATION])  # fmt: skip
def test_segmentor_trains_a_step_and_infers(config: str) -> None:
    pytest.importorskip("mmseg")
    from mmseg.structures import SegDataSample

    cfg = load(config)
    assert tuple(cfg.model.data_preprocessor.size) == cfg.crop_size
    cfg.model.data_preprocessor.size = (96, 128)
    if cfg.model.test_cfg.mode == "slide":
        cfg.model.test_cfg.update(crop_size=(64, 64), stride=(40, 40))
    model = build_untrained(cfg)
    classes, channels = cfg.model.decode_head.num_classes, model.backbone.in_channels

    def make_batch(*shapes: tuple[int, int]) -> dict:
        samples = [SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape)) for shape in shapes]
        for sample, shape in zip(samples, shapes, strict=True):
            labels = torch.randint(0, classes, (shape[0] // 8 + 1, shape[1] // 8 + 1))
            labels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)[: shape[0], : shape[1]]
            labels[:5] = 255
            sample.set_data(dict(gt_sem_seg=PixelData(data=labels[None])))
        return dict(
            inputs=[torch.randint(0, 256, (channels, *shape), dtype=torch.uint8) for shape in shapes],
            data_samples=samples,
        )

    losses = train_one_step(cfg, model, make_batch((75, 101), (96, 128)))
    auxiliary_losses = {"aux.loss_ce"} if cfg.model.get("auxiliary_head") else set()
    expected_losses = (
        {"decode.loss_cls", "decode.loss_mask", "decode.loss_dice"}
        if "mask2former" in config
        else {"decode.loss_ce"} | auxiliary_losses
    )
    assert expected_losses <= losses.keys()
    model.eval()
    with torch.no_grad():
        results = model.test_step(make_batch((75, 101), (75, 101)))
    for result in results:
        assert result.pred_sem_seg.data.shape == (1, 75, 101)
        assert result.seg_logits.data.shape == (classes, 75, 101)
        assert result.seg_logits.data.isfinite().all()


@pytest.mark.parametrize("config", DETECTION + SEGMENTATION)
def test_no_weight_decay_for_norms_and_bias_tables(config: str) -> None:
    cfg, model = build_on_meta(config)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = {f"{n}.{k}" for n, m in model.named_modules() if isinstance(m, NORMS) for k, _ in m.named_parameters()}
    embeddings = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        no_decay = name in norms or name.endswith("relative_position_bias_table")
        if cfg.optim_wrapper.get("constructor") == "GCViTLayerDecayOptimWrapperConstructor":
            no_decay = no_decay or parameter.ndim == 1 or ("mask2former" in config and name in embeddings)
        assert decay[id(parameter)] == (0 if no_decay else cfg.optim_wrapper.optimizer.weight_decay), name


@pytest.mark.parametrize("config", [config for config in CONFIGS if re.search(r"\d+xb\d+", config)])
def test_base_batch_size_matches_the_name(config: str) -> None:
    """``8xb2`` means 8 GPUs x 2 images; gradient accumulation multiplies the global batch size."""
    cfg = load(config)
    gpus, batch_size = map(int, re.search(r"_(\d+)xb(\d+)[-_]", config).groups())
    accumulative_counts = cfg.optim_wrapper.get("accumulative_counts", 1)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=gpus * batch_size * accumulative_counts)
    assert cfg.train_dataloader.batch_size == batch_size


@pytest.mark.parametrize("config", [config for config in CONFIGS if not re.search(r"\d+xb\d+", config)])
def test_base_batch_size_of_other_configs(config: str) -> None:
    """mmdet's conventional 8 GPUs x 2 images on its datasets; the batch size of a single process elsewhere."""
    cfg = load(config)
    if config.startswith("classification/gcvit-tiny_imagenet"):  # evaluation only
        expected = 4096
    else:
        on_gpus = cfg.data_root in ("data/coco/", "data/VOCdevkit/", "data/lvis_v1/")
        expected = (8 if on_gpus else 1) * cfg.train_dataloader.batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=expected)


@pytest.mark.parametrize("config", DETECTION + SEGMENTATION)
def test_custom_keys_weights_and_channels_match_the_model(config: str) -> None:
    cfg, model = build_on_meta(config)
    names = [n for n, _ in model.named_parameters()]
    for key in cfg.optim_wrapper.get("paramwise_cfg", {}).get("custom_keys", {}):
        assert any(key in n for n in names), f"custom key {key!r} matches no parameter"
    assert cfg.custom_imports.imports[0] == "mmgcvit"
    assert cfg.model.backbone.type == "GCViT"
    if "init_cfg" in cfg.model.backbone:
        assert WEIGHTS[cfg.model.backbone.init_cfg.checkpoint].arch == cfg.model.backbone.arch
    consumer = cfg.model.get("neck") or cfg.model.get("panoptic_head") or cfg.model.decode_head
    assert tuple(consumer.in_channels) == model.backbone.out_channels
    if "0k_" in config:  # the schedule ends with the last iteration
        assert re.search(r"-(\d+)k_", config)[1] + "000" == str(cfg.train_cfg.max_iters)
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
        assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameters(name: str) -> None:
    config = f"{name}_fpn_{'ms-crop-3x' if 'cascade' in name else '1x'}_coco"
    _, model = build_on_meta(f"detection/{config}.py")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions, 2) == PARAMETERS[name]
    assert abs(millions / PUBLISHED[config].parameters - 1) < 0.01


@pytest.mark.parametrize(("arch", "exact"), [("tiny", 58.02), ("small", 82.75), ("base", 123.83)])
def test_published_parameters_of_segmentors(arch: str, exact: float) -> None:
    for windows, tolerance in (("_w7", 0.005), ("", 0.1)):
        config = f"gcvit-{arch}{windows}_upernet_8xb2-160k_ade20k-512x512"
        _, model = build_on_meta(f"segmentation/{config}.py")
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert abs(millions - exact) < tolerance
        assert abs(millions / PUBLISHED[config].parameters - 1) < 0.02


@pytest.mark.parametrize(
    ("head", "exact"), [("fpn_8xb2-80k", 32.00), ("segformer_8xb2-160k", 28.30), ("mask2former_8xb2-160k", 47.55)]
)
def test_parameters_of_other_heads(head: str, exact: float) -> None:
    _, model = build_on_meta(f"segmentation/gcvit-tiny_{head}_ade20k-512x512.py")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == exact


@pytest.mark.parametrize("config", SEGMENTATION)
def test_tta_uses_several_scales_and_flips(config: str) -> None:
    views = load(config).tta_pipeline[1].transforms
    assert len({tuple(resize.scale) for resize in views[0]}) > 1
    flip_probs = {flip.prob for view in views for flip in view if flip.type == "RandomFlip"}
    assert flip_probs == (set() if "digits" in config else {0.0, 1.0})  # flipping would change a digit


@pytest.mark.slow
def test_mask2former_learns() -> None:
    """The loss decreases in 30 steps on two images, with the configured head and optimizer and a narrow backbone."""
    pytest.importorskip("mmseg")
    from mmseg.structures import SegDataSample

    cfg = load("segmentation/gcvit-tiny_mask2former_8xb2-160k_ade20k-512x512.py")
    nano = load("segmentation/_base_/upernet_gcvit-nano.py").model
    cfg.model.backbone, cfg.model.decode_head.in_channels = nano.backbone, nano.decode_head.in_channels
    cfg.model.data_preprocessor.size = (64, 96)
    model = build_untrained(cfg).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {group["lr"] for group in optim_wrapper.optimizer.param_groups}
    assert len(rates) > 5  # layer-wise learning rate decay
    assert max(rates) == cfg.optim_wrapper.optimizer.lr
    generator = torch.Generator().manual_seed(0)
    data = dict(inputs=[], data_samples=[])
    for top, left in ((10, 20), (30, 50)):
        image = torch.randint(0, 90, (3, 64, 96), dtype=torch.uint8, generator=generator)
        labels = torch.zeros(1, 64, 96, dtype=torch.int64)
        image[:, top : top + 30, left : left + 30] += 150
        labels[:, top : top + 30, left : left + 30], labels[:, :4] = 7, 255
        data["inputs"].append(image)
        data["data_samples"].append(
            SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)), gt_sem_seg=PixelData(data=labels))
        )
    history = []
    for _ in range(30):
        loss, losses = model.parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
        assert all(value.isfinite() for value in losses.values())
        optim_wrapper.update_params(loss)
        history.append(loss.item())
    assert sum(history[-5:]) < sum(history[:5])


def test_windows_divide_the_crops() -> None:
    """Unless a config chooses other windows, no padding is needed at its crop size."""
    for config in SEGMENTATION:
        if not any(name in config for name in ("_w7", "_w24", "nano", "template")):
            cfg, model = build_on_meta(config)
            assert not any(side % model.backbone.pad_multiple for side in cfg.crop_size), config


@pytest.mark.parametrize("config", DETECTION + SEGMENTATION)
def test_sync_bn_is_used_where_batches_per_gpu_are_small(config: str) -> None:
    expected = "cascade-mask" in config or (
        config in SEGMENTATION and not any(name in config for name in ("nano", "template", "mask2former"))
    )
    assert ("SyncBN" in str(load(config).model)) == expected


def test_metafiles_and_configs_have_no_one_gpu_variants() -> None:
    """They are resolved to their base configs; SyncBN and learning rate are adapted at run time."""
    assert not [path.name for path in (ROOT / "configs").rglob("*_1gpu*")]
    for metafile in (ROOT / "configs").rglob("*.yml"):
        assert "_1gpu" not in metafile.read_text()


def test_custom_imports_suffice_in_every_scope(tmp_path: Path) -> None:
    scopes = [scope for scope in ("mmengine", "mmdet", "mmseg", "mmpretrain") if find_spec(scope)]
    (tmp_path / "only.py").write_text("custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)\n")
    code = f"""
import importlib, sys
from mmengine.config import Config
from mmengine.registry import init_default_scope
assert 'mmgcvit' not in sys.modules
Config.fromfile('only.py')
for scope in {scopes}:
    init_default_scope(scope)
    models = importlib.import_module(scope + '.registry').MODELS
    print(scope, type(models.build(dict(type='GCViT', arch={TINY}))))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    built = [f"{scope} <class 'mmgcvit.backbone.gcvit.GCViT'>" for scope in scopes]
    assert result.stdout.splitlines()[-len(scopes) :] == built, result.stderr


def test_model_index_lists_every_config() -> None:
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    listed = []
    for metafile in index["Import"]:
        for model in yaml.safe_load((ROOT / metafile).read_text())["Models"]:
            assert model["Name"] == Path(model["Config"]).stem
            cfg = parse(str(ROOT / model["Config"]))
            length = {"Epochs": "max_epochs", "Iterations": "max_iters"}
            stated = {length[key]: value for key, value in model["Metadata"].items() if key in length}
            assert stated == {key: value for key, value in cfg.train_cfg.items() if key in length.values()}
            listed.append(model["Config"].removeprefix("configs/"))
    assert sorted(listed) == [c for c in CONFIGS if "template" not in c]


TEMPLATES = {"detection": ("custom_coco_template.py", "_base_/mask-rcnn_gcvit-nano_fpn.py"),
             "segmentation": ("custom_template.py", "_base_/upernet_gcvit-nano.py")}  # fmt: skip


def copy_template(folder: Path, base: str | None = None, task: str = "detection", **changes: str) -> Path:
    """Write a copy of a template with another base and text replaced, as a user would."""
    name, default = TEMPLATES[task]
    template = ROOT / "configs" / task / name
    text = template.read_text()
    assert f"_base_ = './{default}'" in text
    text = text.replace(f"_base_ = './{default}'", f"_base_ = '{template.parent}/{base or default}'")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    mine = folder / "mine.py"
    mine.write_text(text)
    return mine


OTHER_DATA = {"'data/my_data/'": "'elsewhere'", "('cat', 'dog')": "('date', 'fig', 'nut')"}


def test_detection_template_needs_two_changes_only(tmp_path: Path) -> None:
    """Setting the data root and the classes is enough for datasets, metric and heads."""
    before = copy_template(tmp_path).read_text().splitlines()
    mine = copy_template(tmp_path, **OTHER_DATA)
    assert sum(a != b for a, b in zip(before, mine.read_text().splitlines(), strict=True)) == 2
    cfg = Config.fromfile(str(mine))
    assert "my_data" not in cfg.pretty_text
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == "elsewhere"
        assert tuple(loader.dataset.metainfo.classes) == ("date", "fig", "nut")
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == "elsewhere/val.json"
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 3


NANO = [f"_base_/{p.name}" for p in sorted((ROOT / "configs/detection/_base_").glob("*-nano_fpn.py"))]
LARGE = ["mask-rcnn_gcvit-tiny_fpn_1x_coco.py", "dino-4scale_gcvit-tiny_8xb2-12e_coco.py",
         "cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco.py", "retinanet_gcvit-tiny_fpn_1x_coco.py"]  # fmt: skip


@pytest.mark.parametrize("base", NANO + LARGE)
def test_detection_template_suits_every_base(tmp_path: Path, base: str) -> None:
    cfg = Config.fromfile(str(copy_template(tmp_path, base, **OTHER_DATA)))
    assert set(re.findall(r"num_classes=(\d+)", cfg.pretty_text)) == {"3"}
    masks = "mask-rcnn" in base
    assert set(re.findall(r"with_mask=(\w+)", cfg.pretty_text)) == {str(masks)}
    assert cfg.val_evaluator.metric == (["bbox", "segm"] if masks else "bbox")
    assert ("max_iters" in cfg.train_cfg) == ("nano" in base)
    assert {"parts", "part"}.isdisjoint(cfg)
    init_default_scope("mmdet")
    with torch.device("meta"):
        MODELS.build(cfg.model)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_multispectral_template_loads_the_same_in_all_pipelines(task: str) -> None:
    stem = Path(TEMPLATES[task][0]).stem
    cfg, base = load(f"{task}/{stem}_multispectral.py"), load(f"{task}/{stem}.py")
    assert cfg.model.backbone.in_channels == len(cfg.model.data_preprocessor.mean) == 4
    assert not cfg.model.data_preprocessor.bgr_to_rgb
    pipelines = [cfg[f"{split}_dataloader"].dataset.pipeline for split in ("train", "val", "test")]
    pipelines += [cfg.tta_pipeline] if task == "segmentation" else []
    for pipeline in pipelines:
        assert (pipeline[0].type, pipeline[0].color_type) == ("LoadImageFromFile", "unchanged")
    types = [step.type for step in base.train_dataloader.dataset.pipeline]
    assert [step.type for step in pipelines[0]] == [t for t in types if t not in COLOUR]
    assert [step.type for step in pipelines[1]] == [step.type for step in base.val_dataloader.dataset.pipeline]
    assert "load" not in cfg


@pytest.mark.parametrize("base", [base for base in NANO if "/mask" not in base])
def test_nano_detectors_train_a_step_and_infer(tmp_path: Path, base: str) -> None:
    test_detector_trains_a_step_and_infers(str(copy_template(tmp_path, base)))


SEG_NANO = [f"_base_/{p.name}" for p in sorted((ROOT / "configs/segmentation/_base_").glob("*-nano.py"))]
SEG_LARGE = [
    Path(config).name for config in SEGMENTATION if not any(name in config for name in ("nano", "template", "slide"))
]


@pytest.mark.parametrize("base", SEG_NANO + SEG_LARGE)
def test_segmentation_template_suits_every_base(tmp_path: Path, base: str) -> None:
    pytest.importorskip("mmseg")
    changes = {
        "'data/my_data/'": "'elsewhere'",
        "('background', 'cat', 'dog')": "('date', 'fig', 'nut', 'leaf')",
    }
    mine = copy_template(tmp_path, base, "segmentation", **changes)
    (tmp_path / "before").mkdir()
    before = copy_template(tmp_path / "before", base, "segmentation").read_text().splitlines()
    assert sum(a != b for a, b in zip(before, mine.read_text().splitlines(), strict=True)) == 2
    cfg = Config.fromfile(str(mine))
    assert "my_data" not in cfg.pretty_text
    assert "data/ade" not in cfg.pretty_text
    assert set(re.findall(r"num_classes=(\d+)", cfg.pretty_text)) == {"4"}
    assert "mask2former" not in base or len(cfg.model.decode_head.loss_cls.class_weight) == 5
    assert cfg.model.data_preprocessor.size == cfg.crop_size
    assert (cfg.train_cfg.max_iters == 1200) == ("nano" in base)
    for loader, split in ((cfg.train_dataloader, "train"), (cfg.val_dataloader, "val"), (cfg.test_dataloader, "val")):
        assert loader.dataset.data_root == "elsewhere"
        assert loader.dataset.data_prefix == dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}")
        assert tuple(loader.dataset.metainfo.classes) == ("date", "fig", "nut", "leaf")
        assert not loader.dataset.reduce_zero_label
    assert {"name", "head", "data", "transform"}.isdisjoint(cfg)
    init_default_scope("mmseg")
    with torch.device("meta"):
        MODELS.build(cfg.model)


@pytest.mark.parametrize("base", SEG_NANO)
def test_nano_segmentors_train_a_step_and_infer(tmp_path: Path, base: str) -> None:
    test_segmentor_trains_a_step_and_infers(str(copy_template(tmp_path, base, "segmentation")))


@pytest.mark.skipif(
    sys.modules.get("mmengine") is None or __import__("mmengine").__version__ == "0.10.7",
    reason="mmengine 0.10.7 does not find `pkg::` bases of an editable install",
)
@pytest.mark.parametrize(
    "config", CONFIGS + [f"detection/{base}" for base in NANO] + [f"segmentation/{base}" for base in SEG_NANO]
)
def test_every_config_can_be_inherited_by_name(tmp_path: Path, config: str) -> None:
    """mmengine also uses `mmgcvit::` as the scope of all types, which must still be found."""
    (tmp_path / "mine.py").write_text(f"_base_ = 'mmgcvit::{config}'\n")
    import mmgcvit  # noqa: F401

    cfg = Config.fromfile(str(tmp_path / "mine.py"))
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        MODELS.build(cfg.model)
    if "segmentation/" in config and "voc" not in config:  # ConcatDataset of VOC reads its files on construction
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            DATASETS.build({**loader.dataset, "lazy_init": True})


@pytest.mark.parametrize(
    ("task", "metric", "delta"), [("detection", "coco/bbox_mAP", 0.001), ("segmentation", "mIoU", 0.1)]
)
def test_template_stops_early_keeps_the_best_and_averages(tmp_path: Path, task: str, metric: str, delta: float) -> None:
    """One line each; mmengine's default for the smallest improvement, 0.1, would stop a detector that improves."""
    cfg = Config.fromfile(str(copy_template(tmp_path, task=task)))
    assert cfg.default_hooks.checkpoint.save_best == metric
    assert cfg.custom_hooks == []
    assert cfg.train_cfg.max_iters // cfg.train_cfg.val_interval == cfg.validations
    changes = {
        "early_stopping = None": "early_stopping = 5",
        "ema = None": "ema = 0.01",
        "keep_best = True": "keep_best = False",
    }
    cfg = Config.fromfile(str(copy_template(tmp_path, task=task, **changes)))
    assert cfg.default_hooks.checkpoint.get("save_best") is None
    stopping, ema = (HOOKS.build(hook) for hook in cfg.custom_hooks)
    assert (stopping.monitor, stopping.rule, stopping.min_delta, stopping.patience) == (metric, "greater", delta, 5)
    assert type(ema).__name__ == "EMAHook"
    assert ema.ema_cfg["momentum"] == 0.01
