"""mmgcvit weights and tools/convert_checkpoint.py."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from conftest import ROOT, TINY
from run_tool import run_tool
from safetensors import safe_open
from safetensors.torch import load_file
from test_layouts import assert_same

from mmgcvit import GCViT, load_pretrained
from mmgcvit.__main__ import main
from mmgcvit.checkpoint import CheckpointError
from mmgcvit.checkpoint.commands import convert_file, inspect
from mmgcvit.utils import file_sha256


@pytest.mark.parametrize("layout", ["nvidia", "nvidia-detection", "timm", "keras", "mmgcvit"])
def test_inspect(files, layout: str, capsys):
    if layout not in files:
        pytest.skip("h5py is not installed")
    assert main(["weights", "inspect", str(files[layout])]) == 0
    said = {line.split("  ")[0]: line.split("  ", 1)[-1].strip() for line in capsys.readouterr().out.splitlines()}
    assert said["layout"].split(" ")[0] == layout
    assert said["windows"] == "2, 2, 4, 2"
    assert said["numbers"].startswith("embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), mlp_ratio=3, ")
    assert said["classes"] == ("no head" if layout == "nvidia-detection" else "5")
    assert said["optimizer state"] == ("yes" if layout == "nvidia" else "no")
    assert said["EMA weights"] == "no"
    if layout == "nvidia-detection":
        assert said["other parts"] == "neck (1), roi_head (1)"


def test_inspect_lists_other_contents(authors_dict, tmp_path: Path):
    torch.save(dict(state_dict=authors_dict, state_dict_ema=authors_dict, epoch=3), tmp_path / "both.pth")
    said = inspect(str(tmp_path / "both.pth"))
    assert "EMA weights      state_dict_ema\n" in said
    assert "other contents   epoch\n" in said
    torch.save({k: v for k, v in authors_dict.items() if "levels.2" not in k}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"not a complete network: depths=\(2, 2, 0, 2\)"):
        inspect(str(tmp_path / "less.pth"))


def test_list_and_fetch(files, capsys, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["weights", "list"]) == 0
    said = capsys.readouterr().out
    assert "CC BY-NC-SA 4.0" in said
    (line,) = [line for line in said.splitlines() if "gcvit://large_in21k-512" in line]
    for value in ("large-512", "16, 16, 32, 16", "512", "squash", "87.6"):
        assert value in line
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("MMGCVIT_MIRROR", str(tmp_path))
    assert main(["weights", "fetch", "gcvit://tiny_in1k"]) == 1
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "gcvit_1k_tiny.pth.tar").write_bytes(files["nvidia"].read_bytes())
    assert main(["weights", "fetch", "gcvit://tiny_in1k"]) == 0
    assert file_sha256(Path(capsys.readouterr().out.strip())) == file_sha256(files["nvidia"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("to", ["mmgcvit", "nvidia", "timm"])
def test_convert_round_trip(files, authors_dict, tmp_path: Path, to: str, suffix: str):
    once, report = convert_file(str(files["nvidia"]), tmp_path / f"once{suffix}", to)
    assert report.layout == "nvidia"
    assert len(report.loaded) == 188
    back, _ = convert_file(str(once), tmp_path / f"back{suffix}", "nvidia")
    assert_same(
        load_file(back) if suffix == ".safetensors" else torch.load(back, weights_only=True)["state_dict"], authors_dict
    )
    assert not list(tmp_path.glob(".*"))


def test_detector_round_trip(files, tmp_path: Path):
    whole = torch.load(files["nvidia-detection"], weights_only=True)["state_dict"]
    ours, _ = convert_file(str(files["nvidia-detection"]), tmp_path / "ours.pth")
    state = torch.load(ours, weights_only=True)["state_dict"]
    assert "neck.lateral_convs.0.conv.weight" in state
    assert "backbone.stem.conv.weight" in state
    back, _ = convert_file(str(ours), tmp_path / "back.pth", "nvidia")
    got = torch.load(back, weights_only=True)["state_dict"]
    index = {k for k in got if k.endswith("relative_position_index")}
    assert_same({k: got[k] for k in got.keys() - index}, {k: v for k, v in whole.items() if k not in index})
    _, report = convert_file(str(ours), tmp_path / "timm.pth", "timm")
    assert report.notes == ["no counterpart in layout 'timm', not written: norm0, norm1, norm2, neck (1), roi_head (1)"]


def test_convert_keras(files, tmp_path: Path, classifier):
    if "keras" not in files:
        pytest.skip("h5py is not installed")
    path, _ = convert_file(str(files["keras"]), tmp_path / "a.safetensors")
    model = GCViT(TINY)
    load_pretrained(model, path)
    assert torch.equal(model.stages[3].blocks[1].attn.kv.weight, classifier.backbone.stages[3].blocks[1].attn.kv.weight)


def test_metadata_and_hash(files, tmp_path: Path):
    path, _ = convert_file(str(files["nvidia"]), tmp_path / "a.safetensors", hashed=True)
    assert path.name == f"a-{file_sha256(path)[:8]}.safetensors"
    with safe_open(path, "pt") as file:
        meta = file.metadata()
    assert meta["source_sha256"] == file_sha256(files["nvidia"])
    assert (meta["source"], meta["source_layout"]) == ("authors.pth.tar", "nvidia")
    assert meta["licence"].startswith("CC BY-NC-SA 4.0")
    path, _ = convert_file(str(files["nvidia"]), tmp_path / "a.pth")
    assert torch.load(path, weights_only=True)["meta"]["source_layout"] == "nvidia"


def tool(*arguments: object) -> CompletedProcess:
    return run_tool("convert_checkpoint.py", *arguments, cwd=ROOT)


def test_tool(files, tmp_path: Path):
    target = tmp_path / "ours.safetensors"
    done = tool(files["nvidia"], target)
    assert done.returncode == 0, done.stderr
    assert "loaded: 188 tensors" in done.stdout
    assert f"written: {target} (layout mmgcvit)" in done.stdout
    before = target.read_bytes()
    done = tool(files["timm"], target)
    assert done.returncode == 1
    assert f"convert_checkpoint: {target} exists: choose another name, or use --force to replace it" in done.stderr
    assert target.read_bytes() == before
    assert tool(files["timm"], target, "--force", "--to", "timm").returncode == 0
    assert "head.fc.weight" in load_file(target)


def test_convert_averaged_weights(authors_dict, tmp_path: Path):
    from checkpoint_fixtures import write_authors

    zeros = {k: v * 0 for k, v in authors_dict.items()}
    source = write_authors(tmp_path / "both.pth", zeros, state_dict_ema=authors_dict)
    path, _ = convert_file(str(source), tmp_path / "ema.pth", "nvidia", ema=True)
    assert_same(torch.load(path, weights_only=True)["state_dict"], authors_dict)


def test_hashed_name_exists(files, tmp_path: Path):
    path, _ = convert_file(str(files["nvidia"]), tmp_path / "a.pth", hashed=True)
    with pytest.raises(FileExistsError, match=path.name):
        convert_file(str(files["nvidia"]), tmp_path / "a.pth", hashed=True)
    convert_file(str(files["nvidia"]), tmp_path / "a.pth", hashed=True, force=True)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", ["cut", "evil", "other", "folder"])
def test_bad_files_give_one_line_errors(files, tmp_path: Path, capsys, what: str):
    from test_reader import Evil

    path = tmp_path / "bad.pth"
    if what == "cut":
        path.write_bytes(files["nvidia"].read_bytes()[:-5000])
    elif what == "folder":
        path.mkdir()
    else:
        torch.save({"layer.weight": torch.ones(2)} | ({"x": Evil(tmp_path / "ran")} if what == "evil" else {}), path)
    assert main(["weights", "inspect", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("weights: ")
    assert not (tmp_path / "ran").exists()


def test_bad_arguments(files, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"x.bin'; allowed suffixes: .pth, .safetensors"):
        convert_file(str(files["nvidia"]), tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="to='keras'; allowed: mmgcvit, nvidia, timm"):
        convert_file(str(files["nvidia"]), tmp_path / "x.pth", "keras")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(CheckpointError, match="a web page"):
        convert_file(str(tmp_path / "page.pth"), tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == [tmp_path / "page.pth"]
