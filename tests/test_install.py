"""tools/install.sh, run with a stand-in for Python that records what pip is asked to do, and the lock files."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

STACKS = ("onedl", "openmmlab")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PYTHON = r"""#!/bin/bash
# Answers `-c`, `-m venv`, `-m pip` and `-m mmgcvit doctor`; writes pip's arguments and requirement files to $CALLS.
case "$*" in
  *"-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" && touch "${@: -1}/pyvenv.cfg" ;;
  *"pip --version") [ -x "$0" ] ;;
  *"print("*) cat "$0.version" 2>/dev/null || true ;;
  *pip*)
    echo "pip $* PYTHONPATH=${PYTHONPATH:-}" >>"$CALLS"
    while [ $# -gt 0 ]; do
      case "$1" in
        -r) sed 's/^/    /' "$2" >>"$CALLS" ;;
        -w) touch "$2/mmcv-0-py3-none-any.whl" ;;
        -d) touch "$CALLS.py" && tar -czf "$2/mmcv-0.tar.gz" -C / "${CALLS#/}.py" ;;
      esac
      shift
    done ;;
  *"-m mmgcvit"*) echo "${@:3}" >>"$CALLS" ;;
esac
"""


def install(folder: Path, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the script; returns the process and the lines that the stand-in wrote."""
    python = folder / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    calls = folder / "calls"
    calls.unlink(missing_ok=True)
    inherited = {k: v for k, v in os.environ.items() if k not in ("CPU", "MMCV_OPS", "PYTHONPATH", "TORCH_INDEX")}
    process = subprocess.run(
        ["bash", str(ROOT / "tools/install.sh"), *arguments],
        env=dict(inherited, CALLS=str(calls), MMGCVIT_WHEELS=str(folder / "wheels"))
        | {"PYTHON": str(python)}
        | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return process, calls.read_text().splitlines() if calls.exists() else []


def requested(calls: list[str]) -> set[str]:
    return {re.split("[=; ]", line.strip())[0] for line in calls if re.match(r"    [a-z0-9]", line, re.IGNORECASE)}


@pytest.mark.parametrize("stack", STACKS)
def test_everything_locked_is_installed_once_and_by_hash(tmp_path: Path, stack: str):
    process, calls = install(tmp_path, stack, str(tmp_path / "venv"))
    assert process.returncode == 0, process.stderr
    assert requested(calls) == {name for name, _ in entries(stack)} - {"mmcv"}  # mmcv-lite takes its place
    assert all("--require-hashes" in line for line in calls if line.startswith("pip") and " -r " in line)
    (mmcv,) = (line for line in calls if " wheel -" in line)
    assert mmcv.endswith("/hidden")  # there, torch cannot be imported, or mmcv would compile its operators
    assert calls[-2:] == ["ops install", "doctor"]


def test_a_second_run_only_checks_and_another_kind_of_operators_is_installed_again(tmp_path: Path):
    venv = str(tmp_path / "venv")
    install(tmp_path, "onedl", venv)
    _, calls = install(tmp_path, "onedl", venv)
    assert calls == ["doctor"]
    process, calls = install(tmp_path, "onedl", venv, MMCV_OPS="compiled", CUDA_VISIBLE_DEVICES="")
    assert process.returncode == 0, process.stderr
    (mmcv,) = (line for line in calls if " wheel -" in line)
    assert mmcv.endswith("PYTHONPATH=")
    assert not any("ops install" in line for line in calls)
    assert calls.index(mmcv) < next(
        i for i, line in enumerate(calls) if "uninstall" in line
    )  # kept until there is a new one


def test_another_python_does_not_get_into_an_environment(tmp_path: Path):
    venv = tmp_path / "venv"
    install(tmp_path, "onedl", str(venv))
    for file, version in ((tmp_path / "python3", "3.13"), (venv / "bin/python", "3.11")):
        Path(f"{file}.version").write_text(version)
    process, calls = install(tmp_path, "onedl", str(venv))
    assert process.returncode == 1
    assert not calls
    assert process.stderr == (
        f"install.sh: {venv} has Python 3.11, and PYTHON={tmp_path}/python3 is Python 3.13. To replace it: "
        f"rm -rf {venv}, and the same command\n"
    )
    Path(f"{tmp_path}/python3.version").write_text("3.11")
    assert install(tmp_path, "onedl", str(venv))[1] == ["doctor"]
    process, calls = install(tmp_path, "onedl", str(venv), PYTHON="")  # the default: what is there stays
    assert (process.returncode, calls) == (0, ["doctor"])
    process, calls = install(tmp_path, "onedl", str(tmp_path / "other"), PYTHON="python3.99")
    assert process.returncode == 1
    assert process.stderr == "install.sh: PYTHON=python3.99: no such program\n"


def test_make_passes_python_on_only_if_it_is_given(tmp_path: Path):
    """Otherwise `make test` would compare python3 with the environment that PYTHON=python3.12 has created."""
    file = tmp_path / "Makefile"
    file.write_text(f"include {ROOT}/Makefile\nshown:\n\t@echo [$$PYTHON]\n")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    for given, shown in ((["PYTHON=python3.12"], "[python3.12]"), ([], "[]")):
        done = subprocess.run(
            ["make", "-f", str(file), "shown", *given], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == shown, done.stderr


def test_cpu_build_takes_torch_from_its_index_and_leaves_cuda_out(tmp_path: Path):
    process, calls = install(tmp_path, "onedl", str(tmp_path / "venv"), CPU="1", TORCH_INDEX="https://example.com/cpu")
    assert process.returncode == 0, process.stderr
    (torch,) = (line for line in calls if "--index-url" in line)
    pins = re.findall(r"^torch\S+", (ROOT / "requirements/onedl.in").read_text(), re.MULTILINE)
    assert torch.split("https://example.com/cpu ")[1].split()[:-1] == pins
    cuda = {name for name, _ in entries("onedl")} - requested(calls)
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= cuda
    assert all(re.match("torch|torchvision|triton|nvidia-|cuda-", name) for name in cuda)


def test_cpu_build_is_kept_until_the_other_one_is_asked_for(tmp_path: Path):
    venv = tmp_path / "venv"
    install(tmp_path, "onedl", str(venv), CPU="1")
    (venv / "lib/python3.11/site-packages/torch-2.12.1+cpu.dist-info").mkdir(parents=True)
    _, calls = install(tmp_path, "onedl", str(venv))
    assert calls == ["doctor"]  # as before
    _, calls = install(tmp_path, "onedl", str(venv), CPU="0")
    removed = next(i for i, line in enumerate(calls) if "uninstall" in line and "torch torchvision" in line)
    assert removed < next(i for i, line in enumerate(calls) if line.startswith("    torch=="))


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path):
    folder = tmp_path / "work_dirs"
    folder.mkdir()
    (folder / "precious.pth").write_text("")
    process, calls = install(tmp_path, "onedl", str(folder))
    assert process.returncode == 1
    assert "exists and is no virtual environment" in process.stderr
    assert [path.name for path in folder.iterdir()] == ["precious.pth"]
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("conda", "venv"), {}, "unknown stack 'conda'"),
        (("onedl", "venv"), {"MMCV_OPS": "fast"}, "MMCV_OPS=fast; allowed: torchvision, compiled"),
        (("onedl", "venv"), {"CPU": "yes"}, "CPU=yes; allowed: 0, 1"),
    ],
)
def test_errors_name_what_is_allowed(tmp_path: Path, arguments: tuple[str, ...], environment: dict, message: str):
    process, calls = install(tmp_path, *arguments, **environment)
    assert process.returncode == 1
    assert message in process.stderr
    assert not calls


def test_an_interrupted_install_is_not_taken_for_a_whole_one(tmp_path: Path):
    venv = tmp_path / "venv"
    install(tmp_path, "onedl", str(venv))
    (venv / "bin/python").write_text(PYTHON.replace("*pip*)", '*"-e ."*) exit 1 ;;\n  *pip*)'))
    process, _ = install(tmp_path, "onedl", str(venv), MMCV_OPS="compiled", CUDA_VISIBLE_DEVICES="")
    assert process.returncode == 1
    assert "installing mmgcvit failed" in process.stderr
    assert not (venv / ".mmgcvit-installed").exists()


def entries(stack: str) -> list[tuple[str, str]]:
    """The name and the text of each entry of a lock file; a package may have one for each Python version."""
    text = (ROOT / f"requirements/{stack}.txt").read_text()
    return [(block.split("==")[0], block) for block in re.split(r"\n(?=\S)", text) if not block.startswith("#")]


def locked(stack: str, python: str) -> dict[str, str]:
    """Package -> version for one Python version on Linux."""
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    versions = {}
    for _, block in entries(stack):
        requirement = Requirement(block.split("\\\n")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate({"platform_machine": "x86_64", **environment}):
            name = canonicalize_name(requirement.name)
            assert name not in versions, name
            (specifier,) = requirement.specifier
            versions[name] = specifier.version
    return versions


@pytest.mark.parametrize("stack", STACKS)
def test_every_locked_file_has_a_hash(stack: str):
    for name, block in entries(stack):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("python", PYTHONS)
def test_locks_satisfy_the_pins_and_the_extras(stack: str, python: str):
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text()
    (names,) = (line.split() for line in re.findall(r"addprefix --extra ,(.*?)\)", makefile) if line.startswith(stack))
    wanted = [line.split("#")[0].strip() for line in (ROOT / f"requirements/{stack}.in").read_text().splitlines()]
    pending = [f"mmgcvit[{','.join(names)}]", *filter(None, wanted)]
    versions = locked(stack, python)
    checked = 0
    while pending:
        requirement = Requirement(pending.pop())
        if requirement.name == "mmgcvit":
            pending += [line for extra in requirement.extras for line in extras[extra]]
            continue
        if requirement.name == "opencv-python":
            continue  # opencv-python-headless takes its place
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
        checked += 1
    assert checked > 20
