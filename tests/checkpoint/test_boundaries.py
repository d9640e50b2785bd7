"""Import boundaries, side effects of importing the package, and former names kept for one release."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from mmgcvit import GCViT, GCViTClassifier, load_pretrained
from mmgcvit.backbone import pretrained_init
from mmgcvit.checkpoint import CheckpointError, errors, fit, layouts, loading, weights
from mmgcvit.errors import MMGCViTError
from mmgcvit.utils import file_sha256, summarize


def imports(path: Path) -> set[str]:
    """List the modules that a file imports, including imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "mmgcvit/backbone").glob("*.py")), ids=lambda path: path.name)
def test_backbone_does_not_import_checkpoint(path: Path):
    assert not [name for name in imports(path) if name.startswith("mmgcvit.checkpoint")]


@pytest.mark.parametrize("name", ["reader", "layouts", "fit", "weights"])
def test_modules_do_not_import_the_network(name: str):
    """They only import dimensions and bias tables from the backbone; ``fit`` uses GCViT in annotations only."""
    of_backbone = {n for n in imports(ROOT / f"mmgcvit/checkpoint/{name}.py") if n.startswith("mmgcvit.backbone")}
    allowed = ("mmgcvit.backbone.arch.", "mmgcvit.backbone.bias.", "mmgcvit.backbone.checks.")
    rest = {n for n in of_backbone if not n.startswith(allowed)}
    assert rest <= ({"mmgcvit.backbone.gcvit.GCViT"} if name == "fit" else set())


def test_import_registers_no_global_module_hooks():
    code = (
        "import torch.nn.modules.module as m\n"
        "names = [n for n in vars(m) if n.startswith('_global_') and 'hook' in n and hasattr(getattr(m, n), 'keys')]\n"
        "assert '_global_module_registration_hooks' in names, names\n"
        "before = {n: list(getattr(m, n)) for n in names}\n"
        "import mmgcvit\n"
        "assert before == {n: list(getattr(m, n)) for n in names}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_without_checkpoint_support(classifier, authors_dict, files, monkeypatch):
    """Without registration, our own state dict loads as in any module, and 'Pretrained' raises an informative error."""
    monkeypatch.setattr(pretrained_init, "_loader", None)
    monkeypatch.setattr(pretrained_init, "_adapter", None)
    model = GCViT(TINY, out_indices=(3,), init_cfg=dict(type="Pretrained", checkpoint=str(files["nvidia"])))
    model.load_state_dict(classifier.backbone.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(authors_dict)
    with pytest.raises(RuntimeError, match=r"init_cfg of type 'Pretrained' needs mmgcvit\.checkpoint"):
        model.init_weights()


def test_old_names(files):
    assert (fit.fit, fit.Numbers, fit.grouped) == (fit.match_state_dict, fit.InferredArch, fit.group_by_part)
    assert layouts.take_apart is layouts.split_state_dict
    assert layouts.convert_back is layouts.export_state_dict
    assert layouts.weights_of is layouts.unwrap_checkpoint
    assert loading.locate is loading.resolve_source
    assert errors.some is summarize
    assert errors.CheckpointError is CheckpointError
    assert issubclass(CheckpointError, (MMGCViTError, ValueError))
    assert weights.file_sha256 is file_sha256
    report = load_pretrained(GCViTClassifier(dict(arch=TINY), num_classes=5), files["nvidia"])
    assert report.is_plain is report.is_exact is True


def test_old_temporary_function(tmp_path: Path):
    with weights.temporary(tmp_path / "a.txt") as unfinished:
        unfinished.write_text("1")
        unfinished.replace(tmp_path / "a.txt")
    with weights.temporary(tmp_path / "b.txt") as unfinished:
        unfinished.write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
