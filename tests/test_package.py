"""The installed wheel: package, configs and tools work outside the source tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the tracked files, so that it contains no remains of earlier builds."""
    pytest.importorskip("setuptools", minversion="77", reason="pip would download a newer one (build-system)")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    files = (
        subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory) -> Path:
    """Python of a new environment with the wheel; it shares this environment's packages through a .pth file.

    Folders added by a .pth file are not searched for other .pth files, so the editable install of the project is not
    visible.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip())
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site / "stack.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_wheel_contains_configs_and_tools_like_openmmlab_packages(wheel: Path):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    tracked = subprocess.run(["git", "ls-files", "configs", "tools"], cwd=ROOT, capture_output=True, text=True)
    files = tracked.stdout.split()
    assert len(files) > 10
    for name in [*files, "model-index.yml"]:  # install.sh is only for source checkouts
        assert (f"mmgcvit/.mim/{name}" in names) == (name != "tools/install.sh"), name
    assert {"mmgcvit/py.typed", "mmgcvit/report/page.html.j2"} <= names
    assert not any("__pycache__" in n or n.startswith("tests") for n in names)


def test_configs_are_found_from_the_installed_wheel(python: Path, tmp_path: Path):
    pytest.importorskip("mmdet")
    (tmp_path / "mine.py").write_text(
        "_base_ = 'mmgcvit::detection/mask-rcnn_gcvit-tiny_fpn_1x_coco.py'\n"
        "model = dict(backbone=dict(arch='xxtiny'))\n"
    )
    code = """
import sys, mmgcvit
from mmengine.config import Config
assert mmgcvit.__file__.startswith(sys.prefix), mmgcvit.__file__
cfg = Config.fromfile('mine.py')
print(cfg.model.backbone.type, cfg.model.backbone.arch, cfg.model.type)
from mmengine.hub import get_config
print(get_config('mmgcvit::detection/mask-rcnn_gcvit-tiny_fpn_1x_coco.py').model.backbone.arch)
"""
    assert run(python, "-c", code, cwd=tmp_path).stdout.splitlines()[-2:] == ["GCViT xxtiny MaskRCNN", "tiny"]


def test_doctor_and_tools_run_from_the_installed_wheel(python: Path, tmp_path: Path):
    pytest.importorskip("mmdet")
    assert "everything required is installed" in run(python.parent / "mmgcvit", "doctor", cwd=tmp_path).stdout
    assert "usage: mmgcvit predict " in run(python.parent / "mmgcvit", "predict", "--help", cwd=tmp_path).stdout
    tools = run(python, "-c", "import mmgcvit, os; print(os.path.dirname(mmgcvit.__file__))", cwd=tmp_path).stdout
    tools = Path(tools.strip()) / ".mim" / "tools"
    for tool in ("train.py", "test.py", "image_demo.py", "make_digit_scenes.py"):
        assert "usage:" in run(python, tools / tool, "--help", cwd=tmp_path).stdout
    for script in ("dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"):
        assert os.access(tools / script, os.X_OK)


@pytest.mark.slow
def test_exported_models_run_in_an_environment_without_torch(wheel: Path, tmp_path: Path):
    """``pip install mmgcvit[runtime]`` in a new environment: no torch, and predictions from the command line."""
    pytest.importorskip("onnx")
    from onnx_models import scene, write_model
    from PIL import Image

    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    command = [python, "-m", "pip", "install", "-q", f"mmgcvit[runtime] @ {wheel.as_uri()}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    unreachable = ("Failed to establish", "No matching distribution", "Temporary failure", "Connection", "HTTPError")
    if done.returncode and any(words in done.stderr for words in unreachable):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    installed = run(python, "-m", "pip", "list", "--format", "freeze", cwd=tmp_path).stdout.lower()
    assert {"mmgcvit", "onnxruntime", "numpy", "pillow"} <= set(re.findall(r"^[\w-]+", installed, re.MULTILINE))
    assert not re.search(r"^(torch|timm|(onedl-)?mm(engine|cv|det|seg).*|opencv.*)[= @]", installed, re.MULTILINE)
    (tmp_path / "images").mkdir()
    Image.fromarray(scene(97, 401, (10, 20, 100, 50))).save(tmp_path / "images/a.png")
    Image.fromarray(scene(64, 64, (5, 6, 30, 40))).save(tmp_path / "images/b.png")
    write_model(tmp_path / "model.onnx", masks="box")
    command = [python, "-m", "mmgcvit.runtime", "model.onnx", "images", "--out-dir", "out"]
    code = "import mmgcvit; print(mmgcvit.__file__)"
    assert run(python, "-c", code, cwd=tmp_path, PYTHONPATH="").stdout.startswith(str(tmp_path / "venv"))
    assert run(*command, cwd=tmp_path, PYTHONPATH="").stdout.startswith(
        "2 images, 2 detections: predictions in out/predictions.json"
    )
    results = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [result["bbox"] for result in results] == [[10, 20, 90, 30], [5, 6, 25, 34]]
    assert sorted(path.name for path in (tmp_path / "out/vis").iterdir()) == ["a.png", "b.png"]


@pytest.mark.slow
def test_mim_trains_from_the_installed_wheel(python: Path, tmp_path: Path):
    pytest.importorskip("mim")
    pytest.importorskip("sklearn")
    from mmgcvit.datasets.digit_scenes import make_digit_scenes

    make_digit_scenes(tmp_path / "data/digit_scenes", images=20, size=128)
    done = run(
        python,
        "-m",
        "mim",
        "train",
        "mmgcvit",
        "mask-rcnn_gcvit-nano_fpn_digits.py",
        "--gpus",
        "0",
        "--work-dir",
        "work",
        "--cfg-options",
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        cwd=tmp_path,
        HOME=str(tmp_path),
    )
    assert "Training finished successfully" in done.stdout
    assert (tmp_path / "work/iter_2.pth").is_file()
