"""Runs of two processes under torchrun: how they end when one is stopped, killed or hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from classification_run import config, make_tree
from conftest import ROOT

from mmgcvit.apis.checkpoints import find_damage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc"),
]
TIMEOUT = 10  # seconds that a process waits for another one
PATIENCE = 30  # seconds that torchrun waits for a process that it has told to end
MARK = "MMGCVIT_TEST_RUN"  # environment variable, by which the processes of a run are found


def processes(mark: str) -> dict[int, str]:
    """Command lines of the processes of a run that are alive, by process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            if (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


class Launched:
    """A run of two processes with a loader worker each, which has written its first checkpoint."""

    def __init__(self, folder: Path) -> None:
        cfg = config(make_tree(folder / "tree"), folder / "run", epochs=1000, workers=1)
        cfg.env_cfg = dict(dist_cfg=dict(backend="gloo", timeout=TIMEOUT))
        cfg.default_hooks.checkpoint.interval = 2
        cfg.log_level = "INFO"
        cfg.dump(folder / "config.py")
        self.folder, self.log = folder, folder / "log.txt"
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        settings = {"PYTHONPATH": paths, MARK: str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29561",
                   str(ROOT / "tools/train.py"), str(folder / "config.py"), "--launcher", "pytorch"]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | settings, start_new_session=True
            )
        self.wait_for(folder / "run/iter_4.pth", 240)
        self.start = time.monotonic()

    def wait_for(self, path: Path, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not path.exists():
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < end
            time.sleep(0.1)

    def rank(self, number: int) -> int:
        """Process of a rank: the first of those with its environment, the others are its workers."""
        ranks = [
            process
            for process, command in processes(str(self.folder)).items()
            if "torch.distributed.run" not in command
            and f"\0RANK={number}\0" in Path(f"/proc/{process}/environ").read_text()
        ]
        return min(ranks)

    def end(self, seconds: float) -> tuple[int, str]:
        """Wait for the end of all processes; returns the exit status of torchrun and what was said."""
        end = self.start + seconds
        status = self.process.wait(seconds)
        while (left := processes(str(self.folder))) and time.monotonic() < end:
            time.sleep(0.1)
        assert not left
        print(f"ended {time.monotonic() - self.start:.1f} s after the event, status {status}")
        return status, self.log.read_text()


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    run = Launched(tmp_path)
    yield run
    for process in processes(str(tmp_path)):
        os.kill(process, signal.SIGKILL)
    run.process.wait()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals(launched: Launched, name: str):
    """As a terminal sends Ctrl-C, and as a scheduler ends a job."""
    number = getattr(signal, name)
    os.killpg(launched.process.pid, number) if name == "SIGINT" else os.kill(launched.process.pid, number)
    status, said = launched.end(30)
    print(said[-1500:])
    (line,) = re.findall(rf"train: (stopped by {name} after iteration .*)", said)
    checkpoint = re.search(r"checkpoint: (\S+)\. To go on", line)[1]
    assert (launched.folder / "run/last_checkpoint").read_text() == checkpoint
    assert find_damage(checkpoint) is None
    assert status == 1


def test_a_killed_process(launched: Launched):
    os.kill(launched.rank(1), signal.SIGKILL)
    status, said = launched.end(TIMEOUT + PATIENCE)
    print(said[-3000:])
    assert status == 1
    assert re.search("train: process 0: another process of the run has ended", said)


def test_a_hung_process(launched: Launched):
    os.kill(launched.rank(1), signal.SIGSTOP)
    status, said = launched.end(TIMEOUT + PATIENCE + 15)
    print(said[-3000:])
    assert status == 1
    assert f"train: process 0: another process of the run has ended, or has not answered for {TIMEOUT} s" in said
