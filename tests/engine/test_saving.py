"""Checkpoints: whole or not there, verified and compared with the run before they are resumed."""

from __future__ import annotations

import resource
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from classification_run import config, make_tree
from conftest import TINY
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS

from mmgcvit import TopKAccuracy, apis
from mmgcvit.apis.checkpoints import checkpoint_to_resume, find_damage, newest_checkpoint
from mmgcvit.checkpoint import trust_checkpoints
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.errors import UsageError


@HOOKS.register_module()
class FullDisk(Hook):
    """Lets the system refuse large files from an epoch on."""

    def __init__(self, at: int, size: int = 50_000) -> None:
        self.at, self.size = at, size

    def before_train_epoch(self, runner) -> None:
        if runner.epoch == self.at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("colours"))


def build(tree: Path, work_dir: Path, **more):
    cfg = config(tree, work_dir, workers=0, **more)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=True, interval=1)
    return cfg


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    apis.train(build(tree, folder))
    assert sorted(path.name for path in folder.glob("*.pth")) == ["epoch_1.pth", "epoch_2.pth"]
    return folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


def copies(whole: Path, folder: Path) -> list[Path]:
    """Copies of the two checkpoints of a run, and a ``last_checkpoint``."""
    for name in ("epoch_1.pth", "epoch_2.pth"):
        (folder / name).write_bytes((whole / name).read_bytes())
    (folder / "last_checkpoint").write_text(str(folder / "epoch_2.pth"))
    return [folder / "epoch_1.pth", folder / "epoch_2.pth"]


def test_best_result_that_only_the_validation_can_tell(tmp_path: Path, tree: Path):
    """A metric of another package: its names are not known before it has computed them."""

    @METRICS.register_module(force=True)
    class OwnAccuracy(TopKAccuracy):
        pass

    cfg = build(tree, tmp_path, epochs=1)
    cfg.val_evaluator = dict(type="OwnAccuracy", topk=(1, 5))
    cfg.default_hooks.checkpoint.save_best = "accuracy/top5"
    with pytest.raises(UsageError, match=r"^save_best='accuracy/top5'; allowed, .*: accuracy/top1, accuracy/top1_raw$"):
        apis.train(cfg)


def test_best_result_that_one_of_two_weights_lacks(tmp_path: Path, tree: Path):
    """A detector that has found nothing with its averaged weights gives results of the raw ones only."""

    @METRICS.register_module(force=True)
    class OftenEmpty(TopKAccuracy):
        calls = 0

        def compute_metrics(self, results: list) -> dict:
            OftenEmpty.calls += 1
            return {} if OftenEmpty.calls == 2 else super().compute_metrics(results)

    cfg = build(tree, tmp_path, epochs=2)
    cfg.train_cfg.val_interval = 1
    cfg.val_evaluator = dict(type="OftenEmpty", topk=(1,))
    cfg.default_hooks.checkpoint.save_best = "accuracy/top1"
    apis.train(cfg)
    assert OftenEmpty.calls == 4
    assert [path.name for path in tmp_path.glob("best_*")] == ["best_accuracy_top1_epoch_2.pth"]


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, tree: Path, whole: Path):
    cfg = build(tree, tmp_path)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    cfg.custom_hooks.append(dict(type="FullDisk", at=1))
    (tmp_path / ".iter_3.77.part.pth").write_bytes(b"half")  # left by a killed run
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UsageError) as error:
            apis.train(cfg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(error.value)
    assert f"checkpoint '{tmp_path}/epoch_2.pth': cannot be written: File too large. It has " in said
    assert f"bytes are free on the disk. Last good checkpoint: {tmp_path}/epoch_1.pth. Make room" in said
    assert [path.name for path in (*tmp_path.glob("*.pth"), *tmp_path.glob(".*"))] == ["epoch_1.pth"]
    cfg.custom_hooks.pop()
    cfg.experiment_name += "-resumed"
    apis.train(cfg, resume=True)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["epoch_2.pth"]
    found = weights(tmp_path / "epoch_2.pth")
    for name, value in weights(whole / "epoch_2.pth").items():
        assert torch.equal(found[name], value), name


def test_damaged_checkpoints_are_named_and_skipped(tmp_path: Path, whole: Path, logged: list[str]):
    first, second = copies(whole, tmp_path)
    assert checkpoint_to_resume(tmp_path) == str(second)
    content = bytearray(second.read_bytes())
    entry = max(zipfile.ZipFile(second).infolist(), key=lambda entry: entry.file_size)
    start = entry.header_offset + 200
    content[start : start + 400] = bytes(400)
    second.write_bytes(content)  # its zip directory is as before
    assert zipfile.is_zipfile(second)
    assert checkpoint_to_resume(tmp_path) == str(first)
    assert f"checkpoint '{second}' is damaged and not used" in logged[-1]
    assert f"Bad CRC-32 for file '{entry.filename}'" in logged[-1]
    checkpoint = torch.load(first, weights_only=False)
    next(iter(checkpoint["state_dict"].values()))[0] = float("nan")
    torch.save(checkpoint, second)
    assert "has NaN or infinite values" in find_damage(second)
    torch.save(checkpoint["state_dict"], first)
    assert find_damage(first) == "it has weights, but not the state of a run (load_from takes it)"
    with pytest.raises(UsageError, match=r"all checkpoints in .* are damaged"):
        checkpoint_to_resume(tmp_path)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_needs_a_work_dir(tmp_path: Path, tree: Path, resume: bool):
    cfg = build(tree, tmp_path)
    cfg.pop("work_dir")
    with pytest.raises(UsageError, match=r"config: work_dir is not set; allowed: a folder"):
        apis.train(cfg, resume)


def test_a_checkpoint_that_asks_for_code_is_not_skipped(tmp_path: Path, whole: Path):
    """It may be the right one: an older one must not be taken in its place."""
    _, second = copies(whole, tmp_path)
    checkpoint = torch.load(second, weights_only=False)
    checkpoint["meta"]["hook"] = print
    torch.save(checkpoint, second)
    with pytest.raises(UsageError, match=r"--resume: checkpoint .*asks for __builtin__.print.*--trust-checkpoint"):
        checkpoint_to_resume(tmp_path)
    with trust_checkpoints():
        assert checkpoint_to_resume(tmp_path) == str(second)


@pytest.mark.parametrize(
    "pointer",
    [b"", b"\0\0\0\0", b"\xff\xfe\x80", b"x" * 5000, b"x" * 20_000, b"/", b".", b"\x1b[31mepoch_1.pth", b"://",
     b"ht tp://a b", b"no/such/file.pth", b"epoch_2.pth\nmore"],
)  # fmt: skip
def test_garbage_in_the_pointer_is_no_obstacle(tmp_path: Path, whole: Path, pointer: bytes):
    _, second = copies(whole, tmp_path)
    (tmp_path / "last_checkpoint").write_bytes(pointer)
    assert newest_checkpoint(tmp_path) == str(second)
    (tmp_path / "last_checkpoint").unlink()
    (tmp_path / "last_checkpoint").mkdir()
    assert checkpoint_to_resume(tmp_path) == str(second)


def test_another_model_is_not_resumed(tmp_path: Path, tree: Path, whole: Path):
    copies(whole, tmp_path)
    cfg = build(tree, tmp_path)
    cfg.experiment_name += "-window"
    cfg.model.backbone.arch = {**TINY, "window_size": (4, 2, 4, 2)}
    with pytest.raises(UsageError, match=r"window_size=\(4, 2, 4, 2\) \(checkpoint: \(2, 2, 4, 2\)\)\. Resume with"):
        apis.train(cfg, resume=True)
    cfg = build(tree, tmp_path)
    cfg.experiment_name += "-optimizer"
    cfg.optim_wrapper.optimizer = dict(type="SGD", lr=0.1)
    with pytest.raises(UsageError, match=r"optim_wrapper\.optimizer\.type='SGD' \(checkpoint: 'AdamW'\)"):
        apis.train(cfg, resume=True)


def test_other_data_is_named(tmp_path: Path, tree: Path, whole: Path, capsys: pytest.CaptureFixture):
    copies(whole, tmp_path)
    other = make_tree(tmp_path / "tree", train=10)
    cfg = build(other, tmp_path, epochs=2)
    cfg.experiment_name += "-data"
    cfg.train_cfg.type = "EpochBasedTrainLoop"
    cfg.train_dataloader.batch_size = 6
    cfg.model.backbone.drop_path_rate = 0.1
    with pytest.raises(UsageError, match=r"T_max=10 \(checkpoint: 12\)"):  # the schedule counts iterations
        apis.train(cfg, resume=str(tmp_path / "epoch_1.pth"))
    logged = capsys.readouterr().out.splitlines()
    assert any("an epoch has 5 iterations; it had 6" in line for line in logged)
    said = next(line for line in logged if "the resumed run differs" in line)
    assert "model.backbone.drop_path_rate=0.1 (checkpoint: 0.3)" in said
    assert "train_dataloader.batch_size=6 (checkpoint: 4)" in said
    assert "training data[0].samples=30 (checkpoint: 24)" in said
    assert "data_root" not in said


def test_objects_of_other_packages_are_named(tmp_path: Path, tree: Path, whole: Path, capsys: pytest.CaptureFixture):
    first, second = copies(whole, tmp_path)
    second.unlink()
    checkpoint = torch.load(first, weights_only=False)
    checkpoint["message_hub"]["runtime_info"]["mine"] = Namespace(rate=0.5)
    checkpoint["message_hub"]["resumed_keys"]["mine"] = True
    torch.save(checkpoint, first)
    cfg = build(tree, tmp_path)
    cfg.experiment_name += "-placeholders"
    apis.train(cfg, resume=True)
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "objects of other packages" in line]
    assert "not restored: message_hub.runtime_info.mine (argparse.Namespace). What uses them" in said
    assert read_checkpoint(second)["message_hub"]["runtime_info"]["mine"] == dict(rate=0.5)
