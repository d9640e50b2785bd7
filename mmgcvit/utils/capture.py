"""Whether operations run as they are called, and results that are kept between calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmgcvit.compat import functorch_is_active, is_compiling

Result = TypeVar("Result")
CACHE_SIZE = 256  # entries of a cache; multi-scale training has many input sizes


def is_eager() -> bool:
    """Whether operations run one by one: not compiled, exported, traced, or transformed by ``torch.func``."""
    return not (is_compiling() or torch.jit.is_tracing() or functorch_is_active())


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """Cache a function of hashable arguments whose result holds tensors of indices.

    While a graph is being captured or tensors are fake, the cache is not used: there the indices belong to the graph.
    """
    results: dict[tuple, Result] = {}

    @wraps(function)
    def wrapper(*key: Any) -> Result:
        if not is_eager() or type(torch.empty(0)) is not Tensor:
            return function(*key)
        if key not in results:
            while len(results) >= CACHE_SIZE:
                results.pop(next(iter(results)))
            with torch.inference_mode(False):  # so that a backward pass may save them later
                results[key] = function(*key)
        return results[key]

    return wrapper
