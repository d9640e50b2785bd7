"""The classification configs: the authors' recipe as seen in a built runner, and what each other config changes."""

from __future__ import annotations

import argparse
import copy
import functools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import teachers
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from test_gcvit import PUBLISHED_PARAMETERS
from timm.data.auto_augment import RandAugment
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import CenterCropOrPad, RandomResizedCropAndInterpolation
from torchvision import transforms

from mmgcvit import apis
from mmgcvit.checkpoint.weights import WEIGHTS
from mmgcvit.datasets.classification import TimmTransform
from mmgcvit.engine import EMAValLoop, ResumableTrainLoop
from mmgcvit.optim import WarmupCosineLR

FOLDER = ROOT / "configs" / "classification"
CONFIGS = sorted(path.name for path in FOLDER.glob("*.py"))
CENTRE_875 = ("xtiny", "tiny2", "small", "small2")
DROP_PATH = dict(xxtiny=0.2, xtiny=0.2, tiny=0.2, tiny2=0.25, small=0.3, small2=0.35, base=0.5, large=0.5)


@functools.cache
def parse(name: str) -> Config:
    """Parse a config file once; callers must not modify the result."""
    return Config.fromfile(str(FOLDER / name))


def load(name: str) -> Config:
    """Load a classification config and activate its default scope."""
    cfg = copy.deepcopy(parse(name))
    init_default_scope(cfg.default_scope)
    return cfg


def drop_paths(model: torch.nn.Module) -> list[float]:
    """The drop path rate of each block, from the first to the last."""
    return [block.drop_path_rate for stage in model.backbone.stages for block in stage.blocks]


def build_on_meta(cfg: Config) -> torch.nn.Module:
    """Build the model on the meta device, to check names and shapes without allocating memory."""
    with torch.device("meta"):
        return MODELS.build(cfg.model)


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Runner:
    """A runner of the recipe with a narrow backbone and a folder of 1000 classes instead of ImageNet."""
    folder = tmp_path_factory.mktemp("imagenet")
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for index in range(1000):
        for split, count in (("train", 4), ("val", 1)):
            path = folder / split / f"n{index:08d}"
            path.mkdir(parents=True)
            for number in range(count):
                image.save(path / f"{number}.jpg")
    cfg = load("gcvit-tiny_32xb128_in1k.py")
    cfg.model.backbone.arch = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(folder)
        loader.update(num_workers=0, persistent_workers=False)
    cfg.optim_wrapper = dict(cfg.optim_wrapper, type="OptimWrapper")
    for key in ("dtype", "loss_scale"):
        del cfg.optim_wrapper[key]
    cfg.work_dir = str(folder / "run")
    cfg.log_level = "WARNING"
    runner = Runner.from_cfg(cfg)
    # what Runner.train() builds first
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    return runner


def test_optimizer_and_parameter_groups(runner: Runner) -> None:
    optimizer = runner.optim_wrapper.optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    assert runner.optim_wrapper.clip_grad_kwargs == dict(max_norm=5.0, norm_type=2)
    names = {id(p): name for name, p in runner.model.named_parameters()}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays.keys() == set(names.values())
    for name, parameter in runner.model.named_parameters():
        assert decays[name] == (0 if parameter.ndim == 1 else 0.05), name
    tables = [name for name in decays if name.endswith("relative_position_bias_table")]
    assert tables
    assert all(decays[name] == 0.05 for name in tables)
    cfg = load("gcvit-tiny_32xb128_in1k.py")
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == (
        "AmpOptimWrapper",
        "float16",
        "dynamic",
    )


def test_learning_rate(runner: Runner) -> None:
    """An epoch has 31 iterations here (312 in a real run on 32 GPUs)."""
    length = len(runner.train_dataloader)
    assert length == 4000 // 128
    schedule = runner.param_schedulers[0]
    assert type(schedule) is WarmupCosineLR
    assert not schedule.by_epoch
    assert runner.max_epochs == 320
    optimizer = runner.optim_wrapper.optimizer
    rates = []
    for _ in range(320 * length):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.005}
    assert rates[0] == pytest.approx(1e-6)
    last = 20 * length - 1  # of the warmup
    assert rates[last] == pytest.approx(1e-6 + (0.005 - 1e-6) * last / (20 * length))
    assert rates[last + 1] == pytest.approx(5e-6 + (0.005 - 5e-6) * (1 + np.cos(np.pi * 20 / 310)) / 2)
    assert rates[155 * length] == pytest.approx((0.005 + 5e-6) / 2)
    assert rates[310 * length :] == pytest.approx([5e-6] * (10 * length))
    assert len(set(rates[:last])) == last  # updated every iteration


def test_transforms(runner: Runner) -> None:
    train = runner.train_dataloader.dataset.pipeline.transforms[1].transform.transforms
    crop, flip, augment = train[:3]
    assert type(crop) is RandomResizedCropAndInterpolation
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))
    assert {mode.value for mode in crop.interpolation} == {"bilinear", "bicubic"}
    assert type(flip) is transforms.RandomHorizontalFlip
    assert flip.p == 0.5
    assert type(augment) is RandAugment
    assert augment.num_layers == 2
    assert {op.magnitude for op in augment.ops} == {9}
    assert {op.magnitude_std for op in augment.ops} == {0.5}
    assert "PosterizeIncreasing" in {op.name for op in augment.ops}
    assert len(train) == 4  # no colour jitter besides RandAugment
    assert runner.train_dataloader.drop_last
    assert runner.train_dataloader.batch_size == 128

    processor = runner.model.data_preprocessor
    assert type(processor.erase) is RandomErasing
    assert (processor.erase.probability, processor.erase.per_pixel, processor.erase.max_count) == (0.25, True, 1)
    assert type(processor.mix) is Mixup
    assert (
        processor.mix.mixup_alpha,
        processor.mix.cutmix_alpha,
        processor.mix.switch_prob,
        processor.mix.mix_prob,
        processor.mix.label_smoothing,
        processor.mix.num_classes,
    ) == (0.8, 1.0, 0.5, 1.0, 0.1, 1000)
    assert type(runner.model.soft_loss).__name__ == "SoftTargetCrossEntropy"


def test_ema_and_seed(runner: Runner) -> None:
    (ema_hook,) = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    ema_hook.before_run(runner)
    assert type(ema_hook.ema_model).__name__ == "ExponentialMovingAverage"
    assert ema_hook.ema_model.momentum == pytest.approx(1 - 0.9998)
    assert ema_hook.ema_model.interval == 1
    assert runner.seed == 42
    assert load("gcvit-tiny_32xb128_in1k.py").randomness == dict(seed=42, diff_rank_seed=True)


def test_loops(runner: Runner) -> None:
    assert type(runner.build_val_loop(runner._val_loop)) is EMAValLoop
    assert type(runner._train_loop) is ResumableTrainLoop


@pytest.mark.parametrize("arch", PUBLISHED_PARAMETERS)
def test_variants(arch: str) -> None:
    cfg = load(f"gcvit-{arch}_32xb128_in1k.py")
    model = build_on_meta(cfg)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS[arch]
    assert cfg.auto_scale_lr.base_batch_size == 32 * 128
    rates = drop_paths(model)
    assert rates == pytest.approx(np.linspace(0, DROP_PATH[arch], len(rates)).tolist())
    arguments = dict(cfg.test_dataloader.dataset.pipeline[1])
    arguments.pop("type")
    steps = TimmTransform(**arguments).transform.transforms
    resize, crop = steps[:2]
    assert resize.interpolation.value == "bicubic"
    assert resize.size == (256 if arch in CENTRE_875 else 224)
    assert type(crop) in (transforms.CenterCrop, CenterCropOrPad)
    assert tuple(crop.size) == (224, 224)
    published = WEIGHTS[f"gcvit://{arch}_in1k"]
    assert cfg.test_dataloader.dataset.pipeline[1].crop_pct == published.crop


@pytest.mark.parametrize(("size", "windows"), [(384, (12, 12, 24, 12)), (512, (16, 16, 32, 16))])
def test_larger_images(size: int, windows: tuple[int, ...]) -> None:
    cfg = load(f"gcvit-large-{size}_32xb32_in1k.py")
    model = build_on_meta(cfg)
    assert tuple(stage.window for stage in model.backbone.stages) == windows
    assert size % model.backbone.pad_multiple == 0
    for loader, training in ((cfg.train_dataloader, True), (cfg.test_dataloader, False)):
        transform = loader.dataset.pipeline[1]
        assert (transform.input_size, transform.is_training) == (size, training)
        assert training or (transform.crop_mode, transform.crop_pct) == ("squash", 1.0)
    rates = drop_paths(model)
    assert rates == pytest.approx(np.linspace(0, 0.1, len(rates)).tolist())
    assert WEIGHTS[cfg.model.init_cfg.checkpoint].arch == "large"
    assert model.data_preprocessor.mix is None


@pytest.mark.parametrize("name", CONFIGS)
def test_trains_a_step_and_infers(tmp_path: Path, name: str) -> None:
    """Every config with its own head, loss and optimizer, at 64 x 64 with padded windows."""
    cfg = load(name)
    full = build_on_meta(cfg)
    if sum(p.numel() for p in full.parameters()) > 3e7:  # shrink large archs; the others cover full widths
        arch = cfg.model.backbone.arch
        windows = tuple(stage.window for stage in full.backbone.stages)
        scale = dict(layer_scale=1e-5) if "small" in arch or "base" in arch or "large" in arch else {}
        cfg.model.backbone.arch = dict(
            embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=windows, **scale
        )
    cfg.model.backbone.pad = "window"
    classes = cfg.model.get("num_classes", 1000)
    if "teacher" in cfg.model:  # another one, tiny and with weights
        cfg.model.teacher = dict(name=teachers.NAME, checkpoint=teachers.save(tmp_path, classes=classes))
    cfg.model.pop("init_cfg", None)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    has_head = hasattr(model, "head")
    assert not has_head or classes == model.head.out_features
    batch = dict(
        inputs=torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        targets=torch.tensor([0, classes - 1]),
        sample_idx=torch.arange(2),
    )
    optim = dict(cfg.optim_wrapper, type="OptimWrapper")
    for key in ("dtype", "loss_scale", "use_fsdp"):
        optim.pop(key, None)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train()
    loss = sum(model(**model.data_preprocessor(batch, True), mode="loss").values())
    assert loss.isfinite()
    loss.backward()
    wrapper = build_optim_wrapper(model, dict(optim, accumulative_counts=1, clip_grad=None))
    wrapper.step()
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n.startswith("backbone."))
    if not has_head:
        assert cfg.test_dataloader is cfg.val_dataloader is None
        return
    model.eval()
    with torch.no_grad():
        scores = model.test_step(batch)
    assert scores.shape == (2, classes)
    assert torch.allclose(scores.sum(1), torch.ones(2), atol=1e-5)


def test_other_configs() -> None:
    accumulated = load("gcvit-tiny_8xb128-accum4_in1k.py")
    assert accumulated.optim_wrapper.accumulative_counts == accumulated.custom_hooks[0].interval == 4
    assert accumulated.default_hooks.checkpoint.interval % 4 == 0
    assert load("gcvit-large_32xb128_in21k.py").model.num_classes == 21841
    imagenet_v2 = load("gcvit-tiny_imagenet-v2.py").test_dataloader.dataset
    assert (imagenet_v2.classes, imagenet_v2.split) == (1000, "")
    assert load("gcvit-tiny_imagenet-real.py").test_evaluator.real_labels == "timm"


@pytest.mark.parametrize("arch", PUBLISHED_PARAMETERS)
def test_readme_options_for_imagenet_v2_and_real(arch: str) -> None:
    """The --cfg-options of the README equal the tiny configs and keep the crop of each variant."""
    text = (FOLDER / "README.md").read_text()
    parser = argparse.ArgumentParser()
    apis.add_runner_arguments(parser)
    original = load(f"gcvit-{arch}_32xb128_in1k.py")
    for line, name in zip(re.findall("`(--cfg-options test_.*?)`", text), ("v2", "real"), strict=True):
        path = str(FOLDER / f"gcvit-{arch}_32xb128_in1k.py")
        cfg = apis.config_from_arguments(parser.parse_args([path, *shlex.split(line)]))
        reference = load(f"gcvit-tiny_imagenet-{name}.py")
        actual, expected = cfg.test_dataloader.dataset, reference.test_dataloader.dataset
        assert (actual.data_root, actual.split, actual.get("classes")) == (
            expected.data_root,
            expected.split,
            expected.get("classes"),
        )
        assert cfg.test_evaluator == reference.test_evaluator
        assert actual.pipeline == original.test_dataloader.dataset.pipeline


@pytest.mark.parametrize("arch", ["tiny", "small"])
def test_fsdp_config_has_the_same_weight_decay(arch: str) -> None:
    """FSDP selects parameters by name and layer type, the other configs by shape; the result must be equal."""
    decays = []
    for name in ("gcvit-tiny_32xb128_in1k.py", "gcvit-tiny_32xb128_in1k_fsdp.py"):
        cfg = load(name)
        cfg.model.backbone.arch = arch
        model = build_on_meta(cfg)
        optim = dict(
            type="OptimWrapper", optimizer=cfg.optim_wrapper.optimizer, paramwise_cfg=cfg.optim_wrapper.paramwise_cfg
        )
        groups = build_optim_wrapper(model, optim).optimizer.param_groups
        names = {id(p): n for n, p in model.named_parameters()}
        decays.append({names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]})
    assert decays[0] == decays[1]
    assert set(decays[0].values()) == {0, 0.05}


def copy_template(folder: Path, base: str, checkpoint: str | None = None) -> Config:
    """Write a copy of the template as a user would, and load it."""
    text = (FOLDER / "custom_template.py").read_text()
    for old, new in (
        ("_base_ = './_base_/gcvit-nano.py'", f"_base_ = '{FOLDER}/{base}'"),
        ("data/my_data/", "mine"),
        ("('cat', 'dog')", "('a', 'b', 'c')"),
        ("load = None", f"load = {checkpoint!r}"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)
    return Config.fromfile(str(folder / "mine.py"))


@pytest.mark.parametrize(("base", "checkpoint"), [
    ("_base_/gcvit-nano.py", None), ("gcvit-tiny_32xb128_in1k.py", "gcvit://tiny_in1k"),
    ("gcvit-small_32xb128_in1k.py", "timm://gcvit_small.in1k")])  # fmt: skip
def test_template_applies_everywhere(tmp_path: Path, base: str, checkpoint: str | None) -> None:
    cfg = copy_template(tmp_path, base, checkpoint)
    assert cfg.model.num_classes == 3
    assert cfg.model.get("init_cfg", {}).get("checkpoint") == checkpoint
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == "mine"
        assert tuple(loader.dataset.classes) == ("a", "b", "c")
        assert loader.dataset.pipeline[1].input_size == cfg.size
        assert loader.batch_size == cfg.batch_size
    assert cfg.auto_scale_lr.base_batch_size == (cfg.batch_size if "nano" in base else 4096)
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler.T_max == cfg.param_scheduler.end == 60
    assert "my_data" not in cfg.pretty_text
    assert not re.search("EMAHook", cfg.pretty_text)
    build_on_meta(cfg)


def test_template_stops_early_keeps_the_best_and_averages(tmp_path: Path) -> None:
    cfg = copy_template(tmp_path, "_base_/gcvit-nano.py")
    assert cfg.default_hooks.checkpoint.save_best == "accuracy/top1"
    assert [hook.type for hook in cfg.custom_hooks] == ["mmgcvit.ClassificationHook"]
    text = (tmp_path / "mine.py").read_text()
    for old, new in (("early_stopping = None", "early_stopping = 5"), ("ema = None", "ema = 0.01"),
                     ("keep_best = True", "keep_best = False")):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "mine.py").write_text(text)
    cfg = Config.fromfile(str(tmp_path / "mine.py"))
    assert cfg.default_hooks.checkpoint.save_best is None
    _, stopping, ema = cfg.custom_hooks
    assert (stopping.monitor, stopping.patience, stopping.min_delta) == ("accuracy/top1", 5, 0.1)
    assert ema.momentum == 0.01
