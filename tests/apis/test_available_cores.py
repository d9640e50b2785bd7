"""Threads and loader workers are limited to the cores that a process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config

from mmgcvit.apis import launch


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_and_workers_of_a_run(monkeypatch, caplog, threads):
    monkeypatch.setattr(launch, "usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(5)
    cfg = Config(dict(train_dataloader=dict(num_workers=8), val_dataloader=dict(num_workers=1), test_dataloader=None))
    launch.use_available_cores(cfg)
    assert torch.get_num_threads() == 2
    assert (cfg.train_dataloader.num_workers, cfg.val_dataloader.num_workers) == (2, 1)


def test_settings_of_the_user_stay(monkeypatch, threads):
    monkeypatch.setattr(launch, "usable_cores", lambda: 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    cfg = Config(dict(train_dataloader=dict(num_workers=0)))
    launch.use_available_cores(cfg)
    assert torch.get_num_threads() == 3
    assert cfg.train_dataloader.num_workers == 0


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_tools_shorten_spinning_before_torch_is_imported(given: dict[str, str], wanted: str | None):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    code = "import early_settings, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tools", env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(wanted), "False"]


@pytest.mark.parametrize("tool", ["train", "test", "image_demo", "benchmark", "explain", "export", "app"])
def test_tools_that_run_a_model_import_the_settings_first(tool: str):
    lines = (ROOT / "tools" / f"{tool}.py").read_text(encoding="utf-8").splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports[0].startswith("import early_settings")
