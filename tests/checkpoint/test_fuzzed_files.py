"""Mutated files are read, or refused with one error: no crash, no other exception, little memory and time.

``make fuzz`` runs this for ten minutes (``FUZZ_SECONDS``), the test suite for twenty seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile_files import BOMBS, name, tensor, text, zip_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from safetensors.torch import save

from mmgcvit.checkpoint import CheckpointError
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.unpickler import known_names

SECONDS = float(os.environ.get("FUZZ_SECONDS", 20))
#: Pieces of pickles: steps with arguments, names that the reader knows and others, and tensors.
PIECES = [
    *(bytes([code]) for code in range(256)),
    *(name(*known.rpartition(".")[::2]) for known in known_names(1000)),
    name("os", "system"), name("builtins", "eval"), name("numpy._core.multiarray", "scalar"), name("a", "b"),
    name("torch.serialization", "load"),
    tensor(b"K\x04"), tensor(b"K\x04", size=b"K\x02K\x02\x86", stride=b"K\x02K\x01\x86"),
    *(b"K" + bytes([number]) for number in (0, 1, 3, 4, 255)), b"J\xff\xff\xff\xff", b"M\x00\x10", b"\x8a\x01\x80",
    *map(text, ("a", "latin1", "f4", "<", "_metadata", "_log_history", "_count_history", "_max_length", "0")),
    text("storage"), text("cpu"), b"C\x04\x00\x00\x80\x3f", b"q\x00", b"h\x00",
    *(bytes([code]) for code in b")]}(N\x88\x85\x86\x87\x94Rb\x81sueat"),
]  # fmt: skip


def run_file() -> dict:
    """Contents like those of a run, with everything that the reader knows."""
    return dict(
        state_dict=dict(a=torch.arange(4.0), b=torch.nn.Parameter(torch.ones(2, 2)), c=torch.ones(2).half()),
        optimizer=dict(state={0: dict(step=torch.tensor(1.0))}, param_groups=[dict(lr=0.1, params=[0, 1])]),
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0, 2.0], [1, 1]))),
        meta=dict(seed=1, best=np.float64(0.5), names=("a", "b"), array=np.arange(3)),
        args=argparse.Namespace(lr=0.1, path=Path("a")), places={1, 2},
    )  # fmt: skip


def saved(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(run_file(), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some bytes replaced, removed, repeated or inserted."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 16)))
        piece = draw(st.one_of(st.binary(max_size=8), st.sampled_from(PIECES), st.sampled_from(
            [b"\xff" * 4, b"\xff" * 8, b"\x00" * 4, b"\x7f" + b"\xff" * 3, content[start:end] * 3])))  # fmt: skip
        content[start:end] = piece
    return bytes(content)


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    """A pickle made of pieces, or a mutated one of a run or of the hostile files."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return b"\x80\x02" + b"".join(draw(st.lists(st.sampled_from(PIECES), max_size=40))) + b"."
    small = [program for program in BOMBS.values() if len(program) < 5000]
    with zipfile.ZipFile(io.BytesIO(saved(True))) as archive:
        program = archive.read("archive/data.pkl") if kind == 1 else draw(st.sampled_from(small))
    return draw(mutated(program))


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    """A zip file with a mutated pickle, and often with other mutations."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        archive.writestr("a/data.pkl", draw(pickles()))
        for key in range(draw(st.integers(0, 6))):
            archive.writestr(f"a/data/{key}", bytes(draw(st.sampled_from([0, 2, 4, 8, 16]))))
        if draw(st.booleans()):
            archive.writestr("a/byteorder", draw(st.sampled_from(["little", "big", "x" * 100])))
    whole = buffer.getvalue()
    return draw(mutated(whole)) if draw(st.booleans()) else whole


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """A safetensors file with a header of any JSON, or mutated."""
    whole = save({"a": torch.arange(4.0), "b": torch.ones(2, 2)}, {"meta": "x"})
    if draw(st.booleans()):
        return draw(mutated(whole))
    numbers = st.one_of(st.integers(-2, 20), st.sampled_from([2**31, 2**62, 2**64, 1.5]))
    entry = st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F8_E4M3", "X", 1]), "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3)})  # fmt: skip
    header = json.dumps(draw(st.dictionaries(st.text(max_size=3), st.one_of(entry, numbers), max_size=4))).encode()
    return struct.pack("<Q", len(header) + draw(st.integers(-1, 1))) + header + bytes(draw(st.integers(0, 40)))


FILES: dict[str, Callable[[], st.SearchStrategy[bytes]]] = {
    "zip": zips,
    "zip of torch": lambda: mutated(saved(True)),
    "before torch 1.6": lambda: mutated(saved(False)),
    "pickle": pickles,
    "safetensors": safetensors,
}


def check(path: Path) -> None:
    """Read a file: it is read or refused, soon."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = ""
        try:
            found = read_checkpoint(path)
            str(found)
            pickle.dumps(found)
        except CheckpointError as error:
            message = str(error)
    assert not message or (str(path) in message and len(message) < 2000)
    assert time.process_time() - start < 10
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown / 1024 < 200 + 3 * path.stat().st_size / 2**20


@pytest.mark.parametrize("kind", FILES)
def test_mutated_files(tmp_path: Path, kind: str):
    end = time.monotonic() + SECONDS / (len(FILES) + 1)
    path = tmp_path / "fuzzed.pth"

    failures: list[str] = []
    count = 0

    @settings(max_examples=1_000_000, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(content=FILES[kind]())
    def read(content: bytes) -> None:
        if time.monotonic() > end or failures:
            pytest.skip("time is up")
        nonlocal count
        count += 1
        path.write_bytes(content)
        try:
            check(path)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}: {content!r}")

    with contextlib.suppress(pytest.skip.Exception):
        read()
    print(f"{kind}: {count} files")
    assert not failures


def test_pieces_make_files_that_are_read(tmp_path: Path):
    """The pieces are right: the fuzzer reaches what comes after the first step."""
    zip_of(b"\x80\x02}" + text("a") + tensor(b"K\x04") + b"s.", _0=bytes(16))(tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["a"].tolist() == [0, 0, 0, 0]


H5 = r"""
import sys, random, resource, time
sys.path.insert(0, sys.argv[1])
import h5py, numpy as np
from pathlib import Path
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint import CheckpointError
folder, end, chance = Path(sys.argv[2]), time.monotonic() + float(sys.argv[3]), random.Random(0)
def tree(group, depth):
    for i in range(chance.randint(0, 4)):
        kind = chance.randint(0, 9)
        try:
            if kind < 4 and depth < 80: tree(group.create_group(f"g{i}"), depth + chance.choice([1, 1, 30]))
            elif kind < 6: group.create_dataset(f"d{i}", data=np.ones(chance.randint(0, 9), chance.choice("fdiBqe")),
                                                **chance.choice([{}, dict(compression="gzip", chunks=True)]))
            elif kind == 6: group[f"l{i}"] = chance.choice([h5py.SoftLink("/"), h5py.ExternalLink("x.h5", "/")])
            elif kind == 7: group[f"l{i}"] = chance.choice([group.parent, group.file["/"]])
            elif kind == 8: group.create_dataset(f"h{i}", (2**chance.randint(1, 40),), "f4", chunks=(1024,))
            else: group.create_dataset(f"s{i}", data="text")
        except (ValueError, OSError, RuntimeError): pass
def mutated(whole):
    content = bytearray(whole)
    for _ in range(chance.randint(1, 6)):
        # near a piece of the format's structure more often than elsewhere
        names = [b"TREE", b"SNOD", b"HEAP", b"OHDR", b"\x89HDF", b"GCOL", b"d0", b"g0"]
        found = content.find(chance.choice(names), chance.randint(0, len(content)))
        first = chance.randint(0, len(content)) if found < 0 or chance.random() < 0.3 else found + chance.randint(0, 64)
        last = first + chance.randint(0, 16)
        content[first:last] = chance.choice([
            chance.randbytes(last - first), b"\xff" * (last - first), bytes(last - first), content[first:last] * 2, b"",
            chance.choice([1, 2, 255, 2**16, 2**31, 2**40, 2**63]).to_bytes(8, "little"), chance.choice(names)])
    return bytes(content[:chance.randint(0, len(content))] if chance.random() < 0.1 else content)
trees = mutations = 0
def check(path):
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try: read_checkpoint(path)
    except CheckpointError as error: assert str(path) in str(error)
    assert time.process_time() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**10 * (200 + 3 * path.stat().st_size / 2**20)
path = folder / "a.h5"
while time.monotonic() < end:
    with h5py.File(path, "w", libver=chance.choice([None, "latest"])) as file: tree(file, 0)
    trees += 1
    check(path)
    whole = path.read_bytes()
    for _ in range(5):
        path.write_bytes(mutated(whole))
        mutations += 1
        check(path)
print(trees, mutations)
"""


def test_h5_files(tmp_path: Path):
    """Trees with links, cycles, huge claims and other types, and mutations of them, in a process of their own."""
    pytest.importorskip("h5py")
    done = subprocess.run(
        [sys.executable, "-c", H5, str(Path(__file__).parent), str(tmp_path), str(SECONDS / (len(FILES) + 1))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = tmp_path / "a.h5"
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}: {last.read_bytes()[:20_000]!r}"
    trees, mutations = map(int, done.stdout.split())
    print(f"HDF5: {trees} trees, {mutations} mutations")
    assert trees > 10
