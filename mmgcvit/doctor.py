"""``mmgcvit doctor``: checks that the software stack is installed and consistent, and prints a command for each fix.

The examined packages may be broken in any way, so no exception from one of them may abort the report.
"""

from __future__ import annotations

import importlib
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import mmgcvit
from mmgcvit.ops import commands
from mmgcvit.ops import in_use as ops_in_use
from mmgcvit.utils.text import describe

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MODULES = {  # import name -> distribution that installs it, per stack
    "torch": {"onedl": "torch", "openmmlab": "torch"},
    "torchvision": {"onedl": "torchvision", "openmmlab": "torchvision"},
    "timm": {"onedl": "timm", "openmmlab": "timm"},
    "mmengine": {"onedl": "onedl-mmengine", "openmmlab": "mmengine"},
    "mmcv": {"onedl": "onedl-mmcv", "openmmlab": "mmcv"},
    "mmdet": {"onedl": "onedl-mmdetection", "openmmlab": "mmdet"},
    "mmseg": {"onedl": "onedl-mmsegmentation", "openmmlab": "mmsegmentation"},
}
NEEDED = ("torch", "timm", "mmengine")  # requirements of the backbone alone
OTHERS = (
    "packaging",
    "safetensors",
    "filelock",
    "rich",
)  # mmgcvit's other requirements, whose import name equals the distribution name
DISTRIBUTIONS = {  # distributions whose name differs from the import name
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "pkg_resources": "setuptools<82",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}
NO_CULPRITS = {*sys.stdlib_module_names, "__main__", "mmgcvit"}  # never to blame for an error
PYTHON = (3, 10)


@dataclass
class Finding:
    """One line of the report; ``state`` is 'ok', 'absent' (not required by the backbone) or 'wrong'."""

    name: str
    found: str
    state: str = "ok"
    problem: str = ""
    fix: str = ""


def examine() -> list[Finding]:
    """Run all checks; returns what is installed and, for everything that is wrong, the problem and its fix."""
    stack = _stack()
    findings = [_python()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        findings += [_module(name, stack) for name in MODULES]
        by_name = {finding.name: finding for finding in findings}
        _check_bounds(by_name, stack)
        findings += list(_doubles())
        if by_name["mmcv"].state == "ok":
            findings.append(_ops(stack))
        elif any(by_name[name].state != "absent" for name in ("mmdet", "mmseg")):
            by_name["mmcv"].state = "wrong"
        if by_name["torch"].state == "ok":
            findings.append(_gpu(stack))
        explained = any(finding.state == "wrong" for finding in findings)
        findings.append(_backbone(stack, explained))
    return findings


def report(findings: list[Finding]) -> str:
    """Format the findings as a table, followed by the problems and fixes of everything that is wrong or absent."""
    name_width = max(len(f.name) for f in findings)
    found_width = max(len(f.found) for f in findings)
    lines = [f"{f.name:<{name_width}}  {f.found:<{found_width}}  {f.state}" for f in findings]
    for f in findings:
        if f.state != "ok":
            lines += ["", f"{f.name}: {f.problem}", f"  {f.fix}"]
    wrong = sum(f.state == "wrong" for f in findings)
    lines += ["", f"{wrong} of {len(findings)} checks failed" if wrong else "everything required is installed"]
    return "\n".join(lines)


def main() -> int:
    """Print the report; returns 1 if a requirement is missing or wrong, else 0."""
    findings = examine()
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # a C locale cannot encode every error message
    print(report(findings).encode(encoding, "backslashreplace").decode(encoding))
    return int(any(f.state == "wrong" for f in findings))


def _import(name: str) -> ModuleType | BaseException:
    """Import a module; returns it or the exception raised, which may be a BaseException (pyo3's panics)."""
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error


def _attribute(module: ModuleType, name: str) -> object:
    """Return an attribute of a module; None if it does not exist, or a lazy module fails to provide it."""
    try:
        return getattr(module, name, None)
    except Exception:
        return None


def _version(distribution: str) -> str | None:
    """Return the version of a distribution; None if it is not installed or its metadata is damaged."""
    try:
        version: object = metadata.version(distribution)
    except Exception:
        return None
    return version if isinstance(version, str) else None


def _stack() -> str:
    """Return the installed stack, identified by its mmengine; OneDL's if there is none."""
    return "openmmlab" if _version("mmengine") and not _version("onedl-mmengine") else "onedl"


def _python() -> Finding:
    finding = Finding("Python", platform.python_version())
    if sys.version_info[:2] < PYTHON:
        finding.state, finding.problem = "wrong", "3.10 or later is required"
        finding.fix = "python3.11 -m venv .venv"
    return finding


def _install(*requirements: str) -> str:
    return "pip install " + " ".join(f'"{r}"' for r in requirements)


def _reinstall(requirement: str) -> str:
    """Command that replaces the files of a package: pip does not touch a broken package of the right version."""
    return f'pip install --force-reinstall --no-deps "{requirement}"'


def _install_torch() -> str:
    """Command that reinstalls torch and torchvision from one index: torchvision 0.(15 + n) belongs to torch 2.n."""
    version = (_version("torch") or "").partition("+")[0]
    minor = re.match(r"2\.(\d+)", version)
    pair = f'"torch=={version}" "torchvision==0.{15 + int(minor[1])}.*"' if minor else "torch torchvision"
    return f"pip install --force-reinstall {pair}"


def _install_mmcv(stack: str) -> str:
    """Command that installs mmcv without compiled operators: mmgcvit supplies them (:mod:`mmgcvit.ops`).

    pip's cache may hold a wheel with operators that were built against another torch.
    """
    if stack == "onedl":
        return f'pip install --no-cache-dir --force-reinstall --no-deps "{_asked(MODULES["mmcv"][stack], stack)}"'
    lite = _asked(MODULES["mmcv"][stack], stack).replace("mmcv", "mmcv-lite")
    return f'pip uninstall -y mmcv && pip install --no-deps "{lite}"'


def _install_ops(stack: str) -> str:
    """Command that builds mmcv and its operators from source against the installed torch, bypassing pip's cache."""
    mmcv = MODULES["mmcv"][stack]
    tools = "setuptools>=77,<82" if stack == "onedl" else "setuptools==69.5.1"
    return (
        f'pip install "{tools}" wheel ninja psutil && MMCV_WITH_OPS=1 pip install --no-cache-dir '
        f'--no-build-isolation --no-deps --force-reinstall --no-binary {mmcv} "{_asked(mmcv, stack)}"'
    )


def _asked(distribution: str, stack: str) -> str:
    """Requirement for pip: the distribution with the version bounds from mmgcvit's own metadata."""
    for requirement in _requirements("mmgcvit", stack):
        if requirement.name in (distribution, f"{distribution}-lite"):  # mmcv-lite is mmcv without operators
            return f"{distribution}{requirement.specifier}"
    return distribution


def _requirements(distribution: str, stack: str) -> list[Requirement]:
    """Requirements of a distribution, including this stack's extras; [] if they cannot be read."""
    # The version bounds between the mm packages are in the extras 'mim' (OpenMMLab) and 'mminstall' (OneDL).
    extras = ("", "backbone", stack, "mim", "mminstall")
    requirements: list[Requirement] = []
    try:
        from packaging.requirements import Requirement

        lines = metadata.requires(distribution) or []
    except Exception:
        return requirements
    for line in lines:
        try:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                requirements.append(requirement)
        except Exception:  # skip malformed lines
            continue
    return requirements


def _module(name: str, stack: str) -> Finding:
    version = _version(MODULES[name][stack])
    module = _import(name)
    if isinstance(module, ModuleNotFoundError) and module.name == name:
        state = "wrong" if name in NEEDED else "absent"
        use = {"mmdet": "detection", "mmseg": "segmentation"}.get(name, "mmdet and mmseg")
        why = "the backbone needs it" if name in NEEDED else f"needed for {use} only"
        return Finding(name, "-", state, f"not installed; {why}", _fix_missing(name, stack))
    if isinstance(module, BaseException):
        error = _first_failure(name, module)
        problem = f"cannot be imported: {describe(error)}"
        if "torchvision::" in problem:  # raised by every package that imports torchvision
            problem += "; torch and torchvision are different builds"
        return Finding(name, version or "?", "wrong", problem, _fix(error, name, stack))
    if _attribute(module, "__file__") is None and hasattr(module, "__path__"):
        folder = next(iter(module.__path__), "?")
        problem = f"not installed: {folder} is a folder with this name that contains no package; move it away"
        return Finding(name, "-", "wrong", problem, _fix_missing(name, stack))
    found = _attribute(module, "__version__")
    return Finding(name, found if isinstance(found, str) else version or "?")


def _fix_missing(name: str, stack: str) -> str:
    """Command that installs a missing module."""
    if name == "mmcv":
        return _install_mmcv(stack)
    if name in ("torch", "torchvision"):
        return _install_torch()
    if name in MODULES:
        distribution = MODULES[name][stack]
        install = _reinstall if _version(distribution) else _install  # pip may consider it installed
        return install(_asked(distribution, stack))
    return _install(DISTRIBUTIONS.get(name, name))


def _fix(error: BaseException, name: str, stack: str) -> str:
    """Command that fixes a module whose import raised ``error``."""
    message = describe(error)
    if "torchvision::" in message:
        return _install_torch()
    if "libGL" in message:  # opencv-python needs the system's libGL, the headless variant does not
        return "pip install --force-reinstall --no-deps opencv-python-headless"
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = error.name.partition(".")[0]
        if "." not in error.name or missing not in MODULES:
            return _fix_missing(missing, stack)
    culprit = _culprit(error) or name
    if culprit == "mmcv":
        return _install_mmcv(stack)
    if culprit in ("torch", "torchvision"):
        return _install_torch()
    if culprit in MODULES:
        return _reinstall(_asked(MODULES[culprit][stack], stack))
    distribution = (_distributions().get(culprit) or [culprit])[0]
    version = _version(distribution)
    return _reinstall(f"{distribution}=={version}" if version else distribution)


@cache
def _distributions() -> dict[str, list[str]]:
    """Map each importable name to the distributions that install it."""
    try:
        return dict(metadata.packages_distributions())
    except Exception:
        return {}


def _culprit(error: BaseException) -> str | None:
    """Return the package to blame for an error: one reported as incompatible, else the innermost in the traceback."""
    incompatible = re.search(r"\b(\w+)==\S+ is used but incompatible", describe(error))  # mmdet's message about mmcv
    if incompatible and incompatible[1].lower() in MODULES:
        return incompatible[1].lower()
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] in MODULES:
        return error.name.partition(".")[0]
    if isinstance(error, SyntaxError) and error.filename:  # a module that does not compile is not in the traceback
        return next((part for part in reversed(Path(error.filename).parts) if part in MODULES), None)
    culprit, trace = None, error.__traceback__
    while trace is not None:
        running = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if running in MODULES or (running not in NO_CULPRITS and running in _distributions()):
            culprit = running
        trace = trace.tb_next
    return culprit


def _first_failure(name: str, error: BaseException) -> BaseException:
    """Return the first error met while importing mmgcvit, if it came from ``name``, else ``error``.

    A compiled package whose import failed once often raises a different, misleading error the second time.
    """
    reason = _attribute(mmgcvit, "_reason")
    return reason if isinstance(reason, BaseException) and _culprit(reason) == name else error


def _check_bounds(findings: dict[str, Finding], stack: str) -> None:
    """Check the installed versions against the requirements that the packages declare for each other."""
    names = {of[stack]: name for name, of in MODULES.items()}
    for asking in ["mmgcvit", *names]:
        for requirement in _requirements(asking, stack):
            there = _version(requirement.name) if requirement.name in names else None
            if there is None:
                continue
            try:
                fits = requirement.specifier.contains(there.partition("+")[0], prereleases=True)
            except Exception:  # not a valid version
                fits = False
            finding = findings[names[requirement.name]]
            if not fits:
                misfit = f"{requirement.name} {there} is incompatible: {asking} requires {requirement.specifier}"
                finding.state = "wrong"
                finding.problem = f"{finding.problem}; {misfit}" if finding.problem else misfit
                finding.fix = _install(f"{requirement.name}{requirement.specifier}")
    vision, torch = findings["torchvision"], findings["torch"].found
    if (
        vision.state == "ok"
        and "+" in vision.found
        and "+" in torch
        and vision.found.split("+")[1] != torch.split("+")[1]
    ):
        vision.state = "wrong"
        vision.problem = f"torchvision {vision.found} is a different build from torch {torch}"
        vision.fix = _install_torch()


def _doubles() -> Iterator[Finding]:
    """Find distributions that install the same package folder, and so overwrite each other's files."""
    for name, of in MODULES.items():
        if of["onedl"] != of["openmmlab"] and _version(of["onedl"]) and _version(of["openmmlab"]):
            both = f"{of['onedl']} {of['openmmlab']}"
            yield Finding(
                f"{name} twice",
                both,
                "wrong",
                f"two distributions install the folder {name}",
                f"pip uninstall -y {both} && {_install(_asked(of['onedl'], 'onedl'))}",
            )


def _ops(stack: str) -> Finding:
    for name in ("mmcv._ext", "mmcv.ops"):  # importing mmcv.ops looks up all its functions in the extension
        error = _import(name)
        if isinstance(error, BaseException):
            problem = f"mmcv's operators (RoIAlign, NMS, ...) cannot be imported: {describe(error)}"
            if _culprit(error) in ("torch", "torchvision"):  # computes them in the place of compiled ones
                return Finding("mmcv._ext", "-", "wrong", problem, _fix(error, "mmcv", stack))
            problem += "; compiled ones work only with the torch and the mmcv that they were built against"
            fix = f"{_install_mmcv(stack)}  # without compiled operators; with them: {_install_ops(stack)}"
            return Finding("mmcv._ext", "-", "wrong", problem, fix)
    return Finding("mmcv._ext", commands.describe(short=True))


def _gpu(stack: str) -> Finding:
    try:
        import torch

        if not torch.cuda.is_available():
            return Finding("GPU", "none: everything runs on the CPU")
        finding = Finding("GPU", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    except Exception as error:
        return Finding("GPU", "?", "wrong", f"torch.cuda cannot be used: {describe(error)}", _install_torch())
    ops = _import("mmcv.ops")
    try:
        built_for: object = getattr(ops, "get_compiling_cuda_version", lambda: None)()  # None: reported by _ops
    except Exception:
        built_for = "not available"
    if built_for == "not available":
        broken = isinstance(_import("mmcv._ext"), BaseException)  # reported by _ops
        compiled = broken or ops_in_use() == "compiled"
        owner = "mmcv's operators were" if compiled else "torchvision, which computes mmcv's operators, was"
        finding.state, finding.problem = "wrong", f"{owner} built without CUDA, and fails on this GPU"
        finding.fix = f"FORCE_CUDA=1 {_install_ops(stack)}" if compiled else _install_torch()
    return finding


def _backbone(stack: str, explained: bool) -> Finding:
    """Check mmgcvit itself; ``explained``: another check has already failed, so a failure here needs no explanation."""
    try:
        registry = _import("mmengine.registry")
        if isinstance(registry, BaseException):
            raise ImportError from registry
        for name in mmgcvit.__all__:
            getattr(mmgcvit, name)
        registered: object = registry.MODELS.get("GCViT")
        backbone: object = mmgcvit.GCViT
    except Exception as error:
        cause = error.__cause__ or error
        fix = "see above" if explained else _fix_backbone(cause, stack)
        return Finding("mmgcvit", "-", "wrong", f"the backbone cannot be imported: {describe(cause)}", fix)
    finding = Finding("mmgcvit", mmgcvit.__version__)
    if registered is not backbone:
        finding.state = "wrong"
        finding.problem = f"another class is registered as GCViT in mmengine's registry: {registered}"
        finding.fix = "do not import that class"
    elif not _requirements("mmgcvit", stack):
        finding.state = "wrong"
        finding.problem = "the required versions could not be checked: mmgcvit can be imported but is not installed"
        finding.fix = "pip install packaging && pip install --no-deps -e .  # in its folder"
    return finding


def _fix_backbone(error: BaseException, stack: str) -> str:
    """Command that fixes a requirement that no other check covers."""
    for name in OTHERS:
        failure = _import(name)
        if isinstance(failure, BaseException):
            return _fix(failure, name, stack)
    return _fix(error, "mmgcvit", stack)
