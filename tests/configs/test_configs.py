"""Every config in the tree: it parses, its model builds, trains a step and infers, and its optimizer does what it says.

Everything that the configs define is real, but for the pictures' size.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT

mmdet_testing = pytest.importorskip("mmdet.testing")

from mmengine.config import Config  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import DATASETS, MODELS, init_default_scope  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402

from mmgcvit.analysis import PUBLISHED  # noqa: E402
from mmgcvit.checkpoint.weights import WEIGHTS  # noqa: E402

NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
CONFIGS = sorted(
    str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.py") if "_base_" not in p.parts
)


DETECTION = [config for config in CONFIGS if config.startswith("detection/")]
SEGMENTATION = [config for config in CONFIGS if config.startswith("segmentation/")]
# One of each kind; the others are slow.
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
EXACT = {"mask-rcnn_gcvit-tiny": 47.86, "cascade-mask-rcnn_gcvit-tiny": 84.72, "cascade-mask-rcnn_gcvit-small": 107.46,
         "cascade-mask-rcnn_gcvit-base": 146.56}  # the same heads over the authors' backbone  # fmt: skip


def read(config: str) -> Config:
    cfg = Config.fromfile(str(ROOT / "configs" / config))
    init_default_scope(cfg.default_scope)
    return cfg


def untrained(cfg: Config) -> torch.nn.Module:
    """The config's model; published weights, which are not here, are left out."""
    cfg.model.backbone.pop("init_cfg", None)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def on_meta(config: str) -> tuple[Config, torch.nn.Module]:
    """The config's model without memory, for what is in its names and shapes."""
    cfg = read(config)
    with torch.device("meta"):
        return cfg, MODELS.build(cfg.model)


def inputs(with_mask: bool, classes: int, scale: int = 1) -> dict:
    """Two pictures of different odd sizes, with boxes and masks."""
    shapes = [(3, 90 * scale, 150 * scale), (3, 129 * scale, 100 * scale)]
    return mmdet_testing.demo_mm_inputs(
        2, image_shapes=shapes, num_items=[3, 2], num_classes=classes, with_mask=with_mask
    )


def step(cfg: Config, model: torch.nn.Module, data: dict) -> dict:
    """One training step, in which every parameter gets a gradient; returns the losses."""
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
    for config in DETECTION])  # fmt: skip
def test_trains_a_step_and_infers(config: str):
    cfg = read(config)
    model = untrained(cfg)
    with_mask = getattr(getattr(model, "roi_head", None), "with_mask", False)
    # DINO's 900 queries are chosen from the places of all maps
    data = inputs(with_mask, 2, 2 if "dino" in config else 1)
    losses = step(cfg, model, data)
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
def test_segments(config: str):
    pytest.importorskip("mmseg")
    from mmseg.structures import SegDataSample

    cfg = read(config)
    assert tuple(cfg.model.data_preprocessor.size) == cfg.crop_size
    cfg.model.data_preprocessor.size = (96, 128)
    if cfg.model.test_cfg.mode == "slide":
        cfg.model.test_cfg.update(crop_size=(64, 64), stride=(40, 40))
    model = untrained(cfg)
    classes = cfg.model.decode_head.num_classes

    def data(*shapes: tuple[int, int]) -> dict:
        samples = [SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape)) for shape in shapes]
        for sample, shape in zip(samples, shapes, strict=True):
            labels = torch.randint(0, classes, (shape[0] // 8 + 1, shape[1] // 8 + 1))
            labels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)[: shape[0], : shape[1]]
            labels[:5] = 255
            sample.set_data(dict(gt_sem_seg=PixelData(data=labels[None])))
        return dict(
            inputs=[torch.randint(0, 256, (3, *shape), dtype=torch.uint8) for shape in shapes], data_samples=samples
        )

    losses = step(cfg, model, data((75, 101), (96, 128)))
    auxiliary = {"aux.loss_ce"} if cfg.model.get("auxiliary_head") else set()
    wanted = (
        {"decode.loss_cls", "decode.loss_mask", "decode.loss_dice"}
        if "mask2former" in config
        else {"decode.loss_ce"} | auxiliary
    )
    assert wanted <= losses.keys()
    model.eval()
    with torch.no_grad():
        results = model.test_step(data((75, 101), (75, 101)))
    for result in results:
        assert result.pred_sem_seg.data.shape == (1, 75, 101)
        assert result.seg_logits.data.shape == (classes, 75, 101)
        assert result.seg_logits.data.isfinite().all()


@pytest.mark.parametrize("config", DETECTION + SEGMENTATION)
def test_weight_decay_spares_norms_and_bias_tables(config: str):
    cfg, model = on_meta(config)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    norms = {f"{n}.{k}" for n, m in model.named_modules() if isinstance(m, NORMS) for k, _ in m.named_parameters()}
    embeddings = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = name in norms or name.endswith("relative_position_bias_table")
        if cfg.optim_wrapper.get("constructor") == "GCViTLayerDecayOptimWrapperConstructor":
            spared = spared or parameter.ndim == 1 or ("mask2former" in config and name in embeddings)
        assert decay[id(parameter)] == (0 if spared else cfg.optim_wrapper.optimizer.weight_decay), name


@pytest.mark.parametrize("config", DETECTION + SEGMENTATION)
def test_custom_keys_match_and_the_batch_size_is_the_learning_rates(config: str):
    cfg, model = on_meta(config)
    names = [n for n, _ in model.named_parameters()]
    for key in cfg.optim_wrapper.get("paramwise_cfg", {}).get("custom_keys", {}):
        assert any(key in n for n in names), f"custom key {key!r} matches no parameter"
    assert cfg.custom_imports.imports[0] == "mmgcvit"
    named = re.search(r"_(\d+)xb(\d+)-", config)
    gpus = 8 if cfg.data_root in ("data/coco/", "data/VOCdevkit/", "data/lvis_v1/") else 1
    gpus, batch = (int(named[1]), int(named[2])) if named else (gpus, cfg.train_dataloader.batch_size)
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert "_1gpu" in config or cfg.train_dataloader.batch_size == batch
    assert cfg.model.backbone.type == "GCViT"
    if "init_cfg" in cfg.model.backbone:
        assert WEIGHTS[cfg.model.backbone.init_cfg.checkpoint].arch == cfg.model.backbone.arch
    reader = cfg.model.get("neck") or cfg.model.decode_head
    assert tuple(reader.in_channels) == model.backbone.out_channels
    if "0k_" in config:  # the schedule ends with the run
        assert re.search(r"-(\d+)k_", config)[1] + "000" == str(cfg.train_cfg.max_iters)
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
        assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval


@pytest.mark.parametrize("name", EXACT)
def test_published_parameters(name: str):
    config = f"{name}_fpn_{'ms-crop-3x' if 'cascade' in name else '1x'}_coco"
    _, model = on_meta(f"detection/{config}.py")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions, 2) == EXACT[name]
    assert abs(millions / PUBLISHED[config].parameters - 1) < 0.01


@pytest.mark.parametrize(("arch", "exact"), [("tiny", 58.02), ("small", 82.75), ("base", 123.83)])
def test_published_parameters_of_segmentors(arch: str, exact: float):
    for windows, slack in (("_w7", 0.005), ("", 0.1)):
        config = f"gcvit-{arch}{windows}_upernet_8xb2-160k_ade20k-512x512"
        _, model = on_meta(f"segmentation/{config}.py")
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert abs(millions - exact) < slack
        assert abs(millions / PUBLISHED[config].parameters - 1) < 0.02


@pytest.mark.parametrize(
    ("head", "exact"), [("fpn_8xb2-80k", 32.00), ("segformer_8xb2-160k", 28.30), ("mask2former_8xb2-160k", 47.55)]
)
def test_parameters_of_other_heads(head: str, exact: float):
    _, model = on_meta(f"segmentation/gcvit-tiny_{head}_ade20k-512x512.py")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == exact


@pytest.mark.parametrize("config", SEGMENTATION)
def test_test_time_augmentation_has_several_scales_and_mirror_images(config: str):
    views = read(config).tta_pipeline[1].transforms
    assert len({tuple(resize.scale) for resize in views[0]}) > 1
    mirrored = {flip.prob for step in views for flip in step if flip.type == "RandomFlip"}
    assert mirrored == (set() if "digits" in config else {0.0, 1.0})  # a mirrored digit is another one or none


@pytest.mark.slow
def test_mask2former_learns():
    """30 steps on two pictures: the config's own head and optimizer, over a narrow backbone."""
    pytest.importorskip("mmseg")
    from mmseg.structures import SegDataSample

    cfg = read("segmentation/gcvit-tiny_mask2former_8xb2-160k_ade20k-512x512.py")
    nano = read("segmentation/_base_/upernet_gcvit-nano.py").model
    cfg.model.backbone, cfg.model.decode_head.in_channels = nano.backbone, nano.decode_head.in_channels
    cfg.model.data_preprocessor.size = (64, 96)
    model = untrained(cfg).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {group["lr"] for group in optim_wrapper.optimizer.param_groups}
    assert len(rates) > 5  # by layers
    assert max(rates) == cfg.optim_wrapper.optimizer.lr
    generator = torch.Generator().manual_seed(0)
    data = dict(inputs=[], data_samples=[])
    for top, left in ((10, 20), (30, 50)):
        picture = torch.randint(0, 90, (3, 64, 96), dtype=torch.uint8, generator=generator)
        labels = torch.zeros(1, 64, 96, dtype=torch.int64)
        picture[:, top : top + 30, left : left + 30] += 150
        labels[:, top : top + 30, left : left + 30], labels[:, :4] = 7, 255
        data["inputs"].append(picture)
        data["data_samples"].append(
            SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)), gt_sem_seg=PixelData(data=labels))
        )
    seen = []
    for _ in range(30):
        loss, losses = model.parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
        assert all(value.isfinite() for value in losses.values())
        optim_wrapper.update_params(loss)
        seen.append(loss.item())
    assert sum(seen[-5:]) < sum(seen[:5])


def test_windows_of_crops_divide_them():
    """Where a config says so: no padding at its crop size."""
    for config in SEGMENTATION:
        if not any(name in config for name in ("_w7", "_w24", "nano", "template")):
            cfg, model = on_meta(config)
            assert not any(side % model.backbone.pad_multiple for side in cfg.crop_size), config


def test_one_gpu_variants_need_no_other():
    for config in DETECTION + SEGMENTATION:
        cfg = read(config)
        text = str(cfg.model)
        synchronised = "cascade-mask" in config or (
            config in SEGMENTATION and not any(name in config for name in ("nano", "template", "mask2former"))
        )
        assert ("SyncBN" in text) == (synchronised and "1gpu" not in config), config
        if "1gpu" in config:
            assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=8 if "_4xb2" in config else 16)
            assert cfg.model.backbone.with_cp
            assert "'BN'" in text


@pytest.mark.parametrize("scope", ["mmdet", "mmseg", "mmpretrain", "mmengine"])
def test_custom_imports_are_all_that_a_scope_needs(tmp_path, scope: str):
    pytest.importorskip(scope)
    (tmp_path / "only.py").write_text("custom_imports = dict(imports=['mmgcvit'], allow_failed_imports=False)\n")
    code = f"""
import sys
from mmengine.config import Config
from mmengine.registry import init_default_scope
assert 'mmgcvit' not in sys.modules
Config.fromfile('only.py')
init_default_scope({scope!r})
from {scope}.registry import MODELS
print(type(MODELS.build(dict(type='GCViT', arch='xxtiny', out_indices=(0,)))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip().endswith("<class 'mmgcvit.backbone.gcvit.GCViT'>"), done.stderr


def test_model_index_lists_every_config():
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    listed = []
    for metafile in index["Import"]:
        for model in yaml.safe_load((ROOT / metafile).read_text())["Models"]:
            assert model["Name"] == Path(model["Config"]).stem
            cfg = Config.fromfile(str(ROOT / model["Config"]))
            length = {"Epochs": "max_epochs", "Iterations": "max_iters"}
            stated = {length[key]: value for key, value in model["Metadata"].items() if key in length}
            assert stated == {key: value for key, value in cfg.train_cfg.items() if key in length.values()}
            listed.append(model["Config"].removeprefix("configs/"))
    assert sorted(listed) == [c for c in CONFIGS if "template" not in c]


TEMPLATES = {"detection": ("custom_coco_template.py", "_base_/mask-rcnn_gcvit-nano_fpn.py"),
             "segmentation": ("custom_template.py", "_base_/upernet_gcvit-nano.py")}  # fmt: skip


def copy_of_the_template(folder: Path, base: str | None = None, task: str = "detection", **changes: str) -> Path:
    """What a user makes of the template, as if it lay beside it."""
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


TWO = {"'data/my_data/'": "'elsewhere'", "('cat', 'dog')": "('date', 'fig', 'nut')"}


def test_the_template_asks_for_two_changes_only(tmp_path):
    """Other data and classes, in those two lines alone, reach data sets, metric and heads."""
    before = copy_of_the_template(tmp_path).read_text().splitlines()
    mine = copy_of_the_template(tmp_path, **TWO)
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
         "cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco_1gpu.py", "retinanet_gcvit-tiny_fpn_1x_coco.py"]  # fmt: skip


@pytest.mark.parametrize("base", NANO + LARGE)
def test_the_template_suits_every_detector(tmp_path, base: str):
    cfg = Config.fromfile(str(copy_of_the_template(tmp_path, base, **TWO)))
    assert set(re.findall(r"num_classes=(\d+)", cfg.pretty_text)) == {"3"}
    masks = "mask-rcnn" in base
    assert set(re.findall(r"with_mask=(\w+)", cfg.pretty_text)) == {str(masks)}
    assert cfg.val_evaluator.metric == (["bbox", "segm"] if masks else "bbox")
    assert ("max_iters" in cfg.train_cfg) == ("nano" in base)
    assert {"parts", "part"}.isdisjoint(cfg)
    init_default_scope("mmdet")
    with torch.device("meta"):
        MODELS.build(cfg.model)


@pytest.mark.parametrize("base", [base for base in NANO if "/mask" not in base])
def test_narrow_detectors_train_a_step_and_infer(tmp_path, base: str):
    test_trains_a_step_and_infers(str(copy_of_the_template(tmp_path, base)))


SEG_NANO = [f"_base_/{p.name}" for p in sorted((ROOT / "configs/segmentation/_base_").glob("*-nano.py"))]
SEG_LARGE = [Path(config).name for config in SEGMENTATION if "ade20k-512x512.py" in config or "1gpu" in config]


@pytest.mark.parametrize("base", SEG_NANO + SEG_LARGE)
def test_the_template_suits_every_segmentor(tmp_path, base: str):
    pytest.importorskip("mmseg")
    changes = {"'data/my_data/'": "'elsewhere'", "('background', 'cat', 'dog')": "('date', 'fig', 'nut', 'leaf')"}
    mine = copy_of_the_template(tmp_path, base, "segmentation", **changes)
    (tmp_path / "before").mkdir()
    before = copy_of_the_template(tmp_path / "before", base, "segmentation").read_text().splitlines()
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
def test_narrow_segmentors_train_a_step_and_infer(tmp_path, base: str):
    test_segments(str(copy_of_the_template(tmp_path, base, "segmentation")))


@pytest.mark.skipif(
    sys.modules.get("mmengine") is None or __import__("mmengine").__version__ == "0.10.7",
    reason="this mmengine does not find `pkg::` bases of an editable install",
)
@pytest.mark.parametrize(
    "config", CONFIGS + [f"detection/{base}" for base in NANO] + [f"segmentation/{base}" for base in SEG_NANO]
)
def test_every_config_is_a_base_by_name(tmp_path, config: str):
    """mmengine takes `mmgcvit::` for a scope too: no type may be looked for there alone."""
    (tmp_path / "mine.py").write_text(f"_base_ = 'mmgcvit::{config}'\n")
    import mmgcvit  # noqa: F401

    cfg = Config.fromfile(str(tmp_path / "mine.py"))
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        MODELS.build(cfg.model)
    if "segmentation/" in config and "voc" not in config:  # VOC's wants its files
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            DATASETS.build({**loader.dataset, "lazy_init": True})
