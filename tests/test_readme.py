"""What the README claims in numbers and code is so."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import ROOT
from test_gcvit import PUBLISHED_PARAMETERS
from torch import nn

from mmgcvit.backbone import ARCHS, GCViT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ARCHS)
def test_arch_table(name: str):
    (row,) = re.findall(rf"^\| {name} \|(.*)\|$", README, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    arch = ARCHS[name]
    parameters = PUBLISHED_PARAMETERS.get(name)
    if parameters is None:  # what is not published is counted
        with torch.device("meta"):
            model = GCViT(name, out_indices=(3,))
            parameters = sum(p.numel() for m in (model, nn.Linear(model.out_channels[0], 1000)) for p in m.parameters())
    assert cells == [
        f"{parameters / 1e6:.2f}", str(arch["embed_dims"]),
        *(", ".join(map(str, arch[key])) for key in ("depths", "num_heads")), f"{arch['mlp_ratio']:g}",
        ", ".join(map(str, arch["window_size"])), f"{arch['drop_path_rate']:g}",
        "no" if arch["layer_scale"] is None else "1e-5"]  # fmt: skip


def test_python_example():
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "import torch" in block]
    names: dict = {}
    exec(code.replace("arch='tiny'", "arch='xxtiny'"), names)
    promised = re.search(r"# (\(2, 64.*)", code)[1]
    assert ", ".join(str(tuple(m.shape)) for m in names["maps"]) == promised


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z0-9]+@", README)


def test_files_that_it_points_to_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
