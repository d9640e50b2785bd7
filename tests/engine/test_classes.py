"""Runs are refused if data, head and checkpoint have different classes."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from classification_run import config, make_tree
from mmengine.config import Config

from mmgcvit import apis
from mmgcvit.datasets.check import check_data


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "colours", train=4, val=2)


def test_class_folder_missing_in_validation(tmp_path: Path, tree: Path):
    shutil.rmtree(tree / "val" / "green")
    with pytest.raises(apis.UsageError, match=r"validation data: 1 class folder is missing: green\. .*classes=<file"):
        apis.train(config(tree, tmp_path / "run"))
    # with an explicit class order from the user, the folders may be a subset
    cfg = config(tree, tmp_path / "run", epochs=2)
    cfg.val_dataloader.dataset.classes = ["blue", "green", "red"]
    apis.train(cfg)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_file_of_class_names_in_another_encoding(tmp_path: Path, tree: Path, encoding: str):
    for split in ("train", "val"):
        (tree / split / "red").rename(tree / split / "rosé")
    (tmp_path / "names.txt").write_text("blue\ngreen\nrosé\n", encoding)
    cfg = config(tree, tmp_path / "run", workers=0)
    cfg.train_dataloader.dataset.classes = str(tmp_path / "names.txt")
    with pytest.raises(apis.UsageError, match=r"classes '.*names\.txt' is .*; allowed: UTF-8"):
        apis.train(cfg)
    assert "allowed: UTF-8" in str(check_data(cfg, progress=False)[0].problems[0])


def test_class_folder_missing_in_training(tmp_path: Path, tree: Path):
    shutil.rmtree(tree / "train" / "green")
    with pytest.raises(
        apis.UsageError, match=r"validation data: 1 class folder is not among the training data's 2: green"
    ):
        apis.train(config(tree, tmp_path / "run"))


def test_more_classes_than_the_head_has(tmp_path: Path, tree: Path):
    cfg = config(tree, tmp_path / "run")
    cfg.model.num_classes = 2
    with pytest.raises(apis.UsageError, match=r"train data \(.*colours\) has 3 classes; allowed: .*num_classes=2"):
        apis.train(cfg)


def test_fewer_images_than_a_batch(tmp_path: Path, tree: Path):
    with pytest.raises(apis.UsageError, match=r"12 training images.*batch_size=16.*drop_last"):
        apis.train(config(tree, tmp_path / "run", batch_size=16))


def test_test_compares_classes_with_checkpoint(tmp_path: Path, tree: Path, caplog, monkeypatch):
    def cfg(name: str) -> Config:
        return config(tree, tmp_path / name, batch_size=2, workers=0)

    apis.train(cfg("run"))
    checkpoint = str(tmp_path / "run" / "iter_12.pth")
    said = []
    monkeypatch.setattr(logging.Logger, "info", lambda self, text, *_: said.append(text))
    table = tmp_path / "table.csv"
    metrics = apis.test(cfg("test"), checkpoint, out=str(table))
    assert set(metrics) == {"accuracy/top1", "accuracy/top2"}
    assert len(table.read_text().splitlines()) == 7
    assert any("images/s (4 in " in text for text in said)
    with pytest.raises(apis.UsageError, match="--out: the config's test_evaluator is not a TopKAccuracy"):
        apis.test(config(tree, tmp_path / "test", test_evaluator=dict(type="Other")), checkpoint, out=str(table))

    (tree / "val" / "green").rename(tree / "val" / "cyan")
    with pytest.raises(
        apis.UsageError,
        match=r"test data: 1 class folder is missing: green; 1 class folder is not among the "
        r"checkpoint's 3: cyan",
    ):
        apis.test(cfg("other"), checkpoint)


def test_training_compares_the_order_of_classes(tmp_path: Path, tree: Path, monkeypatch):
    """A resumed run must have the order of the checkpoint; after load_from, a head of the same size is a warning."""

    def cfg(name: str, **more) -> Config:
        made = config(tree, tmp_path / name, batch_size=6, workers=0, epochs=3, **more)
        for split in ("train", "val", "test"):
            made[f"{split}_dataloader"].dataset.classes = order
        return made

    order = ["blue", "green", "red"]
    apis.train(cfg("run"))
    checkpoint = str(tmp_path / "run" / "iter_4.pth")
    order = ["green", "blue", "red"]
    with pytest.raises(
        apis.UsageError,
        match=r"another order .*'blue' is label 0 of the checkpoint and label 1 of the config\. In order, the "
        "checkpoint has blue, green, red; the config has green, blue, red",
    ):
        apis.train(cfg("resumed"), resume=checkpoint)
    said = []
    monkeypatch.setattr(logging.Logger, "warning", lambda self, text, *_: said.append(text))
    apis.train(cfg("tuned", load_from=checkpoint))
    (line,) = [line for line in said if "labels mean other classes" in line]
    assert "checkpoint has blue, green, red; the config has green, blue, red" in line


def test_weights_without_class_names(tmp_path: Path, tree: Path, files, classifier):
    """For a published file only the number of classes is known; its head is loaded too."""
    cfg = config(tree, tmp_path / "test", workers=0)
    cfg.model.num_classes = 5
    with pytest.raises(apis.UsageError, match=r"has 3 class folders; the head has 5 classes. .*classes=<file"):
        apis.test(cfg, str(files["nvidia"]))
    cfg = config(tree, tmp_path / "test", workers=0, batch_size=2)
    cfg.model.num_classes = 5
    cfg.test_dataloader.dataset.classes = ["x", "red", "blue", "y", "green"]
    metrics = apis.test(cfg, str(files["nvidia"]), out=str(tmp_path / "table.csv"))
    assert set(metrics) == {"accuracy/top1", "accuracy/top2"}
    names = {row.split(",")[1] for row in (tmp_path / "table.csv").read_text().splitlines()[1:]}
    assert names == {"red", "blue", "green"}


def test_odd_batch_with_mixing(tmp_path: Path, tree: Path):
    with pytest.raises(apis.UsageError, match=r"batch_size=3 with model\.data_preprocessor\.mixup, which pairs images"):
        apis.train(config(tree, tmp_path / "run", batch_size=3, workers=0))


def test_truncated_image(tmp_path: Path, tree: Path):
    path = tree / "train" / "red" / "0.png"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(apis.UsageError, match=r"image red/0.png: cannot be decoded"):
        apis.train(config(tree, tmp_path / "run", workers=0))
    runner = apis.train(config(tree, tmp_path / "skip", workers=0), corrupt="skip")
    # at least once per epoch: a replacement may be the same image again
    assert runner.train_dataloader.dataset.pipeline.transforms[1].skipped >= 2
