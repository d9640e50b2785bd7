"""Detection of graph capture, and a cache that is safe with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmgcvit.compat import forward_ad_level, functorch_is_active, is_compiling, is_dynamo_compiling, is_tracing

Result = TypeVar("Result")
CACHE_SIZE = 128  # entries of a cache; multi-scale training has many input sizes


def is_eager() -> bool:
    """Whether operations run eagerly: not compiled, exported, traced, transformed, or in forward-mode AD."""
    return not (is_compiling() or is_tracing() or functorch_is_active() or forward_ad_level() >= 0)


def is_dynamic(*sizes: int) -> bool:
    """Whether a graph is being captured that may have to hold for other values of these sizes, too.

    Then nothing may branch on them. While ``torch.compile`` traces, sizes always look like plain integers.
    """
    return is_dynamo_compiling() or not {int}.issuperset(map(type, sizes))


def cached(function: Callable[..., Result]) -> Callable[..., Result]:
    """Cache a function of hashable arguments whose result holds tensors of indices or constants.

    While a graph is being captured or tensors are fake, the cache is not used: there they belong to the graph.
    """

    @lru_cache(CACHE_SIZE)
    def compute(*key: Any) -> Result:
        with torch.inference_mode(False):  # so that a backward pass may save them later
            return function(*key)

    @wraps(function)
    def wrapper(*key: Any) -> Result:
        if not is_eager() or type(torch.empty(0)) is not Tensor:
            return function(*key)
        return compute(*key)

    return wrapper
