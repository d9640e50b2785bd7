"""Threads and loader workers are limited to the cores that a process may use."""

from __future__ import annotations

import os
import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config

from mmgcvit import early_settings
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


#: What is imported in place of torch: it tells the variable that torch would see.
TORCH = "import os; print('torch sees', os.environ.get('GOMP_SPINCOUNT')); raise ImportError('not the real torch')"
ENTRY = re.search(r'^mmgcvit = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
SCRIPT = f"import sys\nfrom {ENTRY[1]} import {ENTRY[2]}\nsys.exit({ENTRY[2]}())"  # as installers write it
TOOLS = sorted(
    path.stem for path in (ROOT / "tools").glob("*.py") if "import early_settings" in path.read_text(encoding="utf-8")
)


def seen_by_torch(folder: Path, command: list[str], **given: str) -> str:
    """Run a Python program, and return GOMP_SPINCOUNT when it first imports torch."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(TORCH)
    (folder / "mmgcvit").write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    environment["PYTHONPATH"] = os.pathsep.join((str(folder), str(ROOT)))
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    return next(line for line in done.stdout.splitlines() if line.startswith("torch sees")).removeprefix("torch sees ")


@pytest.mark.parametrize("command", [
    ["mmgcvit", "finetune", "--help"],
    ["-m", "mmgcvit", "finetune", "--help"],
    *([str(ROOT / "tools" / f"{tool}.py"), "--help"] for tool in TOOLS),
], ids=lambda command: Path(command[0]).stem)  # fmt: skip
def test_programs_shorten_spinning_before_torch_is_imported(tmp_path: Path, command: list[str]):
    assert seen_by_torch(tmp_path, command) == "10000"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/usr/bin/mmgcvit", True), ("/packages/mmgcvit/__main__.py", True), ("own.py", False),
        ("/packages/mmgcvit/runtime/__main__.py", False), ("", False),
    ],
)  # fmt: skip
def test_processes_of_the_command(program: str, command: bool, monkeypatch: pytest.MonkeyPatch):
    """Also those that `python -m mmgcvit` spawns: they have its arguments."""
    monkeypatch.setattr(sys, "argv", [program])
    assert early_settings.is_command() == command


@pytest.mark.parametrize(
    ("given", "wanted"), [({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")]
)
def test_the_environment_decides(tmp_path: Path, given: dict[str, str], wanted: str):
    assert seen_by_torch(tmp_path, ["mmgcvit", "doctor"], **given) == wanted


@pytest.mark.parametrize("command", [["-c", "import mmgcvit"], ["own.py"], ["-m", "package.module"]],
                         ids=["import", "script", "module"])  # fmt: skip
def test_importing_the_package_changes_no_settings(tmp_path: Path, command: list[str]):
    (tmp_path / "own.py").write_text("import mmgcvit")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("import mmgcvit")
    (tmp_path / "package/module.py").touch()
    assert seen_by_torch(tmp_path, command) == "None"


#: Allocates and frees 96 MB three times, and prints how many new pages the third time needed.
ALLOCATE = """
import resource, runpy
kept = runpy.run_path("mmgcvit/early_settings.py")["keep_freed_memory"]()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = pages()
    blocks = [bytearray(b"x") * 2**23 for _ in range(12)]
    del blocks
print(kept, pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "4096"}, False), ({"GLIBC_TUNABLES": "glibc.malloc.top_pad=4096"}, False)],
)
def test_freed_memory_is_kept_unless_the_environment_decides(given: dict[str, str], kept: bool):
    own = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE], cwd=ROOT, env=own | given, capture_output=True, text=True, check=True
    )
    says, pages = done.stdout.split()
    assert says == str(kept)
    assert (int(pages) < 1000) == kept  # 96 MB have 24,576 pages


def test_other_c_libraries_are_left_alone(monkeypatch):
    settings = runpy.run_path(str(ROOT / "mmgcvit/early_settings.py"))
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(settings["ctypes"], "CDLL", lambda name: object())
    assert not settings["keep_freed_memory"]()


def test_all_tools_import_the_settings():
    assert set(TOOLS) == {path.stem for path in (ROOT / "tools").glob("*.py")} - {"early_settings"}
