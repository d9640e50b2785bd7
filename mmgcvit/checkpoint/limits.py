"""Limits on what a checkpoint file may make the reader allocate, and for how long it may keep it busy.

They are far above what real checkpoints need, and keep any file below three times its size plus 200 MB of memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from mmgcvit.errors import CheckpointError

MIB = 1 << 20
MAX_PICKLE = 512 * MIB  # bytes of a pickle; the loss curves of a long run are the largest part of it
MAX_OBJECTS = 128 * MIB  # estimated bytes of Python objects in a pickle, plus the size of the file
MAX_ZIP_DIRECTORY = 8 * MIB  # bytes, about 100,000 tensors
MAX_HEADER = 8 * MIB  # bytes of the header of a safetensors file
MAX_TENSORS = 65_536  # in a safetensors or HDF5 file
MAX_DEPTH = 64  # of nested containers and groups
MAX_DIMS = 64  # of a tensor, as in torch
_SLACK = 64 * MIB


#: What to do with a file that NVIDIA TAO has encrypted.
DECRYPT = (
    "load it in TAO with your key, and save it as .pth without encryption_key; allowed: .pth files that are not "
    "encrypted"
)


class RefusedError(CheckpointError):
    """A file asks for something that checkpoints do not need. A user who trusts its source may let it in."""


def largest_contents(size: int) -> int:
    """Bytes that the contents of a file may have if everything that is used several times is counted several times.

    Args:
        size: of the file, in bytes.
    """
    return 2 * size + _SLACK


def check_contents(found: object, size: int) -> None:
    """Refuse contents that are nested too deeply, contain themselves, or would be huge without sharing.

    A container or tensor that occurs several times is counted each time: code that prints, copies or converts the
    contents visits it each time, so that nested sharing could keep it busy for ever.

    Args:
        found: the contents of a file.
        size: of the file, in bytes.

    Raises:
        RefusedError: a limit is exceeded.
    """
    total, _ = _measure(found)
    if total > largest_contents(size):
        raise RefusedError(f"its contents claim {total:,} bytes, many of them several times")


def _measure(found: object) -> tuple[int, int]:
    """Bytes of the contents with all repetitions, and depth of nesting. Each container is visited once."""
    known: dict[int, tuple[int, int]] = {}  # by id
    unfinished: set[int] = set()
    waiting = [(found, False)]
    while waiting:
        item, is_done = waiting.pop()
        parts = _parts(item)
        if parts is None or id(item) in known:
            continue
        if is_done:
            bytes_, depth = 64, 0
            for part in parts:
                part_bytes, part_depth = known.get(id(part)) or (_leaf_bytes(part), 0)
                bytes_, depth = bytes_ + part_bytes, max(depth, part_depth)
            if depth >= MAX_DEPTH:
                raise RefusedError(f"its containers are nested {depth} deep or deeper; allowed: {MAX_DEPTH}")
            known[id(item)] = bytes_, depth + 1
            unfinished.discard(id(item))
            continue
        if id(item) in unfinished:
            raise RefusedError("a container in it contains itself")
        unfinished.add(id(item))
        waiting.append((item, True))
        waiting += [(part, False) for part in parts if id(part) not in known and _parts(part) is not None]
    return known.get(id(found)) or (_leaf_bytes(found), 0)


def _parts(item: object) -> Iterable[Any] | None:
    """The items of a container; None for anything else."""
    if isinstance(item, Mapping):
        parts: list[Any] = [*item, *item.values()]
        attributes = getattr(item, "__dict__", None)  # state of a placeholder, versions of a state dict
        return [*parts, *attributes.values()] if attributes else parts
    return item if isinstance(item, (list, tuple, deque, set, frozenset)) else None


def _leaf_bytes(item: object) -> int:
    if isinstance(item, Tensor):
        return item.numel() * item.element_size()
    if isinstance(item, (str, bytes, bytearray)):
        return len(item)
    if isinstance(item, np.ndarray):
        return item.nbytes
    history = getattr(item, "_log_history", None)  # of mmengine's HistoryBuffer
    return 2 * history.nbytes if isinstance(history, np.ndarray) else 8
