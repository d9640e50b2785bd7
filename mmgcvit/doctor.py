"""``mmgcvit doctor``: what of the software stack is there, whether it fits together, and what mends it."""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

MODULES = {  # import name -> the distributions that may install it, by stack
    "torch": {"onedl": "torch", "openmmlab": "torch"},
    "torchvision": {"onedl": "torchvision", "openmmlab": "torchvision"},
    "timm": {"onedl": "timm", "openmmlab": "timm"},
    "mmengine": {"onedl": "onedl-mmengine", "openmmlab": "mmengine"},
    "mmcv": {"onedl": "onedl-mmcv", "openmmlab": "mmcv"},
    "mmdet": {"onedl": "onedl-mmdetection", "openmmlab": "mmdet"},
    "mmseg": {"onedl": "onedl-mmsegmentation", "openmmlab": "mmsegmentation"},
}
NEEDED = ("torch", "timm", "mmengine")  # by the backbone alone
PYTHON = (3, 10)


@dataclass
class Finding:
    """One line of the report: ``state`` is 'ok', 'absent' (the backbone works without it) or 'wrong'."""

    name: str
    found: str
    state: str = "ok"
    problem: str = ""
    mend: str = ""


def examine() -> list[Finding]:
    """Look at everything, and say of each thing what is there and, where it is wrong, what mends it."""
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
        findings.append(_backbone(stack))
    return findings


def report(findings: list[Finding]) -> str:
    """The findings as a table, and under it the command that mends each thing that is wrong or absent."""
    wide = [max(len(getattr(f, field)) for f in findings) for field in ("name", "found")]
    lines = [f"{f.name:<{wide[0]}}  {f.found:<{wide[1]}}  {f.state}" for f in findings]
    for f in findings:
        if f.state != "ok":
            lines += ["", f"{f.name}: {f.problem}", f"  {f.mend}"]
    wrong = sum(f.state == "wrong" for f in findings)
    lines += ["", f"{wrong} of {len(findings)} checks failed" if wrong else "all that is needed is there"]
    return "\n".join(lines)


def main() -> int:
    """Print the report. Returns 1 if something needed is missing or wrong, else 0."""
    findings = examine()
    print(report(findings))
    return int(any(f.state == "wrong" for f in findings))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _stack() -> str:
    """The stack that is installed, by its mmengine; the default one where there is none."""
    return "openmmlab" if _version("mmengine") and not _version("onedl-mmengine") else "onedl"


def _python() -> Finding:
    finding = Finding("Python", platform.python_version())
    if sys.version_info[:2] < PYTHON:
        finding.state, finding.problem = "wrong", "3.10 or later is needed"
        finding.mend = "python3.11 -m venv .venv"
    return finding


def _install(*requirements: str) -> str:
    return "pip install " + " ".join(f'"{r}"' for r in requirements)


def _install_torch() -> str:
    """torch and torchvision anew, as a pair and from one index: torchvision 0.(15 + n) belongs to torch 2.n."""
    version = (_version("torch") or "").partition("+")[0]
    minor = version.split(".")[1] if version.startswith("2.") else ""
    pair = f'"torch=={version}" "torchvision==0.{15 + int(minor)}.*"' if minor else "torch torchvision"
    return f"pip install --force-reinstall {pair}"


def _install_ops(stack: str) -> str:
    """How mmcv is built with its ops: from source, against the torch that is there, past pip's cache."""
    mmcv = MODULES["mmcv"][stack]
    tools = "setuptools>=77,<82" if stack == "onedl" else "setuptools==69.5.1"
    return (
        f'pip install "{tools}" wheel ninja psutil && MMCV_WITH_OPS=1 pip install --no-cache-dir '
        f'--no-build-isolation --no-deps --force-reinstall --no-binary {mmcv} "{_asked(mmcv, stack)}"'
    )


def _asked(distribution: str, stack: str) -> str:
    """The distribution with the bounds that mmgcvit itself sets (setup.py), as pip takes it."""
    for requirement in _requirements("mmgcvit", stack):
        if requirement.name == distribution:
            return f"{distribution}{requirement.specifier}"
    return distribution


def _requirements(distribution: str, stack: str) -> list[Requirement]:
    """What a distribution asks for, optional parts of this stack included; [] where that cannot be known."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(line) for line in metadata.requires(distribution) or []]
    except (ImportError, metadata.PackageNotFoundError):
        return []
    # The bounds between the mm packages stand under the extras 'mim' (OpenMMLab) and 'mminstall' (OneDL).
    return [
        r
        for r in requirements
        if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in ("", stack, "mim", "mminstall"))
    ]


def _module(name: str, stack: str) -> Finding:
    distribution = MODULES[name][stack]
    version = _version(distribution)
    mend = _install(_asked(distribution, stack))
    if name == "mmcv":
        mend = _install_ops(stack)
    elif name in ("torch", "torchvision"):
        mend = _install_torch()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            state = "wrong" if name in NEEDED else "absent"
            use = {"mmdet": "detection", "mmseg": "segmentation"}.get(name, "mmdet and mmseg")
            why = "the backbone needs it" if name in NEEDED else f"needed for {use} only"
            return Finding(name, "-", state, f"not installed; {why}", mend)
        return Finding(name, version or "?", "wrong", f"cannot be imported: {error}", _install(error.name or name))
    except Exception as error:  # whatever a broken package raises is what the report is about
        problem = " ".join(str(error).split())
        if "torchvision::" in problem:  # whoever imports torchvision meets it
            problem += " (torch and torchvision are of different builds)"
            mend = _install_torch()
        if "libGL" in problem:  # opencv-python wants it from the system; its headless twin has the same cv2 without
            mend = "pip install --force-reinstall --no-deps opencv-python-headless"
        return Finding(name, version or "?", "wrong", f"cannot be imported: {problem}", mend)
    return Finding(name, str(getattr(module, "__version__", version)))


def _check_bounds(findings: dict[str, Finding], stack: str) -> None:
    """What the installed packages ask of each other, from their own metadata."""
    names = {of[stack]: name for name, of in MODULES.items()}
    for asking in ["mmgcvit", *names]:
        for requirement in _requirements(asking, stack):
            there = _version(requirement.name)
            if requirement.name not in names or there is None:
                continue
            if not requirement.specifier.contains(there.partition("+")[0], prereleases=True):
                finding = findings[names[requirement.name]]
                finding.state = "wrong"
                finding.problem = f"{requirement.name} {there} does not fit: {asking} asks for {requirement.specifier}"
                finding.mend = _install(f"{requirement.name}{requirement.specifier}")
    vision, torch = findings["torchvision"].found, findings["torch"].found
    if "+" in vision and "+" in torch and vision.split("+")[1] != torch.split("+")[1]:
        findings["torchvision"].state = "wrong"
        findings["torchvision"].problem = f"torchvision {vision} is of another build than torch {torch}"
        findings["torchvision"].mend = _install_torch()


def _doubles() -> Iterator[Finding]:
    """Two distributions that install the same package folder overwrite each other's files."""
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
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        return Finding(
            "mmcv._ext",
            "-",
            "wrong",
            f"mmcv's compiled ops (RoIAlign, NMS, ...) are missing or were built against another torch: {error}",
            _install_ops(stack),
        )
    return Finding("mmcv._ext", "compiled ops")


def _gpu(stack: str) -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none: everything runs on the CPU")
    finding = Finding("GPU", f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    try:
        from mmcv.ops import get_compiling_cuda_version
    except ImportError:
        return finding
    if get_compiling_cuda_version() == "not available":
        finding.state, finding.problem = "wrong", "mmcv's ops were built without CUDA, and fail on this GPU"
        finding.mend = f"FORCE_CUDA=1 {_install_ops(stack)}"
    return finding


def _backbone(stack: str) -> Finding:
    try:
        from mmengine.registry import MODELS

        import mmgcvit

        registered = MODELS.get("GCViT") is mmgcvit.GCViT
    except Exception as error:
        return Finding("mmgcvit", "-", "wrong", f"the backbone cannot be imported: {error}", "see above")
    if not registered:
        return Finding(
            "mmgcvit",
            mmgcvit.__version__,
            "wrong",
            f"another GCViT stands in mmengine's registry under its name: {MODELS.get('GCViT')}",
            "do not import that one",
        )
    if not _requirements("mmgcvit", stack):
        return Finding(
            "mmgcvit",
            mmgcvit.__version__,
            "wrong",
            "the versions that it asks for could not be checked: it is on the path but not installed",
            "pip install packaging && pip install --no-deps -e .  # in its folder",
        )
    return Finding("mmgcvit", mmgcvit.__version__)
