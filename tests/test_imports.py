"""Imports between the package's modules, and side effects of importing them."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mmgcvit"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if ".mim" not in path.parts
}


def imported(name: str, path: Path) -> set[str]:
    """List the modules that a module imports, including imports inside functions, and the packages this initialises.

    (The packages that contain the module are initialised before it.)
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            base = node.module or ""
            found |= {full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    found = {module for module in found if module in MODULES}
    for module in list(found):
        parents = module.split(".")
        found |= {
            parent
            for count in range(1, len(parents))
            if not f"{name}.".startswith(f"{(parent := '.'.join(parents[:count]))}.")
        }
    return found - {name}


def test_no_import_cycles():
    graph = {name: imported(name, path) for name, path in MODULES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from error
    assert set(order) == set(MODULES)


def test_backbone_imports_no_higher_level_modules():
    above = {f"mmgcvit.{name}" for name in ("apis", "analysis", "checkpoint", "datasets", "engine", "optim", "tasks")}
    wrong = {
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in imported(name, path)
        if name.startswith(("mmgcvit.backbone", "mmgcvit.kernels")) and ".".join(other.split(".")[:2]) in above
    }
    assert wrong == set()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_changes_only_registries():
    """Pillow's limit is unchanged, and mmengine's root registries get only names with GCViT."""
    code = """
import PIL.Image, mmengine.registry as root
def names():
    return {f"{key}: {name}" for key, registry in vars(root).items() if isinstance(registry, root.Registry)
            for name in registry.module_dict}
import mmengine.runner, mmengine.visualization, mmengine.optim, mmengine.hooks, mmengine.model  # register their own
before, limit = names(), PIL.Image.MAX_IMAGE_PIXELS
import mmgcvit, mmgcvit.apis, mmgcvit.datasets.images, mmgcvit.datasets.check
assert PIL.Image.MAX_IMAGE_PIXELS == limit
print("\\n".join(sorted(names() - before)))
"""
    assert run(code).splitlines() == [
        "MODELS: GCViT",
        "MODELS: GCViTClassifier",
        "OPTIM_WRAPPER_CONSTRUCTORS: GCViTLayerDecayOptimWrapperConstructor",
    ]


def test_import_requires_only_torch_timm_and_mmengine():
    code = """
import sys
for name in ("mmcv", "mmdet", "mmseg", "sklearn", "pycocotools"):
    sys.modules[name] = None  # importing it fails
import mmgcvit, mmgcvit.apis, mmgcvit.analysis, mmgcvit.datasets.check, mmgcvit.gpu_benchmark.run
from mmgcvit.datasets.classification import ClassificationDataset
print(mmgcvit.GCViTClassifier.__name__, ClassificationDataset is mmgcvit.ClassificationDataset)
"""
    assert run(code).splitlines()[-1] == "GCViTClassifier True"


def test_former_locations():
    """Names can be imported from their former locations for one release."""
    from mmgcvit.classification import ClassificationPreprocessor, GCViTClassifier, TopKAccuracy
    from mmgcvit.datasets.classification import LoadPillowImage, TimmTransform
    from mmgcvit.engine import ClassificationHook, CorruptImageHook, CorruptPictureHook, InvalidLossError
    from mmgcvit.tasks.classification import classifier, hook, metric, preprocessor, transforms

    assert GCViTClassifier is classifier.GCViTClassifier
    assert ClassificationPreprocessor is preprocessor.ClassificationPreprocessor
    assert TopKAccuracy is metric.TopKAccuracy
    assert (LoadPillowImage, TimmTransform) == (transforms.LoadPillowImage, transforms.TimmTransform)
    assert ClassificationHook is hook.ClassificationHook
    assert CorruptPictureHook is CorruptImageHook
    assert issubclass(InvalidLossError, RuntimeError)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("classification", ("ClassificationPreprocessor", "GCViTClassifier", "TopKAccuracy")),
        ("checkpoint.errors", ("CheckpointError",)),
        ("datasets.annotations", ("AnnotationError", "Picture", "read_coco")),
        ("datasets.classification", ("ClassificationDataset", "TimmTransform")),
        ("datasets.errors", ("ClassificationDataError", "CorruptPictureError")),
        ("datasets.labels", ("LabelMaps", "check_label_maps")),
        ("datasets.pictures", ("LoadCheckedImage", "picture_size", "unreadable")),
        ("engine", ("CorruptPictureHook",)),
        ("engine.classes", ("ClassificationHook",)),
        ("engine.tta", ("BoxTTAModel",)),
    ],
)
def test_former_import_paths(module: str, names: tuple[str, ...]):
    """They work for one release."""
    found = importlib.import_module(f"mmgcvit.{module}")
    assert all(getattr(found, name) is not None for name in names)
