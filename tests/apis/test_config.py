"""Loading of configs with options of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("mmdet")

from mmgcvit.apis import UsageError, load_config

TEMPLATE = ROOT / "configs/detection/custom_coco_template.py"


@pytest.mark.parametrize("options", [dict(max_iters=40), dict(data_root="mine/"), dict(classes=("a", "b"))])
def test_variables_of_a_config_file_are_no_options(options: dict):
    """They would change nothing: the file has computed its values from them."""
    ((name, value),) = options.items()
    with pytest.raises(UsageError) as error:
        load_config(TEMPLATE, cfg_options=options)
    assert f"--cfg-options {name}={value!r}: {name} is a variable of the config file" in str(error.value)
    assert ("train_cfg.max_iters" in str(error.value)) == (name == "max_iters")


def test_classifiers_in_another_folder_can_load_their_batches(tmp_path):
    """mmengine gives all parts of a base 'mmgcvit::...' a scope, and would pass it to the function that collates."""
    config = tmp_path / "config.py"
    config.write_text("_base_ = 'mmgcvit::classification/_base_/gcvit-nano.py'")
    cfg = load_config(config)
    assert cfg.train_dataloader.collate_fn == cfg.val_dataloader.collate_fn == dict(type="default_collate")


def test_options_of_a_run():
    options = {"train_cfg.max_iters": 40, "work_dir": "there", "load_from": "weights.pth", "resume": True, "new": 1}
    cfg = load_config(TEMPLATE, cfg_options=options)
    assert cfg.train_cfg.max_iters == 40
    assert (cfg.work_dir, cfg.load_from, cfg.resume, cfg.new) == ("there", "weights.pth", True, 1)


@pytest.mark.parametrize(
    ("file", "text", "place", "words"),
    [
        ("c.py", "a = 1\nb = [batchsize for _ in 'ab']\n", "c.py:2", "name 'batchsize' is not defined"),
        ("c.py", "a = dict(x=1)\nb = a['y']\n", "c.py:2", "'y'"),
        ("c.py", "_base_ = 'b.py'\n\n\n_base_.model.backbne.arch = 'tiny'\n", "c.py:4", "backbne"),
        ("c.py", "_base_ = ['b.py',\n    'nowhere.py']\n", "c.py:2", "nowhere.py"),
        ("c.py", "_base_ = 'mmgcvit::detection/nowhere.py'\n", "c.py:1", "nowhere.py"),
        ("c.py", "_base_ = 'b.py'\n\nx = dict(a={{_base_.modle}})\n", "c.py:3", "modle"),
        ("c.py", "_base_ = 'b.py'\nx = (\n", "c.py:2", "was never closed"),
        ("c.py", "def f():\n    return 1 / 0\n\n\nx = f()\n", "c.py:2", "division by zero"),
        ("b.py", "model = dict()\nx = y\n", "b.py:2", "name 'y' is not defined"),
        ("b.py", "model = dict(\n", "b.py:1", "was never closed"),
        ("b.py", "_base_ = './a/../nowhere.py'\n", "b.py:1", "nowhere.py"),
    ],
)
def test_errors_in_the_code_of_a_config_name_their_line(
    tmp_path: Path, file: str, text: str, place: str, words: str
) -> None:
    (tmp_path / "b.py").write_text("model = dict(backbone=dict(arch='tiny'))\n")
    (tmp_path / "c.py").write_text("_base_ = 'b.py'\n")
    (tmp_path / file).write_text(text)
    with pytest.raises(UsageError) as error:
        load_config(tmp_path / "c.py")
    start = f"config '{tmp_path}/c.py': cannot be loaded: {tmp_path}/{place}: "
    assert str(error.value).startswith(start)
    assert words in str(error.value)[len(start) :]
