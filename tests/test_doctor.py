"""The doctor: right about a sound stack, and about each thing that can be wrong with one."""

from __future__ import annotations

import builtins
import importlib
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from conftest import ROOT

from mmgcvit import doctor


def finding(name: str) -> doctor.Finding:
    return next(f for f in doctor.examine() if f.name == name)


def broken(monkeypatch, module: str, error: Exception) -> None:
    """Let importing ``module`` raise ``error``."""
    real = importlib.import_module

    def fake(name: str, *args):
        if name == module:
            raise error
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", fake)


def versions(monkeypatch, **changed: str | None) -> None:
    """Let distributions (with _ for -) have other versions; None for absent."""
    real = metadata.version

    def fake(name: str) -> str:
        key = name.replace("-", "_")
        if key not in changed:
            return real(name)
        if changed[key] is None:
            raise metadata.PackageNotFoundError(name)
        return changed[key]

    monkeypatch.setattr(metadata, "version", fake)


def test_a_sound_stack(capsys):
    pytest.importorskip("mmcv._ext")
    assert doctor.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:9]] == [
        "Python",
        "torch",
        "torchvision",
        "timm",
        "mmengine",
        "mmcv",
        "mmdet",
        "mmseg",
        "mmcv._ext",
    ]
    assert lines[-1] == "all that is needed is there"


def test_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mmgcvit", "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mmcv._ext" in done.stdout


@pytest.mark.parametrize("name", doctor.NEEDED)
def test_what_the_backbone_needs_is_wrong_when_missing(monkeypatch, capsys, name: str):
    broken(monkeypatch, name, ModuleNotFoundError(f"No module named {name!r}", name=name))
    assert finding(name).state == "wrong"
    assert "not installed" in finding(name).problem
    assert "pip install" in finding(name).mend
    assert doctor.main() == 1
    assert finding(name).mend in capsys.readouterr().out


def test_a_torch_without_its_libraries(tmp_path):
    """The package still imports, and the doctor still speaks."""
    code = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch':
            raise OSError('libcublas.so.13: cannot open shared object file')
sys.meta_path.insert(0, Broken())
from mmgcvit.__main__ import main
sys.exit(main(['doctor']))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "torch: cannot be imported: libcublas.so.13" in done.stdout
    assert "pip install --force-reinstall" in done.stdout


def test_versions_are_not_called_right_where_they_cannot_be_checked(monkeypatch):
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert finding("mmgcvit").state == "wrong"
    assert "could not be checked" in finding("mmgcvit").problem


def test_bounds_between_the_mm_packages(monkeypatch):
    pytest.importorskip("mmseg")
    versions(monkeypatch, onedl_mmengine="0.8.0", mmcv="2.2.0")
    wrong = finding("mmcv" if doctor._stack() == "openmmlab" else "mmengine")
    assert wrong.state == "wrong"
    assert "does not fit" in wrong.problem
    assert "asks for" in wrong.problem


def test_builds_for_other_devices(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision, "__version__", torchvision.__version__.partition("+")[0] + "+cpu")
    assert "is of another build than torch" in finding("torchvision").problem


def test_a_gpu_with_ops_for_the_cpu(monkeypatch):
    ops = pytest.importorskip("mmcv.ops")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(ops, "get_compiling_cuda_version", lambda: "13.0")
    assert finding("GPU").found.startswith("Some GPU, CUDA")
    assert finding("GPU").state == "ok"
    monkeypatch.setattr(ops, "get_compiling_cuda_version", lambda: "not available")
    assert finding("GPU").state == "wrong"
    assert "FORCE_CUDA=1" in finding("GPU").mend


@pytest.mark.parametrize("name", ["mmdet", "mmseg"])
def test_detection_and_segmentation_may_be_absent(monkeypatch, name: str):
    broken(monkeypatch, name, ModuleNotFoundError(f"No module named {name!r}", name=name))
    assert finding(name).state == "absent"
    assert doctor.main() == 0


def test_mmcv_is_needed_by_mmdet(monkeypatch):
    pytest.importorskip("mmdet")
    broken(monkeypatch, "mmcv", ModuleNotFoundError("No module named 'mmcv'", name="mmcv"))
    assert finding("mmcv").state == "wrong"
    assert "MMCV_WITH_OPS=1" in finding("mmcv").mend


def test_missing_ops(monkeypatch):
    pytest.importorskip("mmcv._ext")
    broken(monkeypatch, "mmcv._ext", ImportError("undefined symbol: _ZN3c10"))
    wrong = finding("mmcv._ext")
    assert wrong.state == "wrong"
    assert "undefined symbol" in wrong.problem
    assert "MMCV_WITH_OPS=1" in wrong.mend
    assert "--no-cache-dir" in wrong.mend


def test_torch_and_torchvision_of_different_builds(monkeypatch):
    broken(monkeypatch, "torchvision", RuntimeError("operator torchvision::nms does not exist"))
    assert "different builds" in finding("torchvision").problem
    major, minor = torch.__version__.split(".")[:2]
    wanted = f'"torch=={torch.__version__.partition("+")[0]}" "torchvision==0.{15 + int(minor)}.*"'
    assert wanted in finding("torchvision").mend
    assert major == "2"
    # whatever imports torchvision fails with it, and is mended with it
    broken(monkeypatch, "timm", RuntimeError("operator torchvision::nms does not exist"))
    assert wanted in finding("timm").mend


def test_versions_that_do_not_fit(monkeypatch):
    versions(monkeypatch, timm="1.0.30", torch="2.0.1")
    assert "mmgcvit asks for >=1.0.31" in finding("timm").problem
    assert "asks for" in finding("torch").problem
    assert doctor.main() == 1


def test_two_mmengines(monkeypatch):
    versions(monkeypatch, mmengine="0.10.7", onedl_mmengine="0.10.12")
    assert "two distributions" in finding("mmengine twice").problem
    assert "pip uninstall -y onedl-mmengine mmengine" in finding("mmengine twice").mend


def test_an_assertion_about_mmcv_is_shown(monkeypatch):
    pytest.importorskip("mmdet")
    broken(monkeypatch, "mmdet", AssertionError("MMCV==2.2.0 is used but incompatible. Please install mmcv<2.2.0"))
    assert "mmcv<2.2.0" in finding("mmdet").problem


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON", (99, 0))
    assert finding("Python").state == "wrong"


def test_the_package_imports_without_mmengine_and_says_why_there_is_no_backbone(monkeypatch):
    real = builtins.__import__

    def fake(name: str, *args, **kwargs):
        if name.split(".")[0] == "mmengine":
            raise ModuleNotFoundError("No module named 'mmengine'", name="mmengine")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == "mmgcvit"]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as without:
        without.setattr(builtins, "__import__", fake)
        package = importlib.import_module("mmgcvit")
    with pytest.raises(ImportError, match=r"No module named 'mmengine'.*doctor"):
        _ = package.GCViT
    with pytest.raises(AttributeError):
        _ = package.nothing


def test_importing_needs_neither_mmcv_nor_mmdet_nor_mmseg(tmp_path):
    """The backbone works, and is registered, where only torch and mmengine can be imported."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'timm'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import torch, mmgcvit
from mmengine.registry import MODELS
model = MODELS.build(dict(type='GCViT', arch='xxtiny'))
print([tuple(m.shape) for m in model(torch.zeros(2, 3, 32, 32))])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.stdout.strip() == "[(2, 64, 8, 8), (2, 128, 4, 4), (2, 256, 2, 2), (2, 512, 1, 1)]", done.stderr


def test_a_system_without_libgl(monkeypatch):
    error = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    broken(monkeypatch, "mmcv", error)
    assert finding("mmcv").state == "wrong"
    assert "opencv-python-headless" in finding("mmcv").mend
