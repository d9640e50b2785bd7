"""What goes wrong with checkpoints."""

from __future__ import annotations

from collections.abc import Iterable


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is of another network, or cannot be fetched. No model was changed."""


def some(names: Iterable[object], most: int = 8) -> str:
    """``a, b, c and 5 more``: a list that fits into a message."""
    listed = list(map(str, names))
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
