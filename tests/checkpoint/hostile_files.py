"""Checkpoints that try to run code, or to take all memory or time, for tests of every way to read one."""

from __future__ import annotations

import copy
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch


class Marker:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


#: Where a marker can be in the checkpoint of a run.
PLACES: dict[str, Callable[[dict, Marker], Any]] = {
    "beside the others": lambda content, marker: content.update(extra=marker),
    "meta": lambda content, marker: content["meta"].update(extra=marker),
    "nested in meta": lambda content, marker: content["meta"].update(extra=[{"a": (1, [marker])}]),
    "message hub": lambda content, marker: content.setdefault("message_hub", {}).update(log_scalars={"loss": marker}),
    "optimizer": lambda content, marker: content.setdefault("optimizer", {}).update(state={0: {"step": marker}}),
    "schedules": lambda content, marker: content.update(param_schedulers=[{"last_step": marker}]),
    "state dict": lambda content, marker: content["state_dict"].update(extra=marker),
    "averaged weights": lambda content, marker: content.update(ema_state_dict={"a": marker}),
}


def plant(content: dict, place: str, path: Path, marked: Path, zipped: bool = True) -> Path:
    """Write a checkpoint with a marker that creates the folder ``marked``."""
    content = copy.copy(content) | {"meta": dict(content["meta"]), "state_dict": dict(content["state_dict"])}
    PLACES[place](content, Marker(marked))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def zip_of(program: bytes, **entries: bytes) -> Callable[[Path], None]:
    """A function that writes a zip file of torch with this pickle, and entries ``data/NAME``."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", program)
            archive.writestr("a/version", "3\n")
            for name, content in entries.items():
                archive.writestr(f"a/data/{name.removeprefix('_')}", content)

    return write


def text(value: str) -> bytes:
    """Pickle step that pushes text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    """Pickle step that pushes a name."""
    return f"c{module}\n{attribute}\n".encode()


def storage(kind: str, key: str, count: bytes) -> bytes:
    """Pickle steps that push a storage."""
    return b"(" + text("storage") + name("torch", f"{kind}Storage") + text(key) + text("cpu") + count + b"tQ"


def tensor(count: bytes, offset: bytes = b"K\x00", size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85") -> bytes:
    """Pickle steps that push a tensor of the storage '0'."""
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage("Float", "0", count) + offset + size + stride + (
        b"\x89" + name("collections", "OrderedDict") + b")R" + b"tR")  # fmt: skip


def pointer(address: int) -> bytes:
    """Pickle that makes NumPy take eight bytes for the address of an object."""
    dtype = (
        name("numpy", "dtype")
        + text("O8")
        + b"\x89\x88\x87R(K\x03"
        + text("|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return name("numpy._core.multiarray", "scalar") + dtype + b"C\x08" + struct.pack("<Q", address) + b"\x86R"


P = b"\x80\x04"
#: Small files that took gigabytes or minutes, or crashed the process, in one reader or another.
BOMBS: dict[str, bytes] = {
    "object pointer": P + pointer(0x4141414141414141) + b".",
    "huge NumPy number": P + name("numpy._core.multiarray", "scalar") + name("numpy", "dtype")
    + text("V2147483647") + b"\x89\x88\x87R\x85R.",
    "huge NumPy array": P + name("numpy", "ndarray") + b"(J\x00\xe1\xf5\x05t\x85R.",
    "tuples of tuples as a key": b"\x80\x02}(K\x01\x85" + b"2\x86" * 60 + b"K\x01u.",
    "nested codecs": P + name("_codecs", "encode") * 30 + b"C\x40" + b"A" * 64
    + (text("hex_codec") + b"\x86R") * 30 + b".",
    "punycode": P + name("_codecs", "encode") + text("".join(chr(0x4E00 + i % 20000) for i in range(100_000)))
    + text("punycode") + b"\x86R.",
    "lists of lists by reference": P + b"]q\x00K\x01a" + b"".join(
        b"]" + b"q" + bytes([i + 1]) + b"h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(60)) + b".",
    "tuples of tuples by reference": P + b"K\x01\x85" + b"q\x00h\x00\x86" * 200 + b".",
    "nested lists": P + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list in itself": P + b"]q\x00h\x00a.",
    "colliding integers": P + b"}(" + b"".join(
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(20_000)) + b"u.",
    "huge integer": P + b"\x8b" + struct.pack("<I", 1 << 20) + b"\x7f" * (1 << 20) + b".",
    "claimed text": P + b"\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
    "claimed bytes": P + b"\x8e" + struct.pack("<Q", 1 << 35) + b"a.",
    "claimed bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 35) + b"a.",
    "item of a tensor": P + tensor(b"K\x04") + b"K\x00K\x01s.",
    "item of a class": P + name("collections", "OrderedDict") + b"K\x00K\x01s.",
    "storage larger than its entry": P + tensor(b"J\x00\x00\x00\x40", size=b"J\x00\x00\x00\x40\x85") + b".",
    "tensor beyond its storage": P + tensor(b"K\x04", size=b"K\x05\x85") + b".",
    "offset beyond the storage": P + tensor(b"K\x04", offset=b"J\x00\x00\x00\x10") + b".",
    "negative stride": P + tensor(b"K\x04", stride=b"J\xff\xff\xff\xff\x85") + b".",
    "huge view": P + tensor(b"K\x04", size=b"J\x00\x00\x00\x40\x85", stride=b"K\x00\x85") + b".",
    "many views": P + b"](" + tensor(b"K\x04", size=b"J\x00\x00\x40\x00\x85", stride=b"K\x00\x85") * 300 + b"e.",
    "many sets": P + b"(" + b"\x8f" * 3_000_000 + b"t.",
    "many steps": P + b"N0" * 10_000_000 + b"N.",
}  # fmt: skip


def bombs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Write all of them, one at a time."""
    for what, program in BOMBS.items():
        path = folder / "bomb.pth"
        zip_of(program, _0=bytes(16))(path)
        yield what, path
    write_zip_with_many_entries(path)
    yield "many entries", path
    entries = (b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(130_000))
    header = b"{" + b",".join(entries) + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    yield "many safetensors", path


def write_zip_with_many_entries(path: Path) -> None:
    """Write a zip file whose directory has 200,000 entries, most of them for the same byte."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02N.")
    whole = path.read_bytes()
    start = whole.index(b"PK\x01\x02")
    entry = whole[start : whole.index(b"PK\x05\x06")]
    end = whole[whole.index(b"PK\x05\x06") :]
    many = entry * 200_000
    path.write_bytes(
        whole[:start] + many + end[:8] + b"\xff\xff\xff\xff" + struct.pack("<II", len(many), start) + end[20:]
    )
