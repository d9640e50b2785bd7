"""Processes that look at files: the same results as one process, errors with names, and no process that stays."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import classification_run
import pytest
import test_annotations
import test_labels
from mmengine.config import Config
from PIL import Image

from mmgcvit.datasets import check
from mmgcvit.datasets.check import check_data
from mmgcvit.datasets.processes import Processes
from mmgcvit.errors import UsageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux only")


def square(item: int) -> tuple[int, int]:
    time.sleep(0.02 if item == 3 else 0)  # the results of others are there first
    return item**2, os.getpid()


def faulty(item: int) -> int:
    if item == 5:
        raise ZeroDivisionError("of no use")
    if item == 7:
        raise UsageError("install something")
    return item


@pytest.mark.parametrize("items", [0, 1, 15, 16, 200])
def test_results_in_order(items: int):
    with Processes(square, 3) as pool:
        found = list(pool.map(range(items)))
        again = list(pool.map(range(items)))
    assert [value for value, _ in found] == [value for value, _ in again] == [item**2 for item in range(items)]
    processes = {process for _, process in found}
    # A process for 8 items.
    assert (processes <= {os.getpid()}) if items < 16 else (os.getpid() not in processes and len(processes) <= 3)
    assert not active_children()


@pytest.mark.parametrize("count", [1, 2])
def test_errors_name_the_item(count: int):
    names = [f"{item}.jpg" for item in range(40)]
    with Processes(faulty, count) as pool:
        found = pool.map(range(40), names.__getitem__)
        assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(UsageError, match=r"^5\.jpg: cannot be checked: of no use \(ZeroDivisionError\)$"):
            next(found)
    with Processes(faulty, count) as pool, pytest.raises(UsageError, match=r"^install something$"):
        list(pool.map([*range(5), 7, *range(40)]))
    assert not active_children()


def test_process_that_ends():
    def look(item: int) -> None:
        if item == 9:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory is short

    with Processes(look, 2) as pool, pytest.raises(UsageError) as error:
        list(pool.map(range(40)))
    assert str(error.value).startswith("9: the process that was reading it has ended (SIGKILL). ")
    assert not active_children()


def test_unfinished_map_ends_at_once():
    started = time.monotonic()
    with Processes(lambda item: time.sleep(60 if item else 0), 2) as pool:
        next(pool.map(range(40)))
    assert time.monotonic() - started < 5
    assert not active_children()


def work(folder: Path, seconds: float) -> None:
    """Run in a process group of its own, whose processes note their ids in a folder."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests are a job in the background

    def look(item: int) -> None:
        (folder / str(os.getpid())).touch()
        time.sleep(seconds)

    with Processes(look, 3) as pool:
        list(pool.map(range(40)))


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGINT, 60), (signal.SIGKILL, 0.5)])
def test_no_process_stays(tmp_path: Path, capfd: pytest.CaptureFixture, number: signal.Signals, seconds: float):
    """Ctrl-C goes to the whole process group and ends it at once; of SIGKILL, the children of a process learn later."""
    first = multiprocessing.get_context("fork").Process(target=work, args=(tmp_path, seconds))
    first.start()
    assert first.pid
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)
    time.sleep(0.5)  # the first process may still be inside fork(), whose hooks print and drop a KeyboardInterrupt
    if number == signal.SIGINT:
        os.killpg(first.pid, number)
    else:
        first.kill()
    first.join(60)
    assert first.exitcode == (1 if number == signal.SIGINT else -number)
    wait_until(lambda: not any(Path(f"/proc/{child.name}/cmdline").exists() for child in tmp_path.iterdir()))
    printed = capfd.readouterr().err
    assert printed.count("Traceback") == (number == signal.SIGINT)  # of the first process only


def wait_until(done: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def damage(paths: list[Path]) -> None:
    """Cut off, replace or remove some of the files."""
    for i, path in enumerate(paths):
        if i % 9 == 2:
            path.write_bytes(path.read_bytes()[:-60])
        elif i % 9 == 5:
            Image.new("RGBA" if path.suffix == ".png" else "CMYK", (20, 30)).save(path)
        elif i % 9 == 7 and i > 20:
            path.unlink()


def detection(root: Path) -> Config:
    coco = test_annotations.content()
    coco["images"] = [dict(id=i, file_name=f"{i}.jpg", width=64, height=48) for i in range(40)]
    coco["annotations"] = [dict(coco["annotations"][0], id=i + 1, image_id=i) for i in range(40)]
    test_annotations.write(root, coco, images=False)
    for i in range(40):
        Image.effect_noise((64, 48), 50).save(root / f"images/{i}.jpg")
    damage([root / f"images/{i}.jpg" for i in range(40)])
    data = test_annotations.dataset(root)
    return Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=data)))


def segmentation(root: Path) -> Config:
    maps = [test_labels.write(root, "train", f"{i:02}", test_labels.three()) for i in range(40)]
    damage(maps)
    damage(sorted(root.glob("images/train/*"))[10:])
    cfg = test_labels.config(root)
    cfg.val_dataloader = cfg.test_dataloader = None
    return cfg


def classification(root: Path) -> Config:
    tree = classification_run.make_tree(root / "colours", train=30, val=1)
    damage([path for path in sorted(tree.glob("train/*/*")) if int(path.stem) < 20])
    return classification_run.config(tree, root / "run")


@pytest.mark.parametrize("make", [detection, segmentation, classification])
def test_same_report_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Config]):
    pytest.importorskip("mmdet")
    started: list[int] = []
    start = Processes._start

    def counted(self: Processes, count: int) -> None:
        start(self, count)
        started.append(len(self.processes))

    monkeypatch.setattr(Processes, "_start", counted)
    cfg = make(tmp_path)
    expected = check_data(cfg, workers=1, progress=False)
    assert not any(started)
    assert check_data(cfg, workers=3, progress=False) == expected
    assert max(started) == 3
    assert len(expected[0].problems) > 6
    assert not active_children()


def test_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match=r"workers=0; allowed: 1 or more"):
        check_data(Config(), workers=0)
    counts = []
    monkeypatch.setattr(check, "usable_cores", lambda: 5)
    monkeypatch.setattr(Processes, "_start", lambda self, count: counts.append(self.count))
    check_data(classification(tmp_path), progress=False)
    assert set(counts) == {5}
