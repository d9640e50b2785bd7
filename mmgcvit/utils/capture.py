"""Detection of graph capture, and a cache that is safe with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmgcvit.compat import functorch_is_active, is_compiling, is_tracing

Result = TypeVar("Result")
CACHE_SIZE = 256  # entries of a cache; multi-scale training has many input sizes


def is_eager() -> bool:
    """Whether operations run eagerly: not compiled, exported, traced, or transformed by ``torch.func``."""
    return not (is_compiling() or is_tracing() or functorch_is_active())


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """Cache a function of hashable arguments whose result contains index tensors.

    The cache is not used while a graph is being captured or with fake tensors: there the indices belong to the graph.
    """
    results: dict[tuple, Result] = {}

    @wraps(function)
    def wrapper(*key: Any) -> Result:
        if not is_eager() or type(torch.empty(0)) is not Tensor:
            return function(*key)
        if key not in results:
            while len(results) >= CACHE_SIZE:
                results.pop(next(iter(results)))
            with torch.inference_mode(False):  # so that autograd can save them for a backward pass later
                results[key] = function(*key)
        return results[key]

    return wrapper
