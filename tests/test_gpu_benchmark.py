"""The GPU benchmark, with small cases on the CPU."""

from __future__ import annotations

import json
import os
import re
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from mmgcvit import benchmark
from mmgcvit.errors import BenchmarkError
from mmgcvit.gpu_benchmark import cases as case_lists
from mmgcvit.gpu_benchmark import measure as measures
from mmgcvit.gpu_benchmark import run as runs
from mmgcvit.gpu_benchmark.cases import Attention, Network
from mmgcvit.gpu_benchmark.measure import Effort, measure
from mmgcvit.gpu_benchmark.table import markdown
from mmgcvit.kernels import dispatch

TOOL = ROOT / "tools" / "benchmark_gpu.py"
RATES = dict(float32=1e11, tf32=1e11, bfloat16=4e11, float16=4e11, bytes=1e10)


class SameProcess:
    """Runs the jobs in this process, and returns fixed rates."""

    def call(self, function: Callable[..., Any], *args: Any, seconds: float) -> dict[str, Any]:
        assert seconds > 0
        return RATES if function.__name__ == "rates" else function(*args)

    def stop(self) -> None:
        pass


def run_tool(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path, status: int = 0) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert end.value.code == status


def test_tool_on_a_cpu(tmp_path, monkeypatch, capsys):
    """All kinds of cases; what a CPU cannot do is an entry with an error."""
    monkeypatch.setattr(runs, "Worker", SameProcess)
    monkeypatch.setitem(sys.modules, "mmdet", None)  # importing it fails
    out = tmp_path / "new" / "gpu.json"
    run_tool(monkeypatch, "--quick", "--device", "cpu", "--out", out)
    data, said = json.loads(out.read_text()), capsys.readouterr()
    assert data["machine"]["torch"] == torch.__version__
    assert data["rates"] == RATES
    planned = case_lists.quick_plan()
    assert [case_lists.key_of(e) for e in data["results"]] == [
        case_lists.key(c) for c in planned if not isinstance(c, Network) or c.model != "swin-t"
    ]
    assert {(e["model"], e["reason"]) for e in data["left_out"]} == {("swin-t", "mmdet is not installed")}
    networks = {(e["mode"], e["variant"]): e for e in data["results"] if "model" in e}
    for mode in benchmark.MODES:
        entry = networks[mode, "eager"]
        assert len(entry["seconds"]) == 2
        assert entry["images_per_second"] == pytest.approx(2 / entry["median"])
        assert entry["launches"] > 100
        assert entry["top_kernels"]
        assert entry["counted"]["kernels"] > 100
        flop = entry["counted"]["flop"]
        assert entry["share_of_matrix_rate"] == pytest.approx(flop / entry["median"] / 4e11)
        assert entry["share_of_memory_rate"] == pytest.approx(entry["counted"]["bytes"] / entry["median"] / 1e10)
    forward, step = (networks[mode, "eager"]["counted"] for mode in benchmark.MODES)
    assert step["flop"] == 3 * forward["flop"]
    assert "median" in networks["train", "sdpa-math"]
    for variant in ("graph", "triton"):
        assert networks["train", variant]["error"].startswith(f"variant '{variant}' on device 'cpu'; allowed: on a GPU")
    attention = {(e["mode"], e["variant"]): e for e in data["results"] if "place" in e}
    for mode in benchmark.MODES:
        for variant in ("sdpa", "sdpa-math", "plain"):
            entry = attention[mode, variant]
            assert list(entry["errors"]) == (["output"] if mode == "forward" else ["output", "qkv", "bias"])
            assert max(entry["errors"].values()) < 1e-5
    assert attention["forward", "flex"]["errors"]["output"] < 1e-5
    assert "FlexAttention does not support backward on CPU" in attention["train", "flex"]["error"]
    assert "No available kernel" in attention["train", "sdpa-flash"]["error"]
    assert "Flash attention kernel not used because" in attention["train", "sdpa-flash"]["error"]  # from a warning
    for text in ("### Training step, 2 x 3 x 32 x 40", "### Window attention", "### Failed", "### Left out", "1907"):
        assert text in said.out
    assert "attention" not in said.err.splitlines()[0]
    run_tool(monkeypatch, "--print", out)
    assert capsys.readouterr().out == said.out


def test_an_unknown_model_is_an_entry_with_an_error():
    failed = measure(Network("gcvit-huge", "forward", 2, (32, 32), "float32"), "cpu", Effort(1, 0))
    assert failed["error"].startswith("model 'gcvit-huge': arch='huge' is unknown")


def test_precision_and_kernels_are_restored():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for variant in ("sdpa", "triton"):
        measure(Attention("small", 2, 1, 9, 8, "train", "tf32", variant), "cpu", Effort(1, 0))
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
        assert dispatch._tables["eager"] is dispatch.EAGER


def test_plan():
    """Known models and variants; the dict that JSON returns of a case identifies it."""
    plan = case_lists.plan()
    assert plan[0] == Network("gcvit-tiny", "forward", 128, (224, 224), "bfloat16")
    assert len(set(plan)) == len(plan)
    for case in [*plan, *case_lists.quick_plan()]:
        assert case.dtype in case_lists.DTYPES
        assert case.mode in benchmark.MODES
        assert case_lists.key_of(json.loads(json.dumps(asdict(case)))) == case_lists.key(case)
        if isinstance(case, Network):
            base = benchmark._parse(case.model)[0]
            assert base.startswith("gcvit-") or base in benchmark.TIMM or base == "swin-t"
            assert case.variant in case_lists.NETWORK_VARIANTS
        else:
            assert case.variant in case_lists.ATTENTION_VARIANTS
    measured = {(c.model, c.mode, c.batch, c.dtype, c.variant) for c in plan if isinstance(c, Network)}
    for model in ("timm-gcvit-small", "timm-swin-base", "timm-convnext-base", "gcvit-base"):
        assert (model, "train", 128, "bfloat16", "eager") in measured
    for variant in case_lists.NETWORK_VARIANTS:
        for batch, model in ((128, "gcvit-tiny"), (2, "gcvit-tiny,pad=window")):
            assert {(model, mode, batch, "bfloat16", variant) for mode in benchmark.MODES} <= measured
    for dtype in case_lists.DTYPES:
        assert ("swin-t", "train", 2, dtype, "eager") in measured
    # Within nine minutes: all kinds of cases, and both networks compiled.
    compiled = next(i for i, c in enumerate(plan) if c.variant == "compiled")
    assert {c.variant for c in plan[:compiled]} >= {*case_lists.NETWORK_VARIANTS, *case_lists.ATTENTION_VARIANTS} - {
        "compiled",
        "flex",
    }
    assert sum(case.expected_seconds for case in plan[: compiled + 2]) < 540


def test_operations_are_counted_where_kernels_are_not():
    """mmdet's Swin-T cannot run on the meta device in bfloat16."""
    case = Network("swin-t", "forward", 2, (64, 64), "bfloat16")
    counted, exact = measures.count(case), measures.count(replace(case, dtype="float32"))
    assert "cannot run on the meta device in torch.bfloat16" in counted["error"]
    assert counted["flop"] == exact["flop"] > 0
    assert exact["kernels"] > 100


def test_models_of_timm():
    for name in benchmark.TIMM:
        if name.endswith("-small"):
            assert 25e6 < sum(p.numel() for p in benchmark.build(name).parameters()) < 60e6


class Recorder(SameProcess):
    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.seen = seconds, []

    def call(self, function: Callable[..., Any], *args: Any, seconds: float) -> dict[str, Any]:
        if function is not measure:
            return RATES
        self.seen.append(args[0])
        time.sleep(self.seconds)
        return dict(error="full") if args[0].variant == "plain" else dict(seconds=[1.0], median=1.0)


def test_time_limit_and_resuming(tmp_path):
    """Cases that would take longer than the time left are left out with the reason, and measured when resumed."""
    cases = [
        Attention("a", 2, 1, 9, 8, "train", "float32", variant) for variant in ("sdpa", "plain", "flex", "sdpa-math")
    ]
    out, first = tmp_path / "gpu.json", Recorder()
    minutes = (runs.RESERVE_SECONDS + 20) / 60  # time for all but FlexAttention
    data = runs.run(cases, out, "cpu", minutes, worker=first)
    assert [c.variant for c in first.seen] == ["sdpa", "plain", "sdpa-math"]
    (left_out,) = data["left_out"]
    assert left_out["variant"] == "flex"
    assert left_out["reason"].startswith("about 25 s, ")
    second = Recorder()
    data = runs.run(cases, out, "cpu", 5, resume=True, worker=second)
    assert [c.variant for c in second.seen] == ["plain", "flex"]  # what failed and what was left out
    assert sorted(e["variant"] for e in data["results"]) == ["flex", "plain", "sdpa", "sdpa-math"]
    assert json.loads(out.read_text())["left_out"] == []
    changed = json.loads(out.read_text())
    changed["machine"]["name"] = "another"
    out.write_text(json.dumps(changed))
    with pytest.raises(BenchmarkError, match=r"gpu.json: measured on another with torch .*; allowed: the same machine"):
        runs.run(cases, out, "cpu", 5, resume=True, worker=second)


def test_a_crash_or_an_endless_job_ends_only_its_process():
    worker = runs.Worker()
    try:
        assert worker.call(dict, [("a", 1)], seconds=200) == dict(a=1)
        assert worker.call(int, "x", seconds=200)["error"].startswith("invalid literal for int()")
        assert worker.call(os._exit, 3, seconds=200) == dict(error="the process ended with exit code 3")
        assert worker.call(time.sleep, 100, seconds=1) == dict(error="stopped after 1 s")
    finally:
        worker.stop()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--device", "cuda:1"], 1, "benchmark_gpu: device 'cuda:1': torch sees no GPU; allowed: cpu"),
        (["--minutes", "0"], 2, "'0'; allowed: a number above 0"),
        (["--minutes", "nan"], 2, "'nan'; allowed: a number above 0"),
        (["--print", "none.json"], 1, "none.json: .*allowed: a JSON file of `mmgcvit benchmark-gpu`"),
        (["--print", "pyproject.toml"], 1, "pyproject.toml: .*allowed: a JSON file of `mmgcvit benchmark-gpu`"),
    ],
)
def test_bad_arguments_of_the_tool(arguments: list[str], status: int, message: str, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(ROOT)
    run_tool(monkeypatch, *arguments, "--out", tmp_path / "gpu.json", status=status)
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_tables_show_own_results_beside_published_ones():
    fields = dict(model="timm-swin-tiny", mode="forward", batch=128, shape=[224, 224], dtype="float16")
    data = dict(
        machine=dict(name="A card", torch="2.9", driver="570"),
        rates=RATES,
        results=[
            fields | dict(variant="eager", images_per_second=4321.4, median=0.03, peak_bytes=2**31),
            fields | dict(model="gcvit-tiny", variant="eager", images_per_second=1234, median=0.1),
            fields | dict(variant="compiled", error="no | room"),
        ],
        left_out=[fields | dict(variant="graph", reason="no time")],
        published_by_timm=runs.PUBLISHED,
    )
    text = markdown(data)
    assert text.startswith("A card, driver 570, torch 2.9.\n")
    assert "0.4 TFLOP/s in bfloat16" in text
    assert "| `timm-swin-tiny` | float16 | eager | 4321 | 30.00 |  |  |  | 2.00 |  |  |  |" in text
    assert "| `timm-swin-tiny` 128 x 224 x 224 forward float16 compiled | no \\| room |" in text
    assert "- `timm-swin-tiny` 128 x 224 x 224 forward float16 graph: no time" in text
    assert "| `timm-swin-tiny` | eager | 2749 | 4321 | 1234 |" in text
    assert "| `timm-swin-tiny` | compiled | 5020 |  |  |" in text
    columns = {line.count(" | ") for line in text.splitlines() if line.startswith("| `timm-swin-tiny` | float16")}
    assert columns == {len(text[text.index("| model") :].splitlines()[0].split(" | ")) - 1}
