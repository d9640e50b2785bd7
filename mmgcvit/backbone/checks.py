"""Argument validation: each error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

STAGES = 4


def check_integer(name: str, value: Any, minimum: int) -> int:
    """Return ``value`` as an int; raise a ValueError unless it is an integer of at least ``minimum``."""
    if not _is_integer(value, minimum):
        raise ValueError(f"{name}={value!r}; allowed: an integer >= {minimum}")
    return int(value)


def check_four(name: str, value: Any, minimum: int) -> tuple[int, ...]:
    """Return four integers, one per stage, as a tuple; raise a ValueError unless each is at least ``minimum``."""
    if not isinstance(value, (tuple, list)) or len(value) != STAGES or not all(_is_integer(v, minimum) for v in value):
        raise ValueError(f"{name}={value!r}; allowed: {STAGES} integers >= {minimum}")
    return tuple(map(int, value))


def check_windows(value: Any) -> tuple[int, ...]:
    """Return the window sides of the four stages; an int w means (w, w, 2w, w)."""
    if _is_integer(value, 1):
        return (int(value), int(value), 2 * int(value), int(value))
    try:
        return check_four("window_size", value, 1)
    except ValueError as error:
        raise ValueError(f"{error}, or an integer w, which means (w, w, 2w, w)") from None


def check_stages(name: str, value: Any) -> tuple[int, ...]:
    """Return ``value`` as a tuple; raise a ValueError unless it has one or more stage indices in ascending order."""
    if (
        not isinstance(value, (tuple, list))
        or not value
        or not all(_is_integer(v, 0) for v in value)
        or sorted(set(value)) != list(value)
        or value[-1] >= STAGES
    ):
        raise ValueError(f"{name}={value!r}; allowed: one or more of 0 to {STAGES - 1}, ascending, in a tuple or list")
    return tuple(map(int, value))


def check_rate(name: str, value: Any) -> float:
    """Return ``value`` as a float; raise a ValueError unless it is a probability below 1."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}; allowed: a number >= 0 and < 1")
    return float(value)


def check_number(name: str, value: Any, allowed: str, positive: bool = False) -> float:
    """Return ``value`` as a float; raise a ValueError unless it is a finite number, above 0 if ``positive``."""
    if not _is_number(value) or (positive and value <= 0):
        raise ValueError(f"{name}={value!r}; allowed: {allowed}")
    return float(value)


def check_choice(name: str, value: Any, allowed: tuple) -> None:
    """Raise a ValueError unless ``value`` is one of ``allowed`` and has the same type."""
    if not any(value == choice and type(value) is type(choice) for choice in allowed):
        raise ValueError(f"{name}={value!r}; allowed: {', '.join(map(repr, allowed))}")


def _is_integer(value: Any, minimum: int) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= minimum


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
