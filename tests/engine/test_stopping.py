"""Runs that signals stop: a checkpoint, the exit status, no workers left; and the lock on the work directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from classification_run import config, make_tree
from conftest import ROOT
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmgcvit import apis
from mmgcvit.apis.lock import lock_work_dir
from mmgcvit.engine import stopping
from mmgcvit.errors import RunStopped, UsageError


@HOOKS.register_module()
class Signal(Hook):
    """Sends a signal to the process before a training iteration, or in the first iteration of a validation."""

    def __init__(self, at: int, number: int, phase: str = "train") -> None:
        self.at, self.number, self.phase = at, number, phase

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.phase == "train" and runner.iter == self.at:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.phase == "val" and runner.iter == self.at:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def foreground():
    """Shells let background jobs ignore Ctrl-C, which a run respects."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return make_tree(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory) -> dict[str, torch.Tensor]:
    return run(tree, tmp_path_factory.mktemp("whole"))


def run(tree: Path, work_dir: Path, resume: bool = False, stop: dict | None = None, loop: dict | None = None) -> dict:
    """Train by epochs with mmengine's own loop; the only regular checkpoints are those of the two epochs."""
    cfg = config(tree, work_dir)
    cfg.train_cfg = loop or dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=1)
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=True, interval=1)
    cfg.experiment_name += f"-{resume}-{bool(stop)}"
    if stop:
        cfg.custom_hooks.append(dict(type="Signal", **stop))
    return apis.train(cfg, resume=resume).model.state_dict()


@pytest.mark.parametrize(
    ("name", "at", "phase", "written"),
    [
        ("SIGTERM", 8, "train", "iter_9.pth"),
        pytest.param("SIGINT", 2, "train", "iter_3.pth", marks=pytest.mark.slow),
        # the last iteration of an epoch
        pytest.param("SIGUSR1", 5, "train", "iter_6.pth", marks=pytest.mark.slow),
        ("SIGTERM", 6, "val", "iter_6.pth"),
    ],
)
def test_a_signal_stops_the_run_and_it_resumes(tmp_path, tree, whole, name: str, at: int, phase: str, written: str):
    number, before = getattr(signal, name), signal.getsignal(getattr(signal, name))
    with pytest.raises(RunStopped, match=f"stopped by {name} after iteration {written[5:-4]}; .*--resume") as stopped:
        run(tree, tmp_path, stop=dict(at=at, number=number, phase=phase))
    assert stopped.value.exit_status == 128 + number
    assert str(tmp_path / written) in str(stopped.value)
    assert signal.getsignal(number) is before
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / written)
    assert not list(tmp_path.glob(".*"))  # neither a lock nor parts
    found = run(tree, tmp_path, resume=True)
    assert whole.keys() == found.keys()
    for key, value in whole.items():
        assert torch.equal(found[key], value), key


def receive(*numbers: int, pause: float = 0, training: bool = True) -> None:
    """Send signals to the process as if an iteration was running."""
    with stopping.stop_at_signals():
        stopping._training = training
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(pause)


def test_an_iteration_that_takes_too_long(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C twice
        receive(signal.SIGINT, signal.SIGINT, pause=1.1)
    with pytest.raises(RunStopped, match="outside the training"):
        receive(signal.SIGUSR1, training=False)
    monkeypatch.setattr(stopping, "PATIENCE", 0.2)
    start = time.monotonic()
    with pytest.raises(RunStopped, match=r"not finished after 0\.2 s") as stopped:
        receive(signal.SIGTERM, pause=30)
    assert stopped.value.exit_status == 143
    assert time.monotonic() - start < 5


HOLDER = """
import sys, time
from mmgcvit.apis.lock import lock_work_dir
with lock_work_dir(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> None:
    with lock_work_dir(folder):
        pass


def test_lock(tmp_path: Path):
    (tmp_path / ".lock").write_text('{"process": 1}')  # of a process that has ended
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"in use by process {process.pid} on .*python\S* -c .*Allowed: another"):
            hold(tmp_path)
    finally:
        process.kill()
        process.communicate()
    with lock_work_dir(tmp_path), pytest.raises(UsageError, match="this process"):  # that of a killed process is free
        hold(tmp_path)
    assert not (tmp_path / ".lock").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        hold(tmp_path / "file")


SCRIPT = """
import os, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from mmgcvit.engine.workers import GuardedWorker

class Large(Dataset):
    def __len__(self): return 10**6
    def __getitem__(self, i): return bytes(200_000)  # more than a pipe holds

batches = iter(DataLoader(Large(), batch_size=1, num_workers=2, collate_fn=list, worker_init_fn=GuardedWorker()))
for _ in range(4): next(batches)  # both workers are up
print(*(worker.pid for worker in __import__('multiprocessing').active_children()), flush=True)
time.sleep(60)
"""


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_process():
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    workers = list(map(int, process.stdout.readline().split()))
    assert len(workers) == 2
    assert all(map(is_running, workers))
    os.kill(workers[0], signal.SIGTERM)  # as Slurm sends it to all processes
    os.kill(workers[0], signal.SIGINT)
    time.sleep(0.5)
    assert all(map(is_running, workers))
    process.kill()
    process.communicate()
    until = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(is_running, workers))


HANGS = """
import os, signal, sys
from pathlib import Path
from classification_run import config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmgcvit import apis

@HOOKS.register_module()
class Hang(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2 and os.environ['RANK'] == '1':
            os.kill(os.getpid(), signal.SIGSTOP)

cfg = config(Path(sys.argv[1]), Path(sys.argv[2]), workers=0)
cfg.launcher = 'pytorch'
cfg.env_cfg = dict(dist_cfg=dict(backend='gloo', timeout=10))
cfg.custom_hooks.append(dict(type='Hang'))
try:
    apis.train(cfg)
except apis.UsageError as error:
    sys.exit(f'train: {error}')
"""


@pytest.mark.slow
def test_a_hung_process_ends_the_run(tmp_path: Path, tree: Path):
    (tmp_path / "hangs.py").write_text(HANGS)
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/classification"), os.environ.get("PYTHONPATH", "")]
    common = os.environ | dict(
        PYTHONPATH=os.pathsep.join(paths), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29547"
    )
    command = [sys.executable, str(tmp_path / "hangs.py"), str(tree), str(tmp_path / "run")]
    processes = [
        subprocess.Popen(command, env=common | dict(RANK=rank, LOCAL_RANK=rank), stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    try:
        _, said = processes[0].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert processes[0].returncode == 1, said
    assert "train: process 0: another process of the run has ended, or has not answered for 10 s" in said


STUCK = """
import os, signal, threading, time
import torch
from mmgcvit.engine import stopping
stopping.PATIENCE, stopping.MARGIN = 0.5, 0.5
with stopping.stop_at_signals():
    stopping._training = True
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    print(time.time(), flush=True)
    time.sleep(0.1)
    torch.linalg.svd(torch.rand(3000, 3000))  # no signal handler runs meanwhile
    torch.linalg.svd(torch.rand(3000, 3000))
"""


@pytest.mark.slow
def test_a_process_that_does_not_react():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, cwd=ROOT, check=False)
    took = time.time() - float(done.stdout)
    assert done.returncode == 143
    assert "train: stopped by SIGTERM: the process has not reacted for 1 s, and was ended" in done.stderr
    assert took < 4
