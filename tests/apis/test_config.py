"""Loading of configs with options of the command line."""

from __future__ import annotations

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
