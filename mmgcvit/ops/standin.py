"""Two ways in which ``import mmcv._ext`` finds the operators of this package if there are no compiled ones.

1. ``import mmgcvit`` appends a finder to the end of ``sys.meta_path`` (:func:`install`). It answers for the one name
   ``mmcv._ext``, and only if nothing else has found it.
2. ``mmgcvit ops install`` writes ``mmcv/_ext.py`` (:mod:`mmgcvit.ops.commands`), for programs that import mmcv's
   operators before this package, such as mmdet's ``image_demo.py``. Python prefers a compiled ``_ext.*.so`` beside it.

This module imports only the standard library.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

EXTENSION = "mmcv._ext"
#: Names that modules of mmseg set to None if mmcv has no operators, and those operators.
NONE_IN_MMSEG = ("CrissCrossAttention", "PSAMask", "_sigmoid_focal_loss", "point_sample")
#: What the functions say that modules of mmdet define in place of missing operators.
MESSAGE_OF_MMDET = "requires mmcv to be compiled with ops"


class OperatorFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads ``mmcv._ext`` as a module whose functions are those of :mod:`mmgcvit.ops.operators`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for ``mmcv._ext``, None for every other module."""
        return importlib.util.spec_from_loader(fullname, self, origin=__name__) if fullname == EXTENSION else None

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module; imports torchvision."""
        operators = importlib.import_module("mmgcvit.ops.operators")
        vars(module)["__getattr__"] = vars(operators)["__getattr__"]


def install() -> None:
    """Supply ``mmcv._ext`` to this process if mmcv has no compiled one.

    Modules of mmdet and mmseg that were imported before, and found no operators, get them now.
    """
    # By name: the package may have been imported twice.
    if not any(type(finder).__name__ == OperatorFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.append(OperatorFinder())
    missing = list(_missing())
    if not missing:
        return
    try:
        sources = [importlib.import_module(name) for name in ("mmcv.ops", "mmcv.ops.merge_cells")]
    except Exception:  # mmcv or torchvision is broken: the placeholders say what is missing, and the doctor why
        return
    for module, name in missing:
        for source in sources:
            if hasattr(source, operator := name.removeprefix("_")):
                setattr(module, name, getattr(source, operator))
                break


def _missing() -> Iterator[tuple[ModuleType, str]]:
    """Find what imported modules of mmdet and mmseg have in place of operators that they could not import."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mmdet.") and isinstance(module, ModuleType):
            for key, value in list(vars(module).items()):
                function = vars(value).get("__init__") if isinstance(value, type) else value
                constants = getattr(getattr(function, "__code__", None), "co_consts", ())
                if any(isinstance(constant, str) and MESSAGE_OF_MMDET in constant for constant in constants):
                    yield module, key
        elif name.startswith("mmseg.") and isinstance(module, ModuleType):
            for key in NONE_IN_MMSEG:
                if vars(module).get(key, module) is None:
                    yield module, key


def in_use() -> str:
    """Return which operators mmcv uses in this process: 'compiled' or 'torchvision'.

    Raises:
        ImportError: mmcv is not installed, or its operators cannot be imported.
    """
    extension = importlib.import_module(EXTENSION)
    return "torchvision" if "__getattr__" in vars(extension) else "compiled"
