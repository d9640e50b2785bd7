"""No way to read a checkpoint runs code from it, and no file takes much memory or time."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from hostile_files import PLACES, plant, tensor, zip_of
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModule, PretrainedInit
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

import mmgcvit
from mmgcvit import GCViT, apis, load_pretrained
from mmgcvit.checkpoint import CheckpointError, reader, trust_checkpoints
from mmgcvit.checkpoint.commands import convert_file, inspect
from mmgcvit.checkpoint.reader import read_checkpoint
from mmgcvit.checkpoint.weights import fetch
from mmgcvit.engine.hooks import _last_good_checkpoint

DETECTOR = "configs/detection/mask-rcnn_gcvit-nano_fpn_digits.py"
SEGMENTOR = "configs/segmentation/gcvit-nano_fpn_digits-160x160.py"


class Part(BaseModule):
    """A neck or head, in which mmengine initialises the weights."""

    def __init__(self, init_cfg: dict) -> None:
        super().__init__(init_cfg)
        self.fc = nn.Linear(2, 2)


def runner(folder: Path) -> Runner:
    return Runner(nn.Linear(2, 2), str(folder), experiment_name=folder.name)


def from_mirror(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(path.parent / "torch"))
        patch.setenv("MMGCVIT_MIRROR", str(path.parent))
        path.with_name("gcvit_1k_tiny.pth.tar").write_bytes(path.read_bytes())
        return fetch("gcvit://tiny_in1k")


#: Every way to read a checkpoint that does not need a whole detector.
WAYS: dict[str, Callable[[Path], Any]] = {
    "read_checkpoint": read_checkpoint,
    "load_pretrained": lambda path: load_pretrained(GCViT(TINY), path),
    "inspect": lambda path: inspect(str(path)),
    "convert_file": lambda path: convert_file(str(path), path.with_name("converted.pth")),
    "fetch": from_mirror,
    "init_cfg of the backbone": lambda path: GCViT(
        TINY, init_cfg=dict(type="mmengine.Pretrained", checkpoint=str(path))).init_weights(),
    "init_cfg of another part": lambda path: Part(dict(type="Pretrained", checkpoint=str(path))).init_weights(),
    "init_cfg by scope": lambda path: Part(dict(type="mmengine.Pretrained", checkpoint=str(path))).init_weights(),
    "init_cfg by class": lambda path: Part(dict(type=PretrainedInit, checkpoint=str(path))).init_weights(),
    "init_cfg with a prefix": lambda path: Part(
        dict(type="Pretrained", checkpoint=str(path), prefix="neck.")).init_weights(),
    "mmengine's CheckpointLoader": lambda path: CheckpointLoader.load_checkpoint(str(path)),
    "mmengine's load_checkpoint": lambda path: load_checkpoint(nn.Linear(2, 2), str(path)),
    "load_from": lambda path: runner(path.parent / "a").load_checkpoint(str(path)),
    "resume": lambda path: runner(path.parent / "b").resume(str(path)),
}  # fmt: skip
#: Those that build a model of a config.
TOOLS: dict[str, Callable[[Path], Any]] = {
    "DetInferencer": lambda path: __import__("mmdet.apis").apis.DetInferencer(DETECTOR, str(path), device="cpu"),
    "init_detector": lambda path: __import__("mmdet.apis").apis.init_detector(DETECTOR, str(path), device="cpu"),
    "MMSegInferencer": lambda path: __import__("mmseg.apis").apis.MMSegInferencer(SEGMENTOR, str(path), device="cpu"),
    "init_model": lambda path: __import__("mmseg.apis").apis.init_model(SEGMENTOR, str(path), device="cpu"),
}


@pytest.fixture(scope="module")
def content(files) -> dict:
    return torch.load(files["mmgcvit"], weights_only=True) | {"meta": {"epoch": 1}}


@pytest.mark.parametrize("place", PLACES)
def test_no_way_runs_code(tmp_path: Path, content: dict, place: str):
    for zipped in (True, False):
        path = plant(content, place, tmp_path / "evil.pth", tmp_path / "ran", zipped)
        torch.load(path, weights_only=False)
        (tmp_path / "ran").rmdir()  # it was created: otherwise this test would prove nothing
        for way, read in WAYS.items():
            with pytest.raises((CheckpointError, apis.UsageError), match=r"mkdir.*refused"):
                read(path)
            assert not (tmp_path / "ran").exists(), way
    os.rename(path, tmp_path / "iter_9.pth")
    assert _last_good_checkpoint(tmp_path) is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("tool", [*TOOLS, "predict"])
def test_no_tool_runs_code(tmp_path: Path, content: dict, tool: str, monkeypatch):
    pytest.importorskip("mmdet" if "det" in tool.lower() or tool == "predict" else "mmseg")
    monkeypatch.chdir(ROOT)
    (tmp_path / "image").mkdir()
    path = plant(content, "meta", tmp_path / "evil.pth", tmp_path / "ran")
    if tool == "predict":
        from PIL import Image

        Image.new("RGB", (32, 32)).save(tmp_path / "image/a.png")
        with pytest.raises(apis.UsageError, match=r"mkdir.*refused"):
            apis.predict(DETECTOR, str(path), [tmp_path / "image"], tmp_path / "out", device="cpu")
    else:
        with pytest.raises(CheckpointError, match=r"mkdir.*refused"):
            TOOLS[tool](path)
    assert not (tmp_path / "ran").exists()


def test_services_of_mmengine_need_trust():
    for path in ("s3://bucket/a.pth", "pavi://model/a.pth"):
        with pytest.raises(CheckpointError, match=r"mmengine unpickles files of .*--trust-checkpoint"):
            CheckpointLoader.load_checkpoint(path)
    with pytest.raises(CheckpointError, match="mmengine knows no such name"):
        CheckpointLoader.load_checkpoint("torchvision://no_such_model")


def test_a_trusted_file_is_read_with_a_warning(tmp_path: Path, content: dict, monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(reader, "print_log", lambda text, **_: logged.append(text))
    path = plant(content, "meta", tmp_path / "own.pth", tmp_path / "ran")
    with trust_checkpoints():
        CheckpointLoader.load_checkpoint(str(path))
    (tmp_path / "ran").rmdir()
    assert read_checkpoint(path, trust=True)["state_dict"].keys() == content["state_dict"].keys()
    (tmp_path / "ran").rmdir()
    load_pretrained(GCViT(TINY), path, trust_checkpoint=True)
    (tmp_path / "ran").rmdir()
    assert len(logged) == 3
    assert all(str(path) in text and "It is trusted: its code runs" in text for text in logged)
    with trust_checkpoints(), pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(path, trust=False)
    with trust_checkpoints(False), pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(path)
    link = tmp_path / "link.pth"
    link.symlink_to(path)
    monkeypatch.setenv(reader.VARIABLE, os.pathsep.join(["", str(tmp_path / "other.pth"), str(tmp_path)]))
    with pytest.raises(CheckpointError, match=rf"refused.*--trust-checkpoint, or {reader.VARIABLE}=<the file>"):
        CheckpointLoader.load_checkpoint(str(path))  # the variable names files, not folders
    monkeypatch.setenv(reader.VARIABLE, os.pathsep.join(["no.pth", str(link)]))
    CheckpointLoader.load_checkpoint(str(path))  # as mmdet's tools do
    (tmp_path / "ran").rmdir()
    assert len(logged) == 4
    assert "It is trusted: its code runs" in logged[3]
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(path, trust=False)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="TORCH_FORCE_WEIGHTS_ONLY_LOAD forbids"):
        read_checkpoint(path, trust=True)
    assert not (tmp_path / "ran").exists()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # damaged: trust does not help
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_checkpoint(path, trust=True)


#: Functions that read a pickle or another format with code, and where the package may call them.
READERS = {"load", "loads", "Unpickler", "File", "load_file", "safe_open", "load_url", "load_state_dict_from_url",
           "read_pickle", "loadmat", "from_pretrained", "load_from_local", "torch_load", "safe_load"}  # fmt: skip
MODULES = {
    "torch", "pickle", "numpy", "np", "h5py", "safetensors", "mmengine", "fileio", "joblib", "dill", "hub", "jit",
           "cloudpickle", "pandas", "pd", "scipy", "marshal", "shelve", "export", "io", "serialization",
           "model_zoo"}  # fmt: skip
ALLOWED = {
    "mmgcvit/checkpoint/other_files.py": {"load_file", "h5py.File"},  # after a check of what they claim
    "mmgcvit/checkpoint/reader.py": {"torch.load"},  # a file that the user trusts
    "mmgcvit/export/program.py": {"torch.export.load"},  # a file that the package has just written
    "mmgcvit/finetune/formats/label_maps.py": {"np.load", "allow_pickle"},  # mapped arrays; pickles are refused
}


def calls(path: Path) -> set[str]:
    """Calls of readers in a Python file, by dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            base, _, function = ast.unparse(node.func).rpartition(".")
            if function in READERS and (base.rpartition(".")[2] in MODULES):
                found.add(ast.unparse(node.func))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found |= {alias.name for alias in node.names if alias.name in READERS}
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "pickle_module"):
            found.add(node.arg)
    return found


def test_the_package_has_no_other_readers():
    found = {
        path.relative_to(ROOT).as_posix(): names
        for folder in ("mmgcvit", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if ".mim" not in path.parts and (names := calls(path))
    }
    assert found == ALLOWED
    known = {"load_from_local", "load_from_http"} & {
        loader.__name__ for loader in mmgcvit.compat.checkpoint_loaders().values()
    }
    assert not known, "a loader of mmengine that unpickles files"


LIMITED = """
import resource, sys, time, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from hostile_files import bombs
from mmgcvit.checkpoint.reader import read_checkpoint
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder = Path(sys.argv[2])
for what, path in bombs(folder):
    size, start = path.stat().st_size, time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, resource.RLIM_INFINITY))
    try:
        read_checkpoint(path)
        verdict = "read"
    except ValueError as error:
        verdict = str(error)[:160]
    took = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024 - 3 * size / 2**20
    print(f"{what}: {took:.1f} s, {grown:.0f} MB beyond three times its size: {verdict}", flush=True)
    assert took < 10 and grown < 200 and verdict != "read", what
"""


def test_no_small_file_takes_much_memory_or_time(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_checksums_are_verified(tmp_path: Path):
    torch.save({"state_dict": {"a": torch.arange(10_000.0)}}, tmp_path / "a.pth")
    whole = bytearray((tmp_path / "a.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        place = next(entry.header_offset for entry in archive.infolist() if "/data/" in entry.filename)
    whole[place + 4096 : place + 8192] = bytes(4096)
    (tmp_path / "a.pth").write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"damaged.*CRC"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_everything_of_a_run_is_restored(tmp_path: Path, zipped: bool):
    """The same values and types as with torch.load, which unpickles everything."""
    shared = torch.randn(3, 4)
    history = HistoryBuffer([0.5, 2.0], [1, 2], max_length=100)
    saved = dict(
        meta=dict(epoch=3, cfg="a = 'ü'", best=np.float64(0.25), count=np.int64(7), palette=[(1, 2), None, True, 2.5]),
        state_dict=dict(a=shared, b=shared[1:, ::2], c=nn.Parameter(torch.ones(2)), d=torch.tensor(3),
                        e=torch.zeros(0, 2), f=torch.ones(2).bfloat16(), g=torch.tensor([True, False]),
                        h=torch.ones(2, dtype=torch.complex64)),
        array=np.arange(6, dtype=np.float32).reshape(2, 3).T, places={1, 2}, size=torch.Size((1, 2)), raw=b"\x00\xff",
        message_hub=dict(log_scalars=dict(loss=history)), device=torch.device("cpu"), dtype=torch.float16,
    )  # fmt: skip
    path = tmp_path / "run.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert list(found) == list(saved)
    for name, value in saved["state_dict"].items():
        got = found["state_dict"][name]
        assert torch.equal(got, value), name
        assert (type(got), got.dtype, got.stride()) == (type(value), value.dtype, value.stride()), name
    a, b = found["state_dict"]["a"], found["state_dict"]["b"]
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    assert found["meta"] == saved["meta"]
    assert {type(value) for value in found["meta"].values()} == {type(value) for value in saved["meta"].values()}
    assert np.array_equal(found["array"], saved["array"])
    assert found["array"].dtype == np.float32
    for key in ("places", "size", "raw", "device", "dtype"):
        assert (found[key], type(found[key])) == (saved[key], type(saved[key]))
    restored = found["message_hub"]["log_scalars"]["loss"]
    assert type(restored) is HistoryBuffer
    assert [x.tolist() for x in restored.data] == [[0.5, 2.0], [1, 2]]
    assert restored.max_length == 100
    restored.update(1.0)
    assert restored.mean() == pytest.approx(3.5 / 4)


def test_versions_of_a_state_dict_are_kept(tmp_path: Path):
    model = nn.Sequential(nn.BatchNorm1d(2))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")._metadata == model.state_dict()._metadata


def test_a_tensor_inside_of_its_storage_is_read(tmp_path: Path):
    """The hand-written pickles of the bombs are right but for what makes them bombs."""
    zip_of(b"\x80\x04" + tensor(b"K\x04") + b".", _0=np.arange(4, dtype=np.float32).tobytes())(tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").tolist() == [0, 1, 2, 3]


def test_names_in_errors_have_no_escape_codes(tmp_path: Path):
    zip_of(b"\x80\x04cos\x1b[2J\nsystem\n.")(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"os\\x1b\[2J.system") as error:
        read_checkpoint(tmp_path / "a.pth")
    assert "\x1b" not in str(error.value)


def test_weights_that_overflow(tmp_path: Path):
    model = GCViT(TINY)
    state = model.state_dict()
    name = "stages.0.blocks.0.mlp.fc1.weight"
    state[name] = state[name].double() * 1e300
    with pytest.raises(CheckpointError, match=rf"NaN or infinite numbers in 1 tensor: {name}"):
        load_pretrained(model, state)
    assert model.state_dict()[name].isfinite().all()


def test_a_name_among_the_contents_is_harmless(tmp_path: Path):
    zip_of(b"\x80\x02}X\x01\x00\x00\x00acbuiltins\ngetattr\ns.")(tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert str(found) == "{'a': builtins.getattr}"
    assert pickle.loads(pickle.dumps(found)) == {"a": "builtins.getattr"}
    with pytest.raises(CheckpointError, match=r"builtins.getattr.*refused"):
        found["a"](os, "system")
