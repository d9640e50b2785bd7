"""Reading of torch's files: zip files, and the format of torch before 1.6, without torch's own reader.

torch's reader trusts sizes in a file, and which of its steps are safe depends on its version. Here a storage is
allocated after its size has been compared with what the file has, and its checksum is verified.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from mmgcvit.checkpoint.limits import MAX_PICKLE, MAX_ZIP_DIRECTORY, RefusedError
from mmgcvit.checkpoint.stand_ins import Storage
from mmgcvit.checkpoint.unpickler import RestrictedUnpickler
from mmgcvit.compat import zip_directory_size
from mmgcvit.errors import CheckpointError

_CHUNK = 1 << 20  # bytes
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of files of torch before 1.6


def read_zip(path: Path, size: int, device: torch.device) -> Any:
    """Return the contents of a zip file of torch.

    Args:
        path: the file.
        size: of the file, in bytes.
        device: of the tensors.

    Raises:
        RefusedError: the file asks for something that checkpoints do not need.
        CheckpointError: it is another zip file, or damaged.
    """
    with path.open("rb") as file:
        if zip_directory_size(file) > MAX_ZIP_DIRECTORY:
            raise RefusedError(f"its zip directory is larger than {MAX_ZIP_DIRECTORY:,} bytes")
        with zipfile.ZipFile(file) as archive:
            return _ZipFile(archive, size, device).read()


class _ZipFile:
    """A zip file of torch: a pickle, and an entry per storage."""

    def __init__(self, archive: zipfile.ZipFile, size: int, device: torch.device) -> None:
        self.archive, self.size, self.device = archive, size, device
        self.entries = {entry.filename: entry for entry in archive.infolist()}
        self.storages: dict[str, torch.Tensor] = {}
        self.folder = ""

    def read(self) -> Any:
        """Check the directory, and return the contents."""
        if len(self.entries) != len(self.archive.infolist()):
            raise CheckpointError("it has several entries of the same name")
        claimed = sum(entry.file_size for entry in self.entries.values())
        if claimed > self.size:
            raise CheckpointError(f"its entries claim {claimed:,} bytes")
        if any(name.endswith("/constants.pkl") for name in self.entries):
            raise CheckpointError("it is a TorchScript program, not weights")
        pickles = [name for name in self.entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CheckpointError(f"it is a zip file with {len(pickles)} entries */data.pkl; torch's have one")
        self.folder = pickles[0].removesuffix("data.pkl")
        order = self.entries.get(f"{self.folder}byteorder")
        if order is not None and order.file_size < 16 and self.archive.read(order) != b"little":
            raise CheckpointError("its numbers are in big-endian order; allowed: little-endian")
        length = self.entries[pickles[0]].file_size
        if length > MAX_PICKLE:
            raise RefusedError(f"its pickle has {length:,} bytes; allowed: {MAX_PICKLE:,}")
        program = io.BytesIO(self.archive.read(pickles[0]))
        return RestrictedUnpickler(program, self.size, self._storage).load()

    def _storage(self, dtype: torch.dtype, key: str, count: int) -> Storage:
        entry = self.entries.get(f"{self.folder}data/{key}")
        claimed = count * dtype.itemsize
        if entry is None or entry.file_size != claimed:
            has = "no entry" if entry is None else f"{entry.file_size:,} bytes"
            raise CheckpointError(f"truncated or damaged: a tensor in it claims {claimed:,} bytes, the file has {has}")
        if key not in self.storages:
            self.storages[key] = self._read(entry).to(self.device)
        return Storage(self.storages[key], dtype)

    def _read(self, entry: zipfile.ZipInfo) -> torch.Tensor:
        """Read an entry into memory of its size. zipfile compares its checksum at the end."""
        data = torch.empty(entry.file_size, dtype=torch.uint8)
        left = memoryview(data.numpy().data)
        with self.archive.open(entry) as opened:
            file: Any = opened  # annotated without readinto
            while left:
                got = file.readinto(left[:_CHUNK])
                if not got:
                    raise CheckpointError("truncated or damaged: an entry ends too early")
                left = left[got:]
        return data


def read_old(path: Path, size: int, device: torch.device) -> Any:
    """Return the contents of a file of torch before 1.6; arguments and errors as for :func:`read_zip`."""
    file = io.BytesIO(path.read_bytes())

    def load(storage_of: Any = None) -> Any:
        return RestrictedUnpickler(file, size, storage_of).load()

    if load() != _MAGIC or load() != _VERSION:
        raise CheckpointError("it is a pickle, but not a file of torch.save")
    if not (isinstance(system := load(), dict) and system.get("little_endian") is True):
        raise CheckpointError("its numbers are in big-endian order; allowed: little-endian")
    storages: dict[str, tuple[torch.dtype, torch.Tensor]] = {}
    claimed = 0

    def storage_of(dtype: torch.dtype, key: str, count: int, view: Any = None) -> Storage:
        nonlocal claimed
        if view is not None:
            raise CheckpointError("its storages are views of each other, as in files of torch before 0.4")
        if key not in storages:
            claimed += count * dtype.itemsize
            if claimed > size:
                raise CheckpointError(f"truncated or damaged: a tensor in it claims {claimed:,} bytes")
            storages[key] = dtype, torch.empty(count * dtype.itemsize, dtype=torch.uint8, device=device)
        known, data = storages[key]
        if count * dtype.itemsize != data.numel():
            raise CheckpointError("truncated or damaged: a storage has two sizes")
        return Storage(data, dtype if known != dtype else known)

    found = load(storage_of)
    keys = load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise CheckpointError("truncated or damaged: its list of storages differs from the tensors")
    for key in keys:
        dtype, data = storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count * dtype.itemsize != data.numel() or len(raw := file.read(data.numel())) != data.numel():
            raise CheckpointError("truncated or damaged: a storage has fewer bytes than its tensors")
        if raw:
            data.copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    return found
