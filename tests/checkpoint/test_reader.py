"""Reading of files without executing code from them."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import struct
import zipfile
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmgcvit.checkpoint import CheckpointError
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.stand_ins import find_placeholders


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path: Path, zipped: bool):
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "args": Evil(tmp_path / "ran")},
        tmp_path / "evil.pth",
        _use_new_zipfile_serialization=zipped,
    )
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "ran").exists(), "the file is harmless, so this test would prove nothing"
    (tmp_path / "ran").unlink()
    with pytest.raises(CheckpointError, match=r"evil.pth.*asks for (posix|nt|os).system.*refused"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("expression", ["getattr", "eval", "exec", "__import__", "open"])
def test_dangerous_builtins_are_refused(tmp_path: Path, expression: str):
    class Call:
        def __reduce__(self) -> tuple:
            return getattr(builtins, expression), ("1",)

    torch.save({"a": Call()}, tmp_path / "call.pth")
    with pytest.raises(CheckpointError, match=f"{expression}.*refused"):
        read_checkpoint(tmp_path / "call.pth")


def test_malicious_pickle_without_a_zip(tmp_path: Path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_settings_beside_the_weights_are_read(files):
    found = read_checkpoint(files["nvidia"])
    assert found["epoch"] == 310
    assert found["args"].state["lr"] == 0.005
    assert type(found["args"]).__name__ == "Holder"
    assert find_placeholders(found) == {"args": "argparse.Namespace"}
    written = pickle.loads(pickle.dumps(found))  # as a resumed run writes it into its next checkpoint
    assert type(written["args"]) is dict
    assert written["args"]["lr"] == 0.005


def test_placeholders_are_found(tmp_path: Path):
    from mmengine.config import ConfigDict

    shared = [Path("a/b")]
    content = dict(
        meta=dict(args=Namespace(a=1), hooks=[(1, SimpleNamespace())]), a=shared, b=shared, c=ConfigDict(d=1)
    )
    torch.save(content, tmp_path / "a.pth")
    found = find_placeholders(read_checkpoint(tmp_path / "a.pth"))
    assert found.pop("a[0]", None) or found.pop("b[0]")
    assert found == {
        "meta.args": "argparse.Namespace",
        "meta.hooks[0][1]": "types.SimpleNamespace",
        "c": "mmengine.config.config.ConfigDict",
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_message_hub_of_mmengine_is_read(tmp_path: Path, zipped: bool):
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    extra = dict(message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1]))), cfg=ConfigDict(a=1))
    torch.save(
        dict(state_dict=dict(a=torch.arange(3.0)), **extra), tmp_path / "run.pth", _use_new_zipfile_serialization=zipped
    )
    assert torch.equal(read_checkpoint(tmp_path / "run.pth")["state_dict"]["a"], torch.arange(3.0))


def test_truncated_file(files, tmp_path: Path):
    for path in files.values():
        whole = path.read_bytes()
        for share in (0.02, 0.5, 0.98):
            short = tmp_path / path.name
            short.write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(CheckpointError, match="truncated or damaged"):
                read_checkpoint(short)


@pytest.mark.parametrize("page", ["<!DOCTYPE html><html>", "\n <html>", '<?xml version="1.0"?>'])
def test_a_web_page(tmp_path: Path, page: str):
    (tmp_path / "page.pth").write_text(page + "Sign in")
    with pytest.raises(CheckpointError, match="a web page"):
        read_checkpoint(tmp_path / "page.pth")


def test_other_files(tmp_path: Path):
    for content in (b"", b"hello", bytes(1000)):
        (tmp_path / "other.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"not a checkpoint; allowed: torch's .pth"):
            read_checkpoint(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"absent.pth': no such file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_safetensors_header_claims_terabytes(tmp_path: Path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for length in (len(header), 2**42):
        (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(64))
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            read_checkpoint(tmp_path / "huge.safetensors")


def test_zip_entries_claim_more_than_the_file(files, tmp_path: Path):
    with zipfile.ZipFile(files["mmgcvit"]) as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("archive/data/zeros", bytes(10**8), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="its entries claim 102,"):
        read_checkpoint(tmp_path / "bomb.pth")


def test_storage_claims_terabytes(tmp_path: Path):
    """The same file, but with a larger tensor in its pickle."""
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "huge.pth", "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert content.count(b"M\xe8\x03") == 2  # 1000, as the size of the storage and in the shape
                content = content.replace(b"M\xe8\x03", b"\x8a\x06" + (2**44).to_bytes(6, "little"))
            new.writestr(entry.filename, content)
    with pytest.raises(CheckpointError, match=r"a tensor in it claims 70,368,744,177,664 bytes|truncated or damaged"):
        read_checkpoint(tmp_path / "huge.pth")


def test_torchscript_program(tmp_path: Path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pth")
    with pytest.raises(CheckpointError, match="a TorchScript program"):
        read_checkpoint(tmp_path / "program.pth")


def test_h5_with_links_or_excessive_claims(tmp_path: Path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = [1.0]
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["a"] = h5py.ExternalLink("other.h5", "secret")
    with pytest.raises(CheckpointError, match="a is an external link: refused"):
        read_checkpoint(tmp_path / "link.h5")
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file.create_dataset("a", (4,), "f4", external=[(str(tmp_path / "other.h5"), 0, 16)])
    with pytest.raises(CheckpointError, match="a is stored in external files: refused"):
        read_checkpoint(tmp_path / "outside.h5")
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("a", (2**40,), "f4", chunks=(1024,))
    with pytest.raises(CheckpointError, match="claim 4,398,046,511,104 bytes"):
        read_checkpoint(tmp_path / "huge.h5")
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["a"] = "text"
    with pytest.raises(CheckpointError, match="has the type object; allowed: numbers"):
        read_checkpoint(tmp_path / "text.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(CheckpointError, match="without weights"):
        read_checkpoint(tmp_path / "empty.h5")


def write_pickle(path: Path, program: bytes) -> Path:
    """Write a torch file with this pickle program, which torch's safe loader refuses."""
    torch.save({"a": torch.zeros(2)}, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, program if entry.filename.endswith("data.pkl") else old.read(entry))
    return path


@pytest.mark.parametrize("name", [
    "torch.storage TypedStorage", "collections Counter", "torch._utils _rebuild_tensor_v2"])  # fmt: skip
def test_file_cannot_modify_what_it_names(tmp_path: Path, name: str):
    holder = b"cargparse\nNamespace\n)\x81"
    named = "c{}\n{}\n".format(*name.split()).encode()
    change = b"}X\x05\x00\x00\x00thing" + b"K\x01s"
    path = write_pickle(tmp_path / "patch.pth", b"\x80\x02" + holder + b"0" + named + b"N" + change + b"\x86b.")
    with pytest.raises(CheckpointError, match=r"asks for a change to .*refused"):
        read_checkpoint(path)
    module, attribute = name.split()
    assert not hasattr(getattr(__import__(module, fromlist=["x"]), attribute), "thing")


def test_file_cannot_allocate_more_than_its_size(tmp_path: Path):
    holder = b"cargparse\nNamespace\n)\x810"
    array = b"cnumpy\nndarray\n(J\x00\xe1\xf5\x05t\x85R."
    with pytest.raises(CheckpointError, match=r"a call of numpy.ndarray.*refused"):
        read_checkpoint(write_pickle(tmp_path / "array.pth", b"\x80\x02" + holder + array))
    with pytest.raises(CheckpointError, match=r"builtins.range.*refused"):
        read_checkpoint(write_pickle(tmp_path / "range.pth", b"\x80\x02" + holder + b"cbuiltins\nrange\n(K\x05tR."))
    torch.save({"qkv": torch.zeros(1, 1).expand(3_000_000, 1_000_000)}, tmp_path / "view.pth")
    with pytest.raises(CheckpointError, match="a tensor in it claims 12,000,000,000,000 bytes"):
        read_checkpoint(tmp_path / "view.pth")


def test_numpy_values_beside_the_weights_are_read(tmp_path: Path):
    import argparse

    import numpy as np

    extra = dict(mean=np.arange(5.0), best=np.float64(3.5), args=argparse.Namespace(a=1))
    torch.save(dict(state_dict=dict(a=torch.ones(2)), **extra), tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found["mean"].tolist() == [0, 1, 2, 3, 4]
    assert found["best"] == 3.5
