"""Reading of safetensors and HDF5 (Keras) files by their own libraries, after a check of what the files claim."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgcvit.checkpoint.limits import MAX_DEPTH, MAX_HEADER, MAX_TENSORS, RefusedError
from mmgcvit.errors import CheckpointError

_FILTERS = (1, 2, 3, 32000)  # deflate, shuffle, Fletcher's checksum, LZF


def is_safetensors(head: bytes) -> bool:
    """Whether a file with these first bytes is a safetensors file: the length of its header, and JSON."""
    return len(head) > 8 and head[6:8] == bytes(2) and head[8:9] == b"{"


def read_safetensors(path: Path, size: int, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file.

    Args:
        path: the file.
        size: of the file, in bytes.
        device: of the tensors.

    Raises:
        RefusedError: the header is larger than that of any checkpoint.
        CheckpointError: the file is truncated.
    """
    from safetensors.torch import load_file

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise CheckpointError("truncated or damaged: its header is longer than the file")
        if length > MAX_HEADER:
            raise RefusedError(f"its header has {length:,} bytes; allowed: {MAX_HEADER:,}")
        count = len(json.loads(file.read(length)))
    if count > MAX_TENSORS:
        raise RefusedError(f"it has {count:,} tensors; allowed: {MAX_TENSORS:,}")
    return load_file(path, device=str(device))


def read_h5(path: Path, size: int, device: torch.device) -> dict[str, Tensor]:
    """Return the tensors of a Keras file by weight name, in Keras' memory layouts.

    Args:
        path: the file.
        size: of the file, in bytes.
        device: of the tensors.

    Raises:
        RefusedError: the file claims more than it has, or refers to other files.
        CheckpointError: h5py is not installed, or the file has no weights.
    """
    try:
        import h5py
    except ImportError:
        raise CheckpointError("it is a Keras file, but h5py is not installed: pip install h5py") from None
    with h5py.File(path, "r") as file:
        tensors = _Groups(h5py, size).read(file)
    if not tensors:
        raise CheckpointError("it is a Keras file without weights")
    return {name: tensor.to(device) for name, tensor in tensors.items()}


class _Groups:
    """The groups of an HDF5 file, each of which is visited once."""

    def __init__(self, h5py: Any, size: int) -> None:
        self.h5py, self.size = h5py, size
        self.claimed = self.count = 0
        self.tensors: dict[str, Tensor] = {}
        self.seen: set[object] = set()

    def read(self, file: Any) -> dict[str, Tensor]:
        """Return the tensors of a file; a saved model has its weights in the group ``model_weights``."""
        inner = self._item(file, "model_weights", "model_weights") if "model_weights" in file else file
        self._visit(inner if isinstance(inner, self.h5py.Group) else file, "", 0)
        return self.tensors

    def _item(self, group: Any, key: str, name: str) -> Any:
        if not isinstance(group.get(key, getlink=True), self.h5py.HardLink):
            raise RefusedError(f"{name} is an external link: refused")
        return group[key]

    def _visit(self, group: Any, path: str, depth: int) -> None:
        place = self.h5py.h5o.get_info(group.id).addr
        if depth > MAX_DEPTH or place in self.seen:
            raise RefusedError(f"{path} is a group inside itself, in several groups, or nested {MAX_DEPTH} deep")
        self.seen.add(place)
        for key in group:
            name = f"{path}/{key}" if path else key
            self.count += 1
            if self.count > MAX_TENSORS // 4:  # visiting one takes a tenth of a millisecond
                raise RefusedError(f"it has more than {MAX_TENSORS // 4:,} groups and data sets")
            item = self._item(group, key, name)
            if isinstance(item, self.h5py.Group):
                self._visit(item, name, depth + 1)
            else:
                self._read(item, name)

    def _read(self, item: Any, name: str) -> None:
        if not isinstance(item, self.h5py.Dataset) or item.shape is None:
            raise RefusedError(f"{name} is no data set with numbers")
        if item.is_virtual or item.external:
            raise RefusedError(f"{name} is stored in external files: refused")
        if item.dtype.kind not in "fiu" or item.dtype.itemsize > 8:
            raise RefusedError(f"{name} has the type {item.dtype}; allowed: numbers")
        blocks = [item.shape, *([item.chunks] if item.chunks else [])]
        self.claimed += max(math.prod(block) * item.dtype.itemsize for block in blocks)
        if self.claimed > self.size:
            raise RefusedError(f"its data sets claim {self.claimed:,} bytes or more")
        steps = item.id.get_create_plist()
        used = [steps.get_filter(i)[0] for i in range(steps.get_nfilters())]
        if any(step not in _FILTERS for step in used):
            raise RefusedError(f"{name} is compressed by the filters {used}; allowed: {_FILTERS}")
        self.tensors[_weight_name(name)] = torch.from_numpy(item[()])


def _weight_name(path: str) -> str:
    """``a/b/a/b/c:0`` -> ``a/b/c``: Keras stores a weight under its layer's name, followed by its own full name."""
    parts = path.removesuffix(":0").split("/")
    for cut in range(len(parts) // 2, 0, -1):
        if parts[:cut] == parts[cut : 2 * cut]:
            return "/".join(parts[cut:])
    return "/".join(parts)
