"""Kill a training run with SIGKILL again and again: ``python chaos.py CONFIG WORK_DIR KILLS SEED``; see test_resume.py.

Each run is a child of this process, forked after the imports, which take longer than the run itself. Half of the kills
come at a random time, the others before, within or after a random step of writing files.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmdet.models  # noqa: F401
import mmseg.models  # noqa: F401
import torch
from mmengine.fileio import LocalBackend

from mmgcvit import apis

GRACE = 10  # seconds that workers may live longer than their process
STEPS = "steps of storage"


def train(config: str, work_dir: Path, kill_at_step: int = 0) -> int:
    """Train in a child; returns its process. With ``kill_at_step``, it kills itself at that step of storage."""
    if process := os.fork():
        return process
    status = 1
    try:
        os.setsid()  # so that its workers can be found
        work_dir.mkdir(exist_ok=True)
        output = os.open(work_dir.parent / f"{work_dir.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        count = count_steps(kill_at_step)
        cfg = apis.load_config(config)
        cfg.work_dir = str(work_dir)
        apis.train(cfg, resume=True)
        (work_dir.parent / STEPS).write_text(str(count()))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def count_steps(kill_at: int) -> Callable[[], int]:
    """Count the steps of storage, and die at one; the second return value of each step is before or after it."""
    main, count = os.getpid(), 0

    def step() -> None:
        nonlocal count
        count += os.getpid() == main
        if count == kill_at and os.getpid() == main:
            os.kill(main, signal.SIGKILL)

    def counted(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            step()
            result = function(*args, **kwargs)
            step()
            return result

        return call

    put, put_text = LocalBackend.put, LocalBackend.put_text

    def put_in_halves(self: LocalBackend, content: bytes, path: str | Path) -> None:
        step()
        put(self, content[: len(content) // 2], path)
        step()
        put(self, content, path)
        step()

    for module, names in ((os, ("replace", "fsync", "unlink", "remove")), (Path, ("unlink", "write_text"))):
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
    LocalBackend.put, LocalBackend.put_text = put_in_halves, counted(put_text)
    return lambda: count


def wait(process: int, seconds: float | None) -> int:
    """Wait for a child, and kill it after some time; returns its exit status, negative if it was killed."""
    until = time.monotonic() + (300 if seconds is None else seconds)
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if seconds is None:
        raise SystemExit("a run hangs")
    return status


def is_alive(session: int) -> bool:
    """Whether a process of a session runs."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            return True
    return False


def iterations(folder: Path) -> list[int]:
    """Iterations after which a run has written its checkpoints, in order."""
    return sorted(int(path.stem[5:]) for path in folder.glob("iter_*.pth"))


def compare(whole: Path, killed: Path) -> int:
    """Compare the last checkpoints of two runs bit by bit; returns the number of tensors."""
    assert iterations(whole) == iterations(killed)
    states = [torch.load(run / f"iter_{iterations(whole)[-1]}.pth", weights_only=False) for run in (whole, killed)]
    for key in ("state_dict", "ema_state_dict"):
        first, second = (state.get(key, {}) for state in states)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, second[name]), f"{key}: {name}"
    assert not list(killed.glob(".*")), "parts of files are left"
    return len(states[0]["state_dict"])


def main(config: str, folder: Path, kills: int, seed: int) -> None:
    """Kill runs ``kills`` times; each one that ends in spite of that is compared with an uninterrupted one."""
    chance = random.Random(seed)
    whole = folder / "whole"
    start = time.monotonic()
    assert wait(train(config, whole), None) == 0, (folder / "whole.log").read_text()[-3000:]
    duration, steps = time.monotonic() - start, int((folder / STEPS).read_text())
    print(f"{config}: seed {seed}; a whole run takes {duration:.1f} s and {steps} steps of storage", flush=True)
    done = attempts = rounds = 0
    before = None
    while done < kills or before is not None:
        work_dir = folder / f"killed_{rounds}"
        last = done >= kills  # let it end
        delay, at = None, 0
        left = 1 - max([0, *iterations(work_dir)]) / iterations(whole)[-1]  # part of the run
        if not last and chance.random() < 0.5:
            delay = chance.uniform(0, duration * max(left, 0.3))
        elif not last:
            at = chance.randint(1, 4 + int(steps * left))
        attempts += 1
        process = train(config, work_dir, at)
        status = wait(process, delay)
        if before is not None:
            until = time.monotonic() + GRACE
            while is_alive(before) and time.monotonic() < until:
                time.sleep(0.1)
            assert not is_alive(before), "workers outlive their process"
        log = (folder / f"{work_dir.name}.log").read_text(errors="replace")
        assert status in (0, -signal.SIGKILL), log[-3000:]
        if status == 0:
            print(f"run {rounds}: ended; {compare(whole, work_dir)} tensors are bit-identical", flush=True)
            before, rounds = None, rounds + 1
            continue
        before, done = process, done + 1
        how = f"after {delay:.3f} s" if delay is not None else f"at step {at} of storage"
        kept = [*map(str, iterations(work_dir)), *(path.name for path in work_dir.glob(".*.part*"))]
        print(f"run {rounds}: kill {done} {how}; checkpoints: {', '.join(kept) or 'none'}", flush=True)
        assert attempts < 10 * kills + 10
    print(
        f"{config}: {done} kills, {rounds} runs, all bit-identical, {attempts} starts, {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute(), int(sys.argv[3]), int(sys.argv[4]))
