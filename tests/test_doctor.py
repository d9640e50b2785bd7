"""mmgcvit doctor: no false alarm for an intact stack, and a fix for every problem."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from mmgcvit import doctor


def finding(name: str) -> doctor.Finding:
    return next(f for f in doctor.examine() if f.name == name)


def _reinstall_same(distribution: str) -> str:
    return f'pip install --force-reinstall --no-deps "{distribution}=={metadata.version(distribution)}"'


def broken(monkeypatch, module: str, error: BaseException) -> None:
    """Make the import of ``module`` raise ``error``."""
    real = importlib.import_module

    def fake(name: str, *args):
        if name == module:
            raise error
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", fake)


def versions(monkeypatch, **changed: str | None) -> None:
    """Patch versions of distributions (with _ for -); None means not installed."""
    real = metadata.version

    def fake(name: str) -> str:
        key = name.replace("-", "_")
        if key not in changed:
            return real(name)
        if changed[key] is None:
            raise metadata.PackageNotFoundError(name)
        return changed[key]

    monkeypatch.setattr(metadata, "version", fake)


def test_intact_stack(capsys):
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
    assert lines[-1] == "everything required is installed"


def test_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mmgcvit", "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mmcv._ext" in done.stdout


@pytest.mark.parametrize("name", doctor.NEEDED)
def test_missing_requirement_of_backbone_is_wrong(monkeypatch, capsys, name: str):
    broken(monkeypatch, name, ModuleNotFoundError(f"No module named {name!r}", name=name))
    assert finding(name).state == "wrong"
    assert "not installed" in finding(name).problem
    assert "pip install" in finding(name).fix
    assert doctor.main() == 1
    assert finding(name).fix in capsys.readouterr().out


def test_torch_without_its_libraries(tmp_path):
    """The package can still be imported, and the doctor still reports."""
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


# What a broken package may do on import,
BROKEN = {
    "ImportError": "raise ImportError('libodd.so: undefined symbol')",
    "OSError": "raise OSError('libodd.so: cannot open shared object file')",
    "RuntimeError": "raise RuntimeError('an odd operator does not exist')",
    "AttributeError": "raise AttributeError('module has no odd attribute')",
    "AssertionError": "assert False, 'an odd version is used'",
    "KeyError": "{}['odd']",
    "SyntaxError": "def odd(:",
    "SystemExit": "raise SystemExit('odd exit')",
    "BaseException": "class OddPanic(BaseException): pass\nraise OddPanic('odd')",
    "dependency": "import odd_dependency",
}
# and unusual messages of its exceptions.
PECULIAR = {
    "no message": "assert False",
    "broken message": "class OddError(Exception):\n    def __str__(self): raise ValueError\nraise OddError",
    "not UTF-8": "raise RuntimeError('odd \\udce9 \u2192')",
}
# For each package, the modules that can be imported without it; they are shared by its cases and by later packages.
# Without compiled operators, mmcv.ops needs torchvision, and where there is a file mmcv/_ext.py also mmgcvit and timm.
PRELOADED = {
    "torch": (["mmengine", "cv2"], []),
    "mmengine": (["timm"], ["torch"]),
    "torchvision": (["mmcv"], ["mmengine.runner"]),
    "timm": (["mmcv", "torchvision"], []),
    "mmcv": ([], ["timm"]),
    "mmdet": ([], ["mmgcvit", "mmcv.ops"]),
    "mmseg": ([], []),
}
# Runs `python -m mmgcvit doctor` once per case, in a fork of a process that has imported the shared modules.
DRIVER = """
import contextlib, gc, importlib, io, json, os, runpy, sys, traceback, warnings

gc.disable()  # it would copy the pages that the forks share
warnings.simplefilter("ignore")  # of forks

def doctor(folder):
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    sys.argv = ["mmgcvit", "doctor"]
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # as in a C locale
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            runpy.run_module("mmgcvit", run_name="__main__")
        except SystemExit as exit:
            status = exit.code
        except BaseException:
            status = traceback.format_exc()
    import mmgcvit
    try:
        backbone = "there" if all(hasattr(mmgcvit, name) for name in mmgcvit.__all__) else "AttributeError"
    except ImportError as error:
        backbone = str(error).encode("ascii", "backslashreplace").decode()
    out.flush()
    return [status, out.buffer.getvalue().decode(), backbone]

def forked(function, *args):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with open(write, "w") as pipe:
                json.dump(function(*args), pipe)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return json.loads(result)

def package(name, preloaded, folders):
    for module in preloaded:
        importlib.import_module(module)
    assert name not in sys.modules
    return {kind: forked(doctor, folder) for kind, folder in folders.items()}

cases = json.load(sys.stdin)
results = {}
for name, (preloaded, shared, folders) in cases.items():
    for module in shared:
        importlib.import_module(module)
    results[name] = forked(package, name, preloaded, folders)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def broken_stacks(tmp_path_factory) -> dict[str, dict[str, tuple[int, str, str]]]:
    """Exit status and output of the doctor, and the error on using mmgcvit, for each package and kind of defect."""
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    folder = tmp_path_factory.mktemp("broken")
    cases: dict[str, tuple[list[str], list[str], dict[str, str]]] = {}
    for package, (preloaded, shared) in PRELOADED.items():
        cases[package] = (preloaded, shared, {})
        for kind, source in {**BROKEN, **(PECULIAR if package == "torch" else {})}.items():
            file = folder / kind / package / package / "__init__.py"
            file.parent.mkdir(parents=True)
            file.write_text(source)
            cases[package][2][kind] = str(file.parent.parent)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("package", "kind"),
    [*((package, kind) for package in PRELOADED for kind in BROKEN), *(("torch", kind) for kind in PECULIAR)],
)
def test_package_that_raises_any_exception_on_import(broken_stacks, package: str, kind: str):
    status, output, backbone = broken_stacks[package][kind]
    assert status == 1, f"{status}\n{output}"
    assert "Traceback" not in output
    lines = output.splitlines()
    (problem,) = [i for i, line in enumerate(lines) if line.startswith(f"{package}: cannot be imported: ")]
    words = {"no message": "AssertionError", "broken message": "OddError", "SyntaxError": "invalid syntax"}
    assert words.get(kind, "odd") in lines[problem]
    fix = lines[problem + 1].strip()
    if kind == "dependency":
        assert fix == 'pip install "odd_dependency"'
    elif package in ("torch", "torchvision"):
        assert fix.startswith('pip install --force-reinstall "torch==')
    elif package == "mmcv":
        assert fix == doctor._install_mmcv(doctor._stack())
    else:
        assert fix.startswith(f'pip install --force-reinstall --no-deps "{doctor.MODULES[package][doctor._stack()]}')
    assert lines[-1].endswith("checks failed")
    if package in ("mmcv", "mmdet", "mmseg"):  # not required by the backbone
        assert backbone == "there"
        assert any(line.split() == ["mmgcvit", doctor._version("mmgcvit"), "ok"] for line in lines)
    else:
        assert "`python -m mmgcvit doctor`" in backbone


@pytest.mark.parametrize("kind", ["OSError", "SystemExit", "BaseException"])
def test_command_with_broken_torch(tmp_path: Path, kind: str):
    """In a separate process; every package that imports torch reports the fix for torch."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(BROKEN[kind])
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "mmgcvit", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.count(doctor._install_torch()) >= 4  # torch, torchvision, timm, mmcv


def test_missing_dependency():
    error = ModuleNotFoundError("No module named 'cv2'", name="cv2")
    assert doctor._fix(error, "mmcv", "onedl") == 'pip install "opencv-python-headless"'
    error = ModuleNotFoundError("No module named 'torch._odd'", name="torch._odd")  # torch is installed but incomplete
    assert doctor._fix(error, "timm", "onedl") == doctor._install_torch()


def test_fix_for_incompatible_mmcv():
    error = AssertionError("MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.")
    assert doctor._fix(error, "mmdet", "onedl").endswith(' --no-deps "onedl-mmcv>=2.3.6"')
    assert doctor._fix(error, "mmdet", "openmmlab").endswith(' --no-deps "mmcv-lite<2.2.0,>=2.0.0"')


def test_leftover_folder_is_not_a_package(tmp_path: Path, monkeypatch):
    module = types.ModuleType("timm")
    module.__path__ = [str(tmp_path / "timm")]
    monkeypatch.setitem(sys.modules, "timm", module)
    assert finding("timm").state == "wrong"
    assert str(tmp_path / "timm") in finding("timm").problem
    assert "pip install" in finding("timm").fix


@pytest.mark.parametrize("version", [None, 2, ("2", "1"), "odd"])
def test_module_without_valid_version(monkeypatch, version: object):
    import timm

    monkeypatch.setattr(timm, "__version__", version)
    assert finding("timm").state == "ok"
    assert finding("timm").found == (version if isinstance(version, str) else metadata.version("timm"))
    monkeypatch.delattr(timm, "__version__")
    assert finding("timm").found == metadata.version("timm")


@pytest.mark.parametrize("error", [KeyError("Version"), UnicodeDecodeError("utf-8", b"", 0, 1, "odd"), None])
def test_damaged_metadata(monkeypatch, error: Exception | None):
    """Versions cannot be checked then, but the rest of the report is complete."""

    def damaged(name: str) -> None:
        if error:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(metadata, "version", damaged)
        assert finding("torch").state == "ok"
        assert doctor.main() in (0, 1)
        assert "pip install" in doctor._install_torch()
    monkeypatch.setattr(metadata, "requires", damaged)
    assert finding("mmgcvit").state == "wrong"


def test_metadata_with_malformed_requirements(monkeypatch):
    requires = metadata.requires
    monkeypatch.setattr(metadata, "requires", lambda name: ["odd !! line", "timm>=99", *(requires(name) or [])])
    assert "requires >=99" in finding("timm").problem


def test_version_is_none(monkeypatch):
    versions(monkeypatch, timm="odd", torch="2.odd")
    assert "timm odd is incompatible" in finding("timm").problem
    assert '"timm>=' in finding("timm").fix
    assert doctor.main() == 1


@pytest.mark.parametrize("error", [RuntimeError("No CUDA driver"), AssertionError(), KeyError("odd"), None])
def test_broken_cuda(monkeypatch, error: Exception | None):
    def broken_cuda() -> None:
        raise error

    if error:
        monkeypatch.setattr(torch.cuda, "is_available", broken_cuda)
    else:
        monkeypatch.delattr(torch, "cuda")
    gpu = doctor._gpu("onedl")
    assert gpu.state == "wrong"
    assert "torch.cuda cannot be used: " in gpu.problem
    assert "--force-reinstall" in gpu.fix


@pytest.mark.parametrize("module", ["mmcv._ext", "mmcv.ops"])
@pytest.mark.parametrize("error", [AssertionError("nms miss in module _ext"), KeyError("nms"), SystemExit(3)])
def test_broken_ops(monkeypatch, module: str, error: BaseException):
    pytest.importorskip("mmcv.ops")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    broken(monkeypatch, module, error)
    assert finding("mmcv._ext").state == "wrong"
    assert type(error).__name__ in finding("mmcv._ext").problem
    assert "MMCV_WITH_OPS=1" in finding("mmcv._ext").fix
    assert finding("GPU").found.startswith("Some GPU")


@pytest.mark.parametrize("error", [AssertionError(), KeyError("odd"), OSError("odd"), AttributeError("odd")])
def test_broken_registry(monkeypatch, error: Exception):
    from mmengine.registry import MODELS

    def get(name: str) -> None:
        raise error

    monkeypatch.setattr(MODELS, "get", get)
    assert finding("mmgcvit").state == "wrong"
    assert finding("mmgcvit").problem.startswith("the backbone cannot be imported: ")
    assert "pip install" in finding("mmgcvit").fix


def test_another_class_with_the_same_name(monkeypatch):
    from mmengine.registry import MODELS

    monkeypatch.setattr(MODELS, "get", lambda name: dict)
    assert "another class is registered as GCViT" in finding("mmgcvit").problem


def test_broken_requirement_outside_the_table(monkeypatch):
    broken(monkeypatch, "safetensors", OSError("odd"))
    assert doctor._fix_backbone(OSError("odd"), "onedl") == _reinstall_same("safetensors")


def test_broken_indirect_dependency():
    """A broken numpy breaks mmengine, mmcv and others; the fix must be to reinstall numpy."""
    import numpy as np

    with pytest.raises(TypeError) as raised:
        np.zeros(4).mean(axis="odd")  # raised in numpy's own Python files
    assert doctor._culprit(raised.value) == "numpy"
    assert doctor._fix(raised.value, "mmengine", "onedl") == _reinstall_same("numpy")


def test_unchecked_versions_are_not_reported_as_ok(monkeypatch):
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
    assert "is incompatible" in wrong.problem
    assert "requires" in wrong.problem


def test_builds_for_other_devices(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision, "__version__", torchvision.__version__.partition("+")[0] + "+cpu")
    assert "is a different build from torch" in finding("torchvision").problem


def test_gpu_with_cpu_only_ops(monkeypatch):
    ops = pytest.importorskip("mmcv.ops")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(doctor, "ops_in_use", lambda: "compiled")
    monkeypatch.setattr(ops, "get_compiling_cuda_version", lambda: "13.0")
    assert finding("GPU").found.startswith("Some GPU, CUDA")
    assert finding("GPU").state == "ok"
    monkeypatch.setattr(ops, "get_compiling_cuda_version", lambda: "not available")
    assert finding("GPU").state == "wrong"
    assert finding("GPU").fix == f"FORCE_CUDA=1 {doctor._install_ops(doctor._stack())}"
    monkeypatch.setattr(doctor, "ops_in_use", lambda: "torchvision")
    assert finding("GPU").fix == doctor._install_torch()


@pytest.mark.parametrize("name", ["mmdet", "mmseg"])
def test_detection_and_segmentation_may_be_absent(monkeypatch, name: str):
    broken(monkeypatch, name, ModuleNotFoundError(f"No module named {name!r}", name=name))
    assert finding(name).state == "absent"
    assert doctor.main() == 0


def test_mmdet_requires_mmcv(monkeypatch):
    pytest.importorskip("mmdet")
    broken(monkeypatch, "mmcv", ModuleNotFoundError("No module named 'mmcv'", name="mmcv"))
    assert finding("mmcv").state == "wrong"
    assert finding("mmcv").fix == doctor._install_mmcv(doctor._stack())


def test_operators_of_another_torch(monkeypatch):
    """Fixed without compiled operators, or by compiling them again."""
    pytest.importorskip("mmcv._ext")
    broken(monkeypatch, "mmcv._ext", ImportError("undefined symbol: _ZN3c10"))
    wrong = finding("mmcv._ext")
    assert wrong.state == "wrong"
    assert "undefined symbol" in wrong.problem
    assert wrong.fix.startswith(doctor._install_mmcv(doctor._stack()))
    assert "MMCV_WITH_OPS=1" in wrong.fix
    assert "--no-cache-dir" in wrong.fix


@pytest.mark.parametrize("kind", ["compiled", "torchvision"])
def test_operators_in_use_are_named(monkeypatch, kind: str):
    pytest.importorskip("mmcv._ext")
    extension = types.ModuleType("mmcv._ext")
    if kind == "torchvision":
        extension.__getattr__ = lambda name: None
    else:
        extension.__file__ = "_ext.so"
    monkeypatch.setitem(sys.modules, "mmcv._ext", extension)
    found = finding("mmcv._ext")
    assert (found.found.partition(",")[0], found.state) == (kind, "ok")


def test_operators_by_a_broken_torchvision(monkeypatch):
    """The fix is one for torchvision, not for mmcv."""
    pytest.importorskip("mmcv._ext")
    namespace = {"__name__": "torchvision.ops"}
    exec("def fail():\n    raise OSError('libodd.so: cannot open shared object file')", namespace)

    def load(name: str, real=importlib.import_module) -> types.ModuleType:
        return namespace["fail"]() if name == "mmcv._ext" else real(name)

    monkeypatch.setattr(importlib, "import_module", load)
    wrong = doctor._ops(doctor._stack())
    assert (wrong.state, wrong.fix) == ("wrong", doctor._install_torch())


def test_torch_and_torchvision_of_different_builds(monkeypatch):
    broken(monkeypatch, "torchvision", RuntimeError("operator torchvision::nms does not exist"))
    assert "different builds" in finding("torchvision").problem
    major, minor = torch.__version__.split(".")[:2]
    wanted = f'"torch=={torch.__version__.partition("+")[0]}" "torchvision==0.{15 + int(minor)}.*"'
    assert wanted in finding("torchvision").fix
    assert major == "2"
    # packages that import torchvision fail too, and have the same fix
    broken(monkeypatch, "timm", RuntimeError("operator torchvision::nms does not exist"))
    assert wanted in finding("timm").fix


def test_incompatible_versions(monkeypatch):
    versions(monkeypatch, timm="1.0.30", torch="2.0.1")
    assert "mmgcvit requires >=1.0.31" in finding("timm").problem
    assert "requires" in finding("torch").problem
    assert doctor.main() == 1


def test_two_mmengines(monkeypatch):
    versions(monkeypatch, mmengine="0.10.7", onedl_mmengine="0.10.12")
    assert "two distributions" in finding("mmengine twice").problem
    assert "pip uninstall -y onedl-mmengine mmengine" in finding("mmengine twice").fix


def test_an_assertion_about_mmcv_is_shown(monkeypatch):
    pytest.importorskip("mmdet")
    broken(monkeypatch, "mmdet", AssertionError("MMCV==2.2.0 is used but incompatible. Please install mmcv<2.2.0"))
    assert "mmcv<2.2.0" in finding("mmdet").problem


def test_old_python(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON", (99, 0))
    assert finding("Python").state == "wrong"


def test_import_without_mmengine_explains_missing_backbone(monkeypatch):
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


def test_import_without_mmcv_mmdet_and_mmseg(tmp_path):
    """The backbone works and is registered if neither mmcv, mmdet nor mmseg can be imported."""
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


def test_system_without_libgl(monkeypatch):
    error = ImportError("libGL.so.1: cannot open shared object file: No such file or directory")
    broken(monkeypatch, "mmcv", error)
    assert finding("mmcv").state == "wrong"
    assert "opencv-python-headless" in finding("mmcv").fix
