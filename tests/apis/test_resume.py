"""Runs killed in the middle of an epoch or while writing a checkpoint resume to the same result."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from classification_run import make_tree
from conftest import ROOT, TINY

from mmgcvit.apis.checkpoints import newest_checkpoint

pytest.importorskip("mmcv._ext")
pytest.importorskip("sklearn")

# Mirroring in the workers and drop path in the model are random.
CONFIG = f"""
_base_ = '{ROOT}/configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py'
custom_imports = dict(imports=['mmgcvit', 'killer'], allow_failed_imports=False)
randomness = dict(seed=3, deterministic=True)
model = dict(backbone=dict(drop_path_rate=0.3))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
custom_hooks = [dict(type='Killer')]
default_hooks = dict(logger=dict(interval=1))
"""
#: A tiny backbone, for many short runs.
ARCH = f"model = dict(backbone=dict(_delete_=True, type='GCViT', arch={TINY}, drop_path_rate=0.3)"
BY_EPOCH = f"""
{ARCH}, neck=dict(in_channels=[16, 32, 64, 128]))
train_dataloader = dict(batch_size=6, dataset=dict(pipeline=train_pipeline), sampler=dict(
    _delete_=True, type='DefaultSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2, val_interval=10)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1), logger=dict(interval=1))
log_processor = dict(by_epoch=True)
"""  # 19 scenes: 4 iterations per epoch
BY_ITERATION = """
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=8, val_interval=20)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
"""
SEGMENTS = f"""
_base_ = '{ROOT}/configs/segmentation/gcvit-nano_fpn_digits-160x160.py'
custom_imports = dict(imports=['mmgcvit', 'killer'], allow_failed_imports=False)
randomness = dict(seed=3, deterministic=True)
model = dict(data_preprocessor=dict(size=(96, 96)), backbone=dict(drop_path_rate=0.3),
             decode_head=dict(dropout_ratio=0.1))
train_cfg = dict(max_iters=8, val_interval=20)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(num_workers=2, dataset=dict(pipeline=train_pipeline))
custom_hooks = [dict(type='Killer')]
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
"""  # random colour distortion in the pipeline, dropout in the heads
CLASSIFIES = f"""
_base_ = '{ROOT}/configs/classification/gcvit-nano_digits.py'
custom_imports = dict(imports=['mmgcvit', 'killer'], allow_failed_imports=False)
randomness = dict(seed=3, deterministic=True, diff_rank_seed=True)
model = dict(backbone=dict(drop_path_rate=0.3), data_preprocessor=dict(
    erasing=dict(probability=0.5, mode='pixel'), mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0)))
train_dataloader = dict(batch_size=64, num_workers=2, dataset=dict(split='val'))
train_cfg = dict(max_epochs=2, val_interval=10)
param_scheduler = dict(warmup=1, T_max=2, end=2)
custom_hooks = _base_.custom_hooks + [
    dict(type='Killer'), dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1)]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=3), logger=dict(interval=1))
"""  # 359 digits: 5 iterations per epoch, so the checkpoint after 6 is in the second epoch
#: Many short runs: tiny backbones, a validation in the middle, a checkpoint every second iteration.
CHECKPOINTS = "default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=2))\n"
BY_8 = "train_cfg = dict(max_iters=8, val_interval=4)\n" + CHECKPOINTS
CHAOS = dict(
    iterations=f"{ARCH}, neck=dict(in_channels=[16, 32, 64, 128]))\n{BY_8}",
    segments=f"{ARCH}, neck=dict(in_channels=[16, 32, 64, 128]))\n{BY_8}",
    classifies=f"""
{ARCH}, num_classes=3)
data = dict(data_root='colours')
train_dataloader = dict(batch_size=6, dataset=dict(split='train', **data))
val_dataloader = dict(dataset=data)
val_evaluator = dict(topk=(1, 2))
train_cfg = dict(max_epochs=2, val_interval=1)
{CHECKPOINTS}
""",
)
# Sends SIGKILL at the beginning of an iteration, or halfway through writing a checkpoint.
KILLER = """
import os, signal, threading
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

put = LocalBackend.put

def half(self, content, path):
    if os.path.basename(str(path)).startswith('.' + os.environ.get('KILL_WRITING', '/')):
        put(self, content[:len(content) // 2], path)
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, content, path)

LocalBackend.put = half

@HOOKS.register_module()
class Killer(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == int(os.environ.get('KILL_AT', -1)):
            delay = float(os.environ.get('KILL_DELAY', 0))
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from mmgcvit.datasets.digit_scenes import make_digit_scenes

    folder = tmp_path_factory.mktemp("user")
    make_digit_scenes(folder / "data/digit_scenes", images=20, size=96)
    make_tree(folder / "colours")
    (folder / "killer.py").write_text(KILLER)
    (folder / "epochs.py").write_text(CONFIG + BY_EPOCH)
    (folder / "iterations.py").write_text(CONFIG + BY_ITERATION)
    (folder / "segments.py").write_text(SEGMENTS)
    (folder / "classifies.py").write_text(CLASSIFIES)
    return folder


def train(folder: Path, config: str, work_dir: str, *arguments: str, processes: int = 1, **environment: str) -> int:
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=29531"]
    command = [
        sys.executable,
        *(launch if processes > 1 else []),
        ROOT / "tools/train.py",
        f"{config}.py",
        "--work-dir",
        work_dir,
        "--no-report",
        *(["--launcher", "pytorch"] if processes > 1 else []),
        *arguments,
    ]
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ
            | environment
            | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])},
        )
        code = process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if code == 1 and re.search(r"Signal 9 \(SIGKILL\) received|exitcode +: -9", log.read_text()):
        code = -signal.SIGKILL  # reported by torch's launcher for its processes
    assert code in (0, -signal.SIGKILL), log.read_text()[-3000:]
    return code


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["state_dict"]


@pytest.mark.parametrize(("config", "last", "kill"), [
    pytest.param("epochs", "epoch_2.pth", dict(KILL_AT="6"), id="in an epoch"),
    pytest.param("epochs", "epoch_2.pth", dict(KILL_WRITING="epoch_2"), id="writing", marks=pytest.mark.slow),
    pytest.param("iterations", "iter_8.pth", dict(KILL_AT="5"), id="by iterations", marks=pytest.mark.slow),
    pytest.param("segments", "iter_8.pth", dict(KILL_AT="5"), id="segmentor", marks=pytest.mark.slow),
    pytest.param("classifies", "iter_10.pth", dict(KILL_AT="8"), id="classifier in an epoch", marks=pytest.mark.slow),
    pytest.param("segments", "iter_8.pth", dict(KILL_WRITING="iter_6"), id="segmentor writing",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_killed_and_resumed(folder: Path, config: str, last: str, kill: dict[str, str]):
    whole = folder / f"whole_{config}"
    if not whole.is_dir():
        assert train(folder, config, whole.name) == 0
    killed = folder / f"killed_{config}_{'_'.join(kill)}"
    assert train(folder, config, killed.name, **kill) == -signal.SIGKILL
    assert not (killed / last).exists()
    if "KILL_WRITING" in kill:
        assert not (killed / f"{kill['KILL_WRITING']}.pth").exists()
        assert len(list(killed.glob(f".{kill['KILL_WRITING']}.*.part.pth"))) == 1
    assert train(folder, config, killed.name, "--resume") == 0
    assert not list(killed.glob(".*"))
    expected, found = weights(whole / last), weights(killed / last)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    first = weights(sorted(whole.glob("*.pth"), key=lambda p: p.stat().st_mtime)[0])
    assert any(not torch.equal(first[name], expected[name]) for name in expected if name.startswith("backbone."))


@pytest.mark.slow
@pytest.mark.parametrize(("config", "kills"), [("iterations", 17), ("segments", 17), ("classifies", 16)])
def test_killed_again_and_again(folder: Path, config: str, kills: int):
    """SIGKILL at random moments, also while checkpoints are written: the weights are bit-identical."""
    work_dir = folder / f"chaos_{config}"
    work_dir.mkdir()
    (folder / f"{config}_chaos.py").write_text(f"_base_ = './{config}.py'\n{CHAOS[config]}")
    command = [sys.executable, str(Path(__file__).with_name("chaos.py")), f"{config}_chaos.py", str(work_dir),
               os.environ.get("KILLS", str(kills)), os.environ.get("SEED", "0")]  # fmt: skip
    paths = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False,
                          env=os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS="1"))  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith(f"{config}_chaos.py: ")


@pytest.mark.slow
def test_two_processes_killed_and_resumed(folder: Path):
    """A classifier, in the middle of an epoch: 180 digits per process in 5 batches; checkpoint after iteration 6."""
    options = ("--cfg-options", "train_dataloader.batch_size=32")
    assert train(folder, "classifies", "two_whole", *options, processes=2) == 0
    assert train(folder, "classifies", "two_killed", *options, processes=2, KILL_AT="8") == -signal.SIGKILL
    assert sorted(path.name for path in (folder / "two_killed").glob("*.pth")) == ["iter_3.pth", "iter_6.pth"]
    assert train(folder, "classifies", "two_killed", "--resume", *options, processes=2) == 0
    expected, found = weights(folder / "two_whole/iter_10.pth"), weights(folder / "two_killed/iter_10.pth")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
    # a single process has ten batches of this size per epoch, so it refuses to resume
    log = folder / "log.txt"
    with pytest.raises(AssertionError):
        train(folder, "classifies", "two_killed", "--resume", "two_killed/iter_6.pth", *options)
    assert "iteration 6, with 5 iterations per epoch; here an epoch has 11" in log.read_text()


def save(path: Path, time: int) -> None:
    torch.save(dict(state_dict={}), path)
    os.utime(path, (time, time))


def test_newest_intact_checkpoint(tmp_path: Path):
    assert newest_checkpoint(tmp_path / "nowhere") is None
    save(tmp_path / "iter_2.pth", 1000)
    save(tmp_path / "iter_4.pth", 2000)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_4.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_2.pth")
    (tmp_path / "last_checkpoint").write_text("")  # as if killed between truncating and writing
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_4.pth")
    whole = (tmp_path / "iter_4.pth").read_bytes()
    (tmp_path / "iter_4.pth").write_bytes(whole[: len(whole) // 2])
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_2.pth")
    save(tmp_path / "best_coco_bbox_mAP_iter_4.pth", 3000)  # weights only: cannot be resumed from
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_2.pth")
    (tmp_path / "last_checkpoint").write_text("s3://bucket/iter_6.pth")
    assert newest_checkpoint(tmp_path) == "s3://bucket/iter_6.pth"
    (tmp_path / "last_checkpoint").write_text("/elsewhere/before/it/was/moved/iter_2.pth")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "iter_2.pth")
