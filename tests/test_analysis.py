"""Multiply-adds compared with manual counts and published figures; parameter groups of a config."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import ROOT, TINY
from mmengine.config import Config
from run_tool import run_tool

from mmgcvit import GCViT
from mmgcvit.__main__ import main
from mmgcvit.analysis import (
    PUBLISHED,
    Flops,
    Part,
    build_model,
    count_flops,
    parameter_groups,
    print_flops,
    print_parameter_groups,
    published,
)
from mmgcvit.backbone.windows import split_into_regions
from mmgcvit.classification import GCViTClassifier

DETECTION = ROOT / "configs/detection"
SEGMENTATION = ROOT / "configs/segmentation"


def test_attention_flops_equal_manual_count():
    """Two products of tokens x tokens x channels for each window of each block."""
    model = GCViT(TINY, window_size=4)
    counted = count_flops(model, (256, 128))
    expected = 0
    for i, depth in enumerate(model.arch.depths):
        window, channels = model.arch.window_size[i], model.arch.dims[i]
        tokens = (256 // 2 ** (i + 2)) * (128 // 2 ** (i + 2))
        expected += depth * 2 * tokens * window**2 * channels
    assert counted.total.attention == expected
    assert counted.total.parameters == sum(p.numel() for p in model.parameters())


def test_linear_flops_equal_manual_count():
    """The cost of a block's matrices is proportional to its tokens; norms and activations are not counted."""
    model = GCViT(TINY, window_size=4)
    stage = {part.name: part for part in count_flops(model, (128, 128)).parts}["stages.3"]
    weights = sum(m.weight.numel() for m in model.stages[3].blocks.modules() if isinstance(m, torch.nn.Linear))
    assert stage.macs - stage.attention > 16 * weights  # 4 x 4 tokens, plus the downsampling
    larger = {part.name: part for part in count_flops(model, (256, 256)).parts}["stages.3"]
    assert abs(larger.macs / stage.macs / 4 - 1) < 0.01


@pytest.mark.parametrize(("arch", "published"), [("xxtiny", 2.1), ("tiny", 4.7), ("small", 8.5), ("base", 14.8)])
def test_published_classifiers(arch: str, published: float):
    """Paper, table 1, at 224 x 224."""
    with torch.device("meta"):
        model = GCViTClassifier(dict(type="GCViT", arch=arch, out_indices=(3,)), 1000)
    flops = count_flops(model, (224, 224))
    assert abs(flops.total.macs / 1e9 - published) < 0.07
    assert flops.parts[-1].name == "other"
    assert {"backbone.stem", "backbone.stages.0", "backbone.stages.3", "head"} <= {part.name for part in flops.parts}


def test_counting_does_not_modify_the_model():
    model = GCViT(TINY, window_size=4).train()
    model.stages[0].eval()
    count_flops(model, (64, 64))
    assert model.training
    assert not model.stages[0].training
    assert "forward" not in vars(model.stages[0])
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "config",
    [
        "_base_/mask-rcnn_gcvit-nano_fpn.py",
        "_base_/cascade-mask-rcnn_gcvit-nano_fpn.py",
        "_base_/retinanet_gcvit-nano_fpn.py",
        "_base_/faster-rcnn_gcvit-nano_fpn.py",
    ],
)
def test_heads_of_detectors(config: str):
    pytest.importorskip("mmcv._ext")
    model = build_model(Config.fromfile(DETECTION / config))
    flops = count_flops(model, (128, 192))
    parts = {part.name: part for part in flops.parts}
    assert parts["other"].macs == 0
    assert parts["other"].parameters == 0
    if hasattr(model, "roi_head"):
        stages = getattr(model.roi_head, "num_stages", None)
        box = parts["roi_head.bbox_head.0" if stages else "roi_head.bbox_head"]
        head = model.roi_head.bbox_head[0] if stages else model.roi_head.bbox_head
        assert box.macs == 1000 * sum(m.weight.numel() for m in head.modules() if isinstance(m, torch.nn.Linear))
        if model.roi_head.with_mask:
            masks = [part for name, part in parts.items() if name.startswith("roi_head.mask_head")]
            assert len(masks) == (stages or 1)
            assert all(part.macs > 0 for part in masks)
    else:
        assert parts["bbox_head"].macs > 0
    assert sum(part.macs for part in flops.parts) == flops.total.macs


def padding(backbone: GCViT, shape: tuple[int, int]) -> int:
    """Multiply-adds that the authors' code spends on the padding of windows, and this code does not."""
    total = 0
    for i, stage in enumerate(backbone.stages):
        height, width = (-(-side // 2 ** (i + 2)) for side in shape)
        window, channels = stage.window, backbone.arch.dims[i]
        padded = -(-height // window) * -(-width // window) * window**2
        products = 2 * channels * padded * window**2
        tokens, rows = 0, 0  # in this code; the padding of a window is one row, which also passes through the MLP
        for r in split_into_regions(height, width, window):
            tokens, rows = tokens + r.num_windows * r.height * r.width, rows + r.num_windows * r.num_rows
            products -= 2 * channels * r.num_windows * r.num_rows**2
        hidden = int(channels * backbone.arch.mlp_ratio)
        for block in stage.blocks:
            maps = 3 if block.attn.is_global else 4  # including the projection
            total += products + channels**2 * maps * (padded - rows) - 2 * hidden * channels * (rows - tokens)
    return total


def test_padding_cost_equals_difference_to_full_windows():
    """The cost is 0 if full windows fit; otherwise it is the attention part of the difference to pad='stage'."""
    model = GCViT(TINY, window_size=4, pad="window")
    assert padding(model, (256, 512)) == 0
    models = {pad: GCViT(TINY, window_size=4, pad=pad) for pad in ("window", "stage")}
    counted = {pad: {part.name: part.macs for part in count_flops(models[pad], (256, 120)).parts} for pad in models}
    # stage 0: 64 x 30 tokens are padded to 64 x 32; its MLPs and global query process the padding only with pad='stage'
    channels, added = 16, 64 * 2
    mlp = 2 * 2 * int(channels * model.arch.mlp_ratio) * channels * added
    alone = _Alone(model.stages[0].query, channels)
    query = {size: count_flops(alone, size).total.macs for size in ((64, 30), (64, 32))}
    model.stages = model.stages[:1]
    assert padding(model, (256, 120)) == (
        counted["stage"]["stages.0"] - counted["window"]["stages.0"] - mlp - query[64, 32] + query[64, 30]
    )


class _Alone(torch.nn.Module):
    """Wraps a part whose inputs are maps as a model whose inputs are images."""

    def __init__(self, part: torch.nn.Module, channels: int) -> None:
        super().__init__()
        self.part, self.channels = part, channels

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.part(image[:, :1].permute(0, 2, 3, 1).expand(-1, -1, -1, self.channels).contiguous())


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        "mask-rcnn_gcvit-tiny_fpn_1x_coco",
        "cascade-mask-rcnn_gcvit-tiny_fpn_ms-crop-3x_coco",
        "cascade-mask-rcnn_gcvit-small_fpn_ms-crop-3x_coco",
        "cascade-mask-rcnn_gcvit-base_fpn_ms-crop-3x_coco",
    ],
)
def test_published_detectors(config: str):
    """Paper, table 3, which states no input size: at 800 x 1344, mmdet's size at test time, within 1 %."""
    pytest.importorskip("mmcv._ext")
    model = build_model(Config.fromfile(DETECTION / f"{config}.py"))
    paper = PUBLISHED[config]
    assert paper.shape == (800, 1344)
    assert abs(count_flops(model, paper.shape).total.macs / 1e9 / paper.gflops - 1) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_w7", "tiny", "small_w24", "base_w24"])
def test_published_segmentors(name: str):
    """Paper, table 5, at 512 x 2048, within 1 % incl. padding; small and base match windows of 24, tiny does not."""
    pytest.importorskip("mmseg")
    config = f"gcvit-{name}_upernet_8xb2-160k_ade20k-512x512"
    model = build_model(Config.fromfile(SEGMENTATION / f"{config}.py"))
    paper = PUBLISHED[config]
    assert paper.shape == (512, 2048)
    counted = count_flops(model, paper.shape).total.macs
    if "_w" in name:
        assert padding(model.backbone, paper.shape) > 0
        counted += padding(model.backbone, paper.shape)
    assert abs(counted / 1e9 / paper.gflops - 1) < 0.01


def test_published_figures_are_printed(capsys):
    for name in PUBLISHED:
        assert any((folder / f"{name}.py").is_file() for folder in (DETECTION, SEGMENTATION)), name
    config = "configs/segmentation/gcvit-tiny_upernet_8xb2-160k_ade20k-512x512"
    paper = published(f"{config}_1gpu.py", (512, 2048))
    assert (paper.gflops, paper.parameters) == (947, 58)
    assert published(f"{config}.py", (512, 512)) is None
    assert published(f"{config}_slide.py", (512, 2048)) is None
    parts = [
        Part("backbone.stem", 10**9, 0, 10**6),
        Part("backbone.stages.0", 2 * 10**9, 10**9, 3 * 10**6),
        Part("decode_head", 5 * 10**9, 0, 7 * 10**6),
    ]
    print_flops(Flops((512, 2048), parts), paper)
    rows = [re.findall(r"[\w.]+(?:, table \d)?", line) for line in capsys.readouterr().out.splitlines()]
    for row in (
        ["backbone", "3.00", "1.00", "4.00"],
        ["total", "8.00", "1.00", "11.00"],
        ["published, table 5", "947", "58"],
    ):
        assert row in rows, row
    print_flops(Flops((64, 64), [Part("stem", 1, 0, 1), Part("other")]))  # a backbone alone
    printed = capsys.readouterr().out
    assert "backbone" not in printed
    assert "published" not in printed


def test_parameter_groups():
    pytest.importorskip("mmdet")
    cfg = Config.fromfile(DETECTION / "mask-rcnn_gcvit-nano_fpn_digits.py")
    groups, frozen, unmatched = parameter_groups(cfg)
    assert [(group.lr, group.weight_decay) for group in groups] == [(3e-3, 0.05), (3e-3, 0.0)]
    assert any(name.endswith("relative_position_bias_table") for name in groups[1].names)
    assert sum(group.parameters for group in groups) == sum(p.numel() for p in build_model(cfg, "meta").parameters())
    assert frozen == unmatched == []


def test_parameter_groups_with_mixed_precision():
    pytest.importorskip("mmdet")
    cfg = Config.fromfile(DETECTION / "mask-rcnn_gcvit-nano_fpn_digits.py")
    cfg.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic", dtype="bfloat16")
    assert [group.lr for group in parameter_groups(cfg)[0]] == [3e-3, 3e-3]
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"


def test_unmatched_custom_keys_are_reported(capsys):
    pytest.importorskip("mmdet")
    cfg = Config.fromfile(DETECTION / "mask-rcnn_gcvit-nano_fpn_digits.py")
    cfg.optim_wrapper.paramwise_cfg.custom_keys["absolute_pos_embed"] = dict(decay_mult=0.0)
    cfg.model.backbone.frozen_stages = 1
    assert not print_parameter_groups(cfg)
    printed = capsys.readouterr().out
    assert "'absolute_pos_embed' matches no parameter" in printed
    assert "relative_position_bias_table'" not in printed
    assert "not trained: " in printed
    assert "mmengine - INFO" not in printed


def test_commands(tmp_path, capsys):
    pytest.importorskip("mmcv._ext")
    config = DETECTION / "_base_/retinanet_gcvit-nano_fpn.py"
    done = run_tool("get_flops.py", config, "--shape", "96", "160", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "96 x 160" in done.stdout
    assert "bbox_head" in done.stdout
    assert "published" not in done.stdout
    assert "attention" in done.stdout
    capsys.readouterr()
    assert main(["params", str(config)]) == 0
    assert "1.00e-03" in capsys.readouterr().out
    assert main(["params", "nowhere.py"]) == 1
    assert capsys.readouterr().err.strip() == "params: config 'nowhere.py': no such file"


def test_image_has_as_many_channels_as_the_model_takes(tiny_model):
    expected = count_flops(tiny_model(in_channels=4), (64, 96), channels=4).total
    assert count_flops(tiny_model(in_channels=4), (64, 96)).total == expected
    assert count_flops(tiny_model(in_channels=1), (64, 96)).total.macs < expected.macs
