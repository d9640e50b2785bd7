"""The kernel counter, and the budgets for the network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import mmgcvit
from mmgcvit import GCViT
from mmgcvit.__main__ import main
from mmgcvit.kernel_count import count_kernels
from mmgcvit.kernels import cpu, processor

W24 = dict(pad="window", window_size=(24,) * 4, global_query_reductions=(3, 2, 1, 0))
DENSE = (2, 3, 800, 1344)
BUDGETS = {  # name: (arguments, input, forward kernels, GB, training kernels, GB, GB kept); None: no budget
    "classification": ({}, (128, 3, 224, 224), 480, 25, 1480, 82, 8.4),
    "windows 7, pad='window'": (dict(pad="window"), DENSE, 600, None, 1850, None, 3.0),
    "windows 24, pad='window'": (W24, DENSE, 660, None, 2050, None, 3.35),
    "windows 7, pad='input'": ({}, DENSE, 480, None, 1510, None, 3.15),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets(name: str):
    arguments, shape, forward_kernels, forward_gb, step_kernels, step_gb, kept_gb = BUDGETS[name]

    def build() -> GCViT:
        return GCViT("tiny", **arguments)

    forward, step = count_kernels(build, shape), count_kernels(build, shape, train=True)
    assert 300 < forward.kernels.total() <= forward_kernels
    assert 1000 < step.kernels.total() <= step_kernels
    assert 1 < step.kept / 1e9 <= kept_gb
    if forward_gb is not None:
        assert 10 < forward.moved.total() / 1e9 <= forward_gb
        assert 40 < step.moved.total() / 1e9 <= step_gb
    # Packed windows: per-token work runs once per block, attention once per block and region.
    blocks = 3 + 4 + 19 + 5
    assert forward.kernels["native_layer_norm"] == 2 * blocks + 2 * 4 + 4
    assert forward.kernels["addmm"] <= 4 * blocks + 3
    assert step.kernels["index_add"] <= 5 * 4  # per stage, for the bias, packing, unpacking and edge queries


def test_linear_layer():
    forward = count_kernels(lambda: nn.Linear(4, 8), (2, 4))
    assert dict(forward.kernels) == {"addmm": 1}
    assert forward.moved["addmm"] == 2 * (8 + 8 + 32 + 16)  # bfloat16: input, bias, weight, output
    assert forward.kept == 0
    step = count_kernels(lambda: nn.Linear(4, 8), (2, 4), train=True, dtype=torch.float32)
    assert step.kept == 4 * 8  # only the input, as parameters do not count


def test_attention_is_two_kernels_and_an_expanded_mask_counts_once():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mask = nn.Parameter(torch.zeros(1, 2, 5, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = self.mask.expand(3, -1, -1, -1)
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    count = count_kernels(Attention, (3, 2, 5, 4), train=True)
    assert count.kernels["attention"] == count.kernels["attention backward"] == 1
    assert count.moved["attention"] == 2 * (4 * 3 * 2 * 5 * 4 + 2 * 5 * 5)
    assert nn.functional.scaled_dot_product_attention.__module__ != "mmgcvit.kernel_count"


@pytest.mark.parametrize("pack", [2**22, 2**20])
@pytest.mark.parametrize("onednn", [False, True])
def test_forward_pass_makes_few_python_calls(monkeypatch, onednn: bool, pack: int):
    """At most 500 calls of the package's functions for one image of 224 x 224.

    Also on a processor that uses oneDNN, and with a small cache, where maps are processed in more parts.
    """
    monkeypatch.setattr(cpu, "MAX_PACK", pack)
    monkeypatch.setattr(processor, "convolutions_are_faster", lambda: onednn)
    monkeypatch.setattr(processor, "onednn_linear_is_faster", lambda: not onednn)
    package, calls = str(Path(mmgcvit.__file__).parent), 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(package)

    model, image = GCViT("xxtiny").eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        model(image)
        sys.setprofile(profile)
        model(image)
        sys.setprofile(None)
    assert 100 < calls <= 500


def test_command(capsys):
    arguments = ["--models", "gcvit-xxtiny", "timm-gcvit-tiny", "--shape", "2", "3", "224", "224"]
    assert main(["count-kernels", *arguments]) == 0
    text = capsys.readouterr().out
    assert "gcvit-xxtiny" in text
    assert "2x3x224x224" in text
    counted = count_kernels(lambda: GCViT("xxtiny"), (2, 3, 224, 224), train=True)
    assert str(counted.kernels.total()) in text


def test_a_model_that_mixes_dtypes(capsys):
    """mmdet's Swin adds a mask in float32 to its attention scores."""
    pytest.importorskip("mmdet")
    arguments = ["--models", "swin-t", "--shape", "2", "3", "64", "96"]
    assert main(["count-kernels", *arguments]) == 1
    said = capsys.readouterr().err
    assert re.search(r"SwinTransformer cannot run .* in torch\.bfloat16: .*: --dtype float32$", said.strip())
    assert main(["count-kernels", *arguments, "--dtype", "float32"]) == 0
    assert "swin-t" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "vit"], "count-kernels: model 'vit' is unknown; allowed: gcvit-ARCH"),
        (["--shape", "2", "3", "0", "224"], "--shape 2 3 0 224; allowed: integers of at least 1"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys):
    assert main(["count-kernels", *arguments]) == 1
    assert message in capsys.readouterr().err
