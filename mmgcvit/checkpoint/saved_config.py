"""The config that mmengine writes into a checkpoint, read as data: none of it is executed."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping
from typing import Any


def saved_model(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``model`` of the config in a checkpoint; {} if it has no config, or none that can be read.

    Values that are neither constants nor dicts, lists and tuples of them are left out.
    """
    meta = checkpoint.get("meta")
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "model":
                model = _value(statement.value)
                return model if isinstance(model, dict) else {}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return {}


def _value(node: ast.expr) -> Any:
    """Value of an expression; raises a ValueError for a call of anything but ``dict``."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "dict" and not node.args):
        return ast.literal_eval(node)
    found = {}
    for keyword in node.keywords:
        if keyword.arg is not None:
            with contextlib.suppress(ValueError):  # such as float('inf')
                found[keyword.arg] = _value(keyword.value)
    return found
