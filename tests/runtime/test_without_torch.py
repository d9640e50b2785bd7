"""The runtime needs nothing but onnxruntime, numpy and Pillow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx_models import scene, write_model

# onnxruntime and what it requires itself
ALLOWED = (
    "numpy",
    "PIL",
    "onnxruntime",
    "flatbuffers",
    "google",
    "packaging",
    "coloredlogs",
    "humanfriendly",
    "mmgcvit",
)
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in (*sys.stdlib_module_names, *{ALLOWED!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BLOCK + code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_predictions_without_other_packages(tmp_path: Path):
    Image.fromarray(scene(97, 401, (10, 20, 100, 50))).save(tmp_path / "a.png")
    for task in ("detection", "segmentation", "classification"):
        write_model(tmp_path / f"{task}.onnx", task, masks="box" * (task == "detection"))
    code = """
from mmgcvit.runtime import Predictor
from mmgcvit.runtime.__main__ import main
folder = sys.argv[1]
print(Predictor(f"{folder}/detection.onnx", threads=1)(f"{folder}/a.png")[0].boxes.tolist())
for task in ("detection", "segmentation", "classification"):
    main([f"{folder}/{task}.onnx", f"{folder}/a.png", "--out-dir", f"{folder}/{task}", "--threads", "1"])
    assert __import__("os").path.isfile(f"{folder}/{task}/vis/a.png")
for name in ("torch", "timm", "mmengine", "mmcv", "cv2", "rich", "mmdet"):
    assert name not in sys.modules, name
import mmgcvit
try:
    mmgcvit.GCViT
except ImportError as error:
    print(error)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[[10.0, 20.0, 100.0, 50.0]]"
    assert lines[1].startswith("1 image, 1 detection: predictions in ")
    assert "mmgcvit.GCViT cannot be imported" in lines[-1]
    assert "doctor" in lines[-1]
    assert len(json.loads((tmp_path / "detection/predictions.json").read_text())) == 1


@pytest.mark.parametrize("command", ["export config.py last.pth model.onnx", "params config.py", "weights list"])
def test_commands_that_need_torch(command: str):
    done = run(f"from mmgcvit.__main__ import main; sys.exit(main({command.split()!r}))")
    assert done.returncode == 1
    name = command.split()[0]
    assert re.fullmatch(rf"{name}: \S+ cannot be imported: .*\(blocked\).*; pip install 'mmgcvit\[.*\n", done.stderr)


def test_doctor_without_other_packages():
    done = run("from mmgcvit.__main__ import main; sys.exit(main(['doctor']))")
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    for name in ("torch", "timm", "mmengine"):
        assert f"{name}: not installed; the backbone needs it" in done.stdout
    assert done.stdout.count("pip install") >= 4
