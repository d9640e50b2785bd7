"""Whether operations run as they are called, and tensors of indices that are kept between calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmgcvit.compat import functorch_is_active, is_compiling

Tensors = TypeVar("Tensors", bound=tuple)
CACHE_SIZE = 256  # entries of a cache; multi-scale training has many input sizes


def is_eager() -> bool:
    """Whether operations run one by one: not compiled, exported, traced, or transformed by ``torch.func``."""
    return not (is_compiling() or torch.jit.is_tracing() or functorch_is_active())


def cached(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
    """Cache a function that returns a tuple of index tensors, made from hashable arguments.

    While a graph is being captured, nothing is cached: there the indices become part of the graph.
    """
    results: dict[tuple, Any] = {}

    @wraps(function)
    def wrapper(*key: Any) -> Any:
        if not is_eager():
            return function(*key)
        result = results.get(key)
        if result is None:
            with torch.inference_mode(False):  # so that a backward pass may save them later
                result = function(*key)
            if all(t is None or type(t) is Tensor for t in result):  # no fake tensors
                while len(results) >= CACHE_SIZE:
                    results.pop(next(iter(results)))
                results[key] = result
        return result

    return wrapper
