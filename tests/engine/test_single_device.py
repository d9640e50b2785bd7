"""Configs for several GPUs in one process: BN in place of SyncBN, a scaled learning rate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from classification_run import config, make_tree
from conftest import ROOT
from mmengine.config import Config
from torch import nn

from mmgcvit import apis
from mmgcvit.engine import revert_sync_bn, scale_single_device_lr, single_device
from mmgcvit.errors import UsageError

ADE = "mmgcvit::segmentation/gcvit-tiny_upernet_8xb2-160k_ade20k-512x512.py"


@pytest.fixture
def said(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(single_device, "print_log", lambda text, *_, **__: found.append(text))
    return found


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4), nn.Sequential(nn.SyncBatchNorm(4), nn.BatchNorm2d(4)))
    net[2][0].running_mean.fill_(0.3)
    net[2][0].requires_grad_(False).eval()  # frozen, including its statistics
    return net


def test_sync_bn_becomes_bn(said: list[str]):
    net = network()
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    parameters = {id(parameter) for parameter in net.parameters()}
    runner = SimpleNamespace(model=net, world_size=1)
    assert revert_sync_bn(runner) == 2
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in runner.model.modules())
    assert {id(parameter) for parameter in runner.model.parameters()} == parameters  # so the optimizer stays valid
    state = runner.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert not runner.model[2][0].training
    assert not runner.model[2][0].weight.requires_grad
    network().load_state_dict(state)
    runner.model.load_state_dict(network().state_dict())
    runner.model.train()(torch.randn(2, 3, 4, 4)).sum().backward()
    assert said == ["SyncBN is replaced by BN in 2 layers: the run is on a CPU"]
    assert revert_sync_bn(runner) == 0
    assert len(said) == 1


def test_sync_bn_stays_in_several_processes_on_gpus():
    runner = SimpleNamespace(model=network().to("meta"), world_size=2)
    assert revert_sync_bn(runner) == 0
    assert isinstance(runner.model[1], nn.SyncBatchNorm)
    runner.world_size = 1
    assert revert_sync_bn(runner) == 2
    assert (
        revert_sync_bn(SimpleNamespace(model=dict(type="X"), world_size=1)) == 0
    )  # FlexibleRunner has not built its model yet


def settings(batch: int = 2, steps: int = 1, **auto_scale_lr) -> Config:
    return Config(
        dict(
            launcher="none",
            train_dataloader=dict(batch_size=batch),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=0.01), accumulative_counts=steps),
            auto_scale_lr=auto_scale_lr,
        )
    )


def test_one_process_scales_lr_by_default(said: list[str]):
    cfg = settings(base_batch_size=16)
    assert scale_single_device_lr(cfg)
    assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)
    (line,) = said
    assert "from 0.01 to 0.00125" in line
    assert "2 images per step" in line
    assert "base_batch_size=16" in line
    assert "auto_scale_lr.enable=False" in line
    cfg = settings(steps=4, base_batch_size=16)
    assert scale_single_device_lr(cfg)
    assert cfg.auto_scale_lr.base_batch_size == 4  # mmengine compares this with a single batch
    assert "from 0.01 to 0.005" in said[1]


@pytest.mark.parametrize(
    ("requested", "auto_scale_lr", "batch"),
    [(None, dict(base_batch_size=16, enable=False), 2), (None, dict(base_batch_size=16), 16), (None, {}, 2),
     (None, dict(base_batch_size=16), 32), (False, dict(base_batch_size=16), 2)],
)  # fmt: skip
def test_one_process_keeps_lr(requested: bool | None, auto_scale_lr: dict, batch: int, said: list[str]):
    cfg = settings(batch, **auto_scale_lr)
    assert not scale_single_device_lr(cfg, requested)
    assert cfg.auto_scale_lr == auto_scale_lr
    assert said == []


def test_several_processes_scale_lr_only_on_request(said: list[str], monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    cfg = settings(base_batch_size=32)
    cfg.launcher = "pytorch"
    assert not scale_single_device_lr(cfg)
    assert scale_single_device_lr(cfg, True)
    assert cfg.auto_scale_lr == dict(base_batch_size=32, enable=True)
    assert said == []
    with pytest.raises(UsageError, match=r"the config has no auto_scale_lr.base_batch_size"):
        scale_single_device_lr(settings(), True)


def test_load_config_keeps_user_setting(tmp_path: Path):
    """'enable' is in the config only if the user has set it, regardless of the base files of mmdet and mmgcvit."""
    assert "enable" not in apis.load_config(ADE).auto_scale_lr
    assert apis.load_config(ADE, cfg_options={"auto_scale_lr.enable": False}).auto_scale_lr.enable is False
    assert apis.load_config(ADE, cfg_options={"auto_scale_lr.enable": True}).auto_scale_lr.enable is True
    for text, expected in (("", None), ("auto_scale_lr = dict(enable=False)", False), ("lr = 1", None)):
        (tmp_path / "mine.py").write_text(f"_base_ = {ADE!r}\n{text}\n")
        assert apis.load_config(tmp_path / "mine.py").auto_scale_lr.get("enable") is expected


@pytest.mark.parametrize(
    "text",
    [
        "auto_scale_lr = dict(enable=False)",
        "auto_scale_lr: dict = dict(enable=False)",
        "auto_scale_lr = {'enable': False}",
        "optim_wrapper = dict(optimizer=dict(lr=1e-5))",
    ],
)
@pytest.mark.parametrize("inherited", [False, True])
def test_user_decides_on_scaling(tmp_path: Path, text: str, inherited: bool):
    """By ``enable`` or by a rate, in the user's config or in a base that is the user's own."""
    (tmp_path / "mine.py").write_text(f"_base_ = {ADE!r}\n{text}\n")
    (tmp_path / "child.py").write_text("_base_ = ['./mine.py']\nwork_dir = 'here'\n")
    cfg = apis.load_config(tmp_path / ("child.py" if inherited else "mine.py"))
    assert cfg.auto_scale_lr.enable is False
    assert not scale_single_device_lr(cfg)


def test_rate_on_the_command_line_is_not_scaled():
    cfg = apis.load_config(ADE, cfg_options={"optim_wrapper.optimizer.lr": 1e-5})
    assert not scale_single_device_lr(cfg)
    assert scale_single_device_lr(cfg, True)  # unless --auto-scale-lr is given


def test_dumped_config_is_not_scaled_twice(tmp_path: Path):
    cfg = settings(steps=4, base_batch_size=16)
    for _ in range(3):
        assert scale_single_device_lr(cfg)
        assert cfg.auto_scale_lr.base_batch_size == 4
        cfg.dump(str(tmp_path / "config.py"))
        cfg = Config.fromfile(str(tmp_path / "config.py"))


def test_base_of_an_earlier_release_is_named(tmp_path: Path):
    (tmp_path / "mine.py").write_text(f"_base_ = {ADE.replace('.py', '_1gpu.py')!r}\n")
    with pytest.raises(UsageError, match=r"mine.py.*single-GPU config of an earlier release.*_1gpu"):
        apis.load_config(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("name", "batch"),
    [
        ("segmentation/gcvit-tiny_upernet_8xb2-160k_ade20k-512x512", 4),
        ("segmentation/gcvit-large-384_upernet_8xb2-160k_ade20k-640x640", 2),
        ("segmentation/gcvit-tiny_upernet_4xb2-80k_cityscapes-512x1024", 4),
        ("segmentation/gcvit-tiny_segformer_8xb2-160k_ade20k-512x512", 4),
        ("detection/cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco", 2),
        ("detection/cascade-mask-rcnn_gcvit-base_w24_fpn_ms-crop-3x_coco", 2),
    ],
)
@pytest.mark.parametrize("shipped", [True, False])
def test_single_gpu_configs_of_earlier_releases(name: str, batch: int, shipped: bool, monkeypatch):
    """By name and by path: BN, recomputed blocks, batch size, scaled learning rate; the rest equals the base config."""
    said: list[str] = []
    monkeypatch.setattr("mmgcvit.apis.config.print_log", lambda text, *_, **__: said.append(text))
    prefix = "mmgcvit::" if shipped else f"{ROOT}/configs/"
    cfg = apis.load_config(f"{prefix}{name}_1gpu.py")
    base = apis.load_config(f"{prefix}{name}.py")
    assert cfg.work_dir == f"work_dirs/{Path(name).name}_1gpu"
    assert "SyncBN" in str(base.model)
    assert "SyncBN" not in str(cfg.model)
    assert "'BN'" in str(cfg.model)
    assert cfg.model.backbone.with_cp is True
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr == dict(base.auto_scale_lr, enable=True)
    base.model.backbone.with_cp = True
    assert str(cfg.model) == str(base.model).replace("SyncBN", "BN")
    for key in ("optim_wrapper", "param_scheduler", "test_dataloader", "train_cfg"):
        assert cfg[key] == base[key]
    (line,) = said
    assert "deprecated" in line
    assert f"{Path(name).name}_1gpu.py" in line


def test_user_config_with_such_a_name_is_not_replaced(tmp_path: Path):
    for name in ("mine.py", "mine_1gpu.py"):
        (tmp_path / name).write_text(f"name = {name!r}\nmodel = dict(backbone=dict())\n")
    assert apis.load_config(tmp_path / "mine_1gpu.py").name == "mine_1gpu.py"
    with pytest.raises(UsageError, match="no such file"):
        apis.load_config(tmp_path / "other_1gpu.py")


def test_runs_do_not_modify_their_config(tmp_path: Path):
    """Repeated calls give the same learning rate; a test does not change the config either."""
    tree = make_tree(tmp_path / "colours")
    cfg = config(tree, tmp_path / "run", workers=0, epochs=1, auto_scale_lr=dict(base_batch_size=16))
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.param_scheduler = None
    cfg.custom_hooks[1].type = "ClassificationHook"  # old names are also converted in the copy
    before = cfg.pretty_text
    rates = []
    for _ in range(2):
        runner = apis.train(cfg, resume=False)
        rates.append(runner.optim_wrapper.get_lr()["lr"][0])
        assert cfg.pretty_text == before
    assert rates[0] == rates[1] == pytest.approx(2e-3 * 8 / 16)
    apis.test(cfg, str(tmp_path / "run/iter_6.pth"), out=str(tmp_path / "table.csv"))
    assert cfg.pretty_text == before
