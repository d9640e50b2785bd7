"""How mmcv finds the operators, in processes of their own: with compiled ones hidden where they are installed."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import torch
from conftest import ROOT

pytest.importorskip("mmcv")
from mmgcvit import ops
from mmgcvit.__main__ import main
from mmgcvit.errors import UsageError
from mmgcvit.ops import commands, operators

# The compiled extension, or the file of `mmgcvit ops install`, cannot be found.
HIDDEN = """
import sys
from importlib.machinery import PathFinder
class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "mmcv._ext" else super().find_spec(name, path, target)
sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_operators_are_found_where_there_are_no_compiled_ones():
    """Also by code that only asks whether the extension exists. Importing the package imports none of them."""
    code = f"""{HIDDEN}
import mmgcvit, importlib.util
assert [name for name in sys.modules if name.startswith(("mmcv", "mmgcvit.ops."))] == ["mmgcvit.ops.standin"]
from mmgcvit import ops
spec = importlib.util.find_spec("mmcv._ext")
import mmcv.ops, torch
boxes = torch.tensor([[0., 0, 10, 10], [1, 0, 10, 10]])
print(spec.name, ops.in_use(), mmcv.ops.nms(boxes, torch.ones(2), 0.5)[1].tolist(), mmcv.ops.get_compiler_version())
from mmgcvit.ops import commands
print(commands.describe())
"""
    first, second = run(code).splitlines()[-2:]
    assert first.startswith("mmcv._ext torchvision [0] none (torchvision ")
    assert second.startswith("torchvision, in")


def test_placeholders_are_replaced(monkeypatch: pytest.MonkeyPatch):
    """Functions, classes and None; everything else stays."""
    import mmcv.ops

    code = """
def nms(*args):
    raise RuntimeError("nms requires mmcv to be compiled with ops. Please reinstall")
class RoIPool:
    def __init__(self):
        raise RuntimeError("RoIPool requires mmcv to be compiled with ops. Please reinstall")
def _sigmoid_focal_loss():
    raise RuntimeError("sigmoid_focal_loss requires mmcv to be compiled with ops. Please reinstall")
def sigmoid_focal_loss():
    return "mmdet's own"
point_sample = None
"""
    detection, segmentation = types.ModuleType("mmdet.odd"), types.ModuleType("mmseg.odd")
    exec(code, vars(detection))
    segmentation.point_sample = segmentation.other = None
    monkeypatch.setitem(sys.modules, "mmdet.odd", detection)
    monkeypatch.setitem(sys.modules, "mmseg.odd", segmentation)
    ops.install()
    assert detection.nms is mmcv.ops.nms
    assert detection.RoIPool is mmcv.ops.RoIPool
    assert detection._sigmoid_focal_loss == mmcv.ops.sigmoid_focal_loss
    assert detection.sigmoid_focal_loss() == "mmdet's own"
    assert detection.point_sample is None
    assert segmentation.point_sample is mmcv.ops.point_sample
    assert segmentation.other is None


@pytest.mark.slow
def test_modules_imported_before_get_the_operators():
    """mmdet defines placeholders for operators that it cannot import, mmseg sets them to None."""
    pytest.importorskip("mmdet")
    pytest.importorskip("mmseg")
    code = f"""{HIDDEN}
import mmengine.registry
try:
    import mmdet.structures.mask.structures as masks, mmdet.utils.large_image as image
except ImportError:
    print("skip")  # OpenMMLab's mmdet cannot be imported without operators
    raise SystemExit
import mmseg.utils.mask_classification as classification
assert masks.roi_align.__module__ == "mmdet.structures.mask.structures" and classification.point_sample is None
import mmgcvit, mmcv.ops
assert masks.roi_align is mmcv.ops.roi_align
assert image.batched_nms is mmcv.ops.batched_nms
assert classification.point_sample is mmcv.ops.point_sample
print("done")
"""
    assert run(code).split()[-1] in ("done", "skip")


def test_compiled_operators_take_precedence():
    if ops.in_use() != "compiled":
        pytest.skip("mmcv was installed without compiled operators")
    import mmcv._ext

    assert mmcv._ext.__file__.endswith(".so")
    assert not isinstance(mmcv._ext.__spec__.loader, ops.standin.OperatorFinder)
    assert commands.describe() == f"compiled, {mmcv._ext.__file__}"


def test_finder_answers_for_one_name_only_and_is_installed_once():
    finders = [finder for finder in sys.meta_path if isinstance(finder, ops.standin.OperatorFinder)]
    ops.install()
    assert [finder for finder in sys.meta_path if isinstance(finder, ops.standin.OperatorFinder)] == finders
    (finder,) = finders
    assert finder.find_spec("mmcv._ext", None) is not None
    assert [finder.find_spec(name, None) for name in ("mmcv", "mmcv._other", "_ext", "mmcv._ext.x")] == [None] * 4


@pytest.mark.parametrize("name", ["nms_quadri", "upfirdn2d", "points_in_boxes_part_forward"])
def test_operator_that_is_not_supplied(name: str):
    """It exists, so that mmcv.ops can be imported, and fails when it is called."""
    function = getattr(operators, name)
    with pytest.raises(UsageError, match=f"mmcv's operator '{name}' .*MMCV_OPS=compiled"):
        function(torch.zeros(1), key=1)


def test_every_function_that_mmcv_asks_for_is_there():
    import ast

    import mmcv

    names = set()
    for path in (Path(mmcv.__file__).parent / "ops").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ext_loader.load_ext":
                names |= set(ast.literal_eval(node.args[1]))
    assert len(names) > 80
    assert set(operators.OPERATORS) <= names
    assert all(callable(getattr(operators, name)) for name in names)
    with pytest.raises(AttributeError, match="_private"):
        getattr(operators, "_private")  # noqa: B009


@pytest.fixture
def bare_mmcv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with links to the files of the installed mmcv, but without operators of any kind."""
    spec = PathFinder.find_spec("mmcv")
    (tmp_path / "mmcv").mkdir()
    for path in Path(spec.origin).parent.iterdir():
        if not path.name.startswith(("_ext", "__pycache__")):
            (tmp_path / "mmcv" / path.name).symlink_to(path)
    info = tmp_path / "mmcv-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mmcv\nVersion: 9\n")
    (info / "RECORD").write_text("mmcv/__init__.py,sha256=x,10\nmmcv-9.dist-info/RECORD,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def test_file_for_other_programs(bare_mmcv: Path):
    """With it, mmcv's operators can be imported by a program that never imports this package."""
    assert commands.write_file() == bare_mmcv / "mmcv/_ext.py"
    assert commands.write_file() == bare_mmcv / "mmcv/_ext.py"  # no second entry in the list of files
    record = (bare_mmcv / "mmcv-9.dist-info/RECORD").read_text().splitlines()
    assert record == ["mmcv/__init__.py,sha256=x,10", "mmcv-9.dist-info/RECORD,,", "mmcv/_ext.py,,"]
    (distribution,) = metadata.distributions(path=[str(bare_mmcv)])
    assert any(path.locate() == bare_mmcv / "mmcv/_ext.py" for path in distribution.files)
    code = """
import mmcv.ops, mmcv._ext, torch
assert mmcv._ext.__file__.endswith("mmcv/_ext.py"), mmcv._ext.__file__
print(mmcv.ops.nms(torch.tensor([[0., 0, 9, 9], [0, 0, 9, 9]]), torch.ones(2), 0.5)[1].tolist())
"""
    assert run(code).strip() == "[0]"
    assert commands.remove_file() == bare_mmcv / "mmcv/_ext.py"
    assert not (bare_mmcv / "mmcv/_ext.py").exists()
    assert (bare_mmcv / "mmcv-9.dist-info/RECORD").read_text().splitlines() == record[:2]
    assert commands.remove_file() is None


def test_commands(bare_mmcv: Path, capsys: pytest.CaptureFixture):
    assert main(["ops", "install"]) == 0
    assert f"written: {bare_mmcv / 'mmcv/_ext.py'}" in capsys.readouterr().out
    assert main(["ops", "remove"]) == 0
    assert main(["ops", "status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("mmcv's operators: ")


def test_without_mmcv(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(PathFinder, "find_spec", lambda name: None)
    assert main(["ops", "install"]) == 1
    assert capsys.readouterr().err.startswith("ops: mmcv is not installed")
