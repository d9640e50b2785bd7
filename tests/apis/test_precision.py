"""Mixed precision on a CPU: what is computed in it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from classification_run import config, make_tree
from conftest import ROOT
from mmengine.config import Config
from torch import nn

from mmgcvit import GCViT, apis
from mmgcvit.apis import UsageError, precision
from mmgcvit.compat import compute_dtype


@pytest.fixture
def dtypes(monkeypatch) -> list[torch.dtype]:
    """The dtype of the matrix products of each forward pass, on a machine without a GPU."""
    found, forward = [], GCViT.forward
    monkeypatch.setattr(precision, "get_device", lambda: "cpu")

    def spy(self, x, *args, **kwargs):
        found.append(compute_dtype(x))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(GCViT, "forward", spy)
    return found


def test_training_evaluation_and_inference_in_bfloat16(tmp_path: Path, dtypes: list[torch.dtype]):
    make_tree(tmp_path / "tree")
    cfg = config(tmp_path / "tree", tmp_path / "work")
    runner = apis.train(cfg, amp="bf16")
    assert type(runner.optim_wrapper).__name__ == "CPUAmpOptimWrapper"
    assert torch.bfloat16 in dtypes
    assert all(p.dtype is torch.float32 for p in runner.model.parameters())
    checkpoint = apis.newest_checkpoint(tmp_path / "work")
    for amp, wanted in (("bf16", torch.bfloat16), (None, torch.float32)):
        dtypes.clear()
        metrics = apis.test(cfg, checkpoint, amp=amp)
        assert set(dtypes) == {wanted}
        assert 0 <= metrics["accuracy/top1"] <= 100
        dtypes.clear()
        found = apis.predict(cfg, checkpoint, [tmp_path / "tree"], str(tmp_path / f"out_{amp}"), draw=False, amp=amp)
        assert found.images
        assert set(dtypes) == {wanted}


def test_mixed_precision_of_a_config_on_a_cpu(monkeypatch):
    monkeypatch.setattr(precision, "get_device", lambda: "cpu")
    for dtype, wanted in (("bfloat16", precision.ON_CPU), ("float16", "OptimWrapper")):
        cfg = Config(dict(optim_wrapper=dict(type="AmpOptimWrapper", dtype=dtype, loss_scale="dynamic")))
        precision.fit_precision_to_device(cfg)
        assert cfg.optim_wrapper == dict(type=wanted)
    cfg = apis.load_config(ROOT / "configs/classification/gcvit-tiny_32xb128_in1k.py")
    precision.use_mixed_precision(cfg, "bf16")
    assert cfg.optim_wrapper.type == precision.ON_CPU
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0, norm_type=2)


def test_what_is_refused(monkeypatch):
    monkeypatch.setattr(precision, "get_device", lambda: "cpu")
    with pytest.raises(UsageError, match="--amp fp16 needs a GPU; allowed on a CPU: --amp bf16"):
        precision.predict_in("fp16", nn.Module())
    with pytest.raises(UsageError, match="amp='bf8'; allowed: fp16, bf16"):
        precision.use_mixed_precision(Config(dict(optim_wrapper=dict(type="OptimWrapper"))), "bf8")


def test_only_the_backbone_of_a_detector_predicts_in_bfloat16(monkeypatch):
    """Boxes stay float32, and are close to those of a float32 backbone."""
    pytest.importorskip("mmdet")
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample

    monkeypatch.setattr(precision, "get_device", lambda: "cpu")
    cfg = apis.load_config(ROOT / "configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py")
    cfg.model.test_cfg.rcnn.score_thr = 0.0
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    data = dict(inputs=[torch.randint(0, 256, (3, 100, 130), dtype=torch.uint8) for _ in range(2)])
    size = dict(img_shape=(100, 130), ori_shape=(100, 130), scale_factor=(1.0, 1.0))
    data["data_samples"] = [DetDataSample(metainfo=size) for _ in range(2)]
    with torch.no_grad():
        maps = model.backbone(torch.randn(2, 3, 128, 160))
        precision.predict_in("bf16", model)
        found = model.test_step(data)
        again = model.backbone(torch.randn(2, 3, 128, 160))
    assert all(sample.pred_instances.bboxes.dtype is torch.float32 for sample in found)
    assert [m.dtype for m in again] == [m.dtype for m in maps]
    assert isinstance(again, tuple)
