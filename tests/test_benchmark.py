"""The benchmark: models, measurements and printed results."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
import torch
from conftest import ROOT
from run_tool import run_tool

from mmgcvit import GCViT, benchmark, kernels
from mmgcvit.benchmark import Measurement, Result, Settings
from mmgcvit.errors import BenchmarkError
from mmgcvit.kernels import dispatch

SMALL = "gcvit-xxtiny,window_size=2/2/2/2"


def test_build_from_names():
    model = benchmark.build("gcvit-xxtiny,window_size=8/8/16/8,pad=window,with_cp=true")
    assert model.arch.window_size == (8, 8, 16, 8)
    assert model.pad == "window"
    assert model.stages[0].with_cp is True
    with torch.no_grad():
        swin, resnet = benchmark.build("swin-t"), benchmark.build("resnet-50")
    assert [sum(p.numel() for p in m.parameters()) // 10**6 for m in (swin, resnet)] == [27, 23]
    assert benchmark.build("timm-gcvit-tiny").num_classes == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin", r"model 'swin' is unknown; allowed: gcvit-ARCH"),
        ("gcvit-huge", r"model 'gcvit-huge': arch='huge' is unknown"),
        ("gcvit-tiny,pad", r"'pad' is not key=value"),
        ("gcvit-tiny,padding=window", r"unknown argument padding='window'"),
    ],
)
def test_bad_names(name: str, message: str):
    with pytest.raises(BenchmarkError, match=message):
        benchmark.build(name)


def test_missing_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchmarkError, match=r"device 'cuda:1': torch sees no GPU; allowed: cpu"):
        benchmark.measure([SMALL], ["forward"], [(32, 32)], Settings(device="cuda:1"))


def test_models_alternate(monkeypatch):
    turns = []
    run = Measurement.run

    def spy(self: Measurement) -> float:
        turns.append((self.model.pad, self.model.training, torch.is_grad_enabled()))
        return run(self)

    monkeypatch.setattr(Measurement, "run", spy)
    monkeypatch.setattr(benchmark, "matrix_rates", lambda settings: (2e11, 1e11))
    models = [SMALL, SMALL + ",pad=window"]
    results = benchmark.measure(models, ["forward", "train"], [(33, 40)], Settings(batch=2, rounds=3))
    assert [pad for pad, *_ in turns] == 2 * (["input", "window"] + 3 * ["input", "window"])  # warm-up, then rounds
    assert [training for _, training, _ in turns] == 8 * [False] + 8 * [True]
    assert [(r.model, r.mode, len(r.seconds)) for r in results] == [
        (m, mode, 3) for mode in benchmark.MODES for m in models
    ]
    assert all((r.rates, r.torch_rates) == (3 * [2e11], 3 * [1e11]) for r in results)
    # two operations per multiply-add, for each of two images
    from mmgcvit.analysis import count_flops

    assert results[0].forward_flop == 4 * count_flops(benchmark.build(SMALL), (33, 40)).total.macs


def test_training_step_computes_and_resets_gradients(monkeypatch):
    measurement = Measurement(SMALL, "train", (32, 32), Settings(batch=2))
    seen = []
    measurement.parameters[0].register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.abs().sum().item()))
    assert measurement.run() > 0
    assert seen[0] > 0
    assert measurement.parameters[0].grad is None


def test_ablation(monkeypatch, capsys):
    """Each kernel is disabled in turn, and enabled again afterwards."""
    chosen: list[tuple[str, ...]] = []
    forward = GCViT.forward

    def spy(self: GCViT, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if x.device.type == "cpu":
            chosen.append(tuple(sorted(dispatch._disabled)))
        return forward(self, x)

    monkeypatch.setattr(GCViT, "forward", spy)
    monkeypatch.setattr(benchmark, "matrix_rates", lambda settings: (2e11, 1e11))
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "--ablate", "--models", SMALL, "--shapes", "33x40", "--rounds", "2"]
    )
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "benchmark.py"), run_name="__main__")
    assert end.value.code == 0
    assert set(chosen) == {(), *((name,) for name in kernels.KERNELS)}
    assert f"disabled={next(iter(kernels.KERNELS))}" in capsys.readouterr().err
    with pytest.raises(BenchmarkError, match=r"disabled=lineal; allowed: linear, "):
        Measurement(f"{SMALL},disabled=lineal", "forward", (32, 32), Settings())


def result(name: str, seconds: list[float], shape: tuple[int, int] = (32, 32)) -> Result:
    return Result(name, "forward", shape, seconds, [2e11] * len(seconds), [1.25e11] * len(seconds))


def test_noisy_measurements_give_no_result():
    steady, other = result("a", [1.0, 1.01, 0.99]), result("b", [2.0, 2.02, 2.04])
    noisy = result("c", [1.0, 1.4, 2.0])
    assert benchmark.ratio(other, steady) == "2.02"
    assert benchmark.ratio(noisy, steady) == benchmark.ratio(steady, noisy) == "noisy"
    assert benchmark.ratio(result("once", [1.0]), steady) == "noisy"  # one run has no spread
    for few in ([1.0, 1.3], [1.0, 1.0, 1.29], [0.90, 0.70, 0.71, 0.71, 0.50]):
        assert benchmark.ratio(result("few", few), steady) == "noisy"
    assert benchmark.ratio(steady, None) == ""


def test_printed_results(capsys):
    results = [result("a", [1.0, 1.0, 1.0]), result("b", [1.0, 1.5, 2.0])]
    results[0].forward_flop = results[1].forward_flop = 10**11
    benchmark.print_results(results, Settings(), "a")
    text = capsys.readouterr().out
    assert "200 GFLOP/s" in text
    assert "125 GFLOP/s" in text
    assert text.index("0.50") < text.index("0.80")  # relative to the matrix rate, and to torch's
    assert results[1].share(results[1].rates) is None
    assert results[0].share([1e11, 2e11, 2e11]) is None  # the matrix rate itself was noisy
    assert "noisy: the interquartile range exceeds 15%" in text


def test_growth_with_pixels(capsys):
    results = [result("a", 3 * [side**2 * 1e-6], (side, side)) for side in (224, 448, 896)]
    assert benchmark.exponent(results, lambda r: r.median) == pytest.approx(1)
    benchmark.print_results(results, Settings(), None)
    text = capsys.readouterr().out
    assert "time grows with pixels to the power of 1.000" in text
    assert "None" not in text


def test_tool_with_isolated_processes(tmp_path):
    """Peak memory is that of the new process, not of its parent."""
    options = [
        "--models",
        SMALL + ",pad=stage",
        "--shapes",
        "40x50",
        "--isolate",
        "--rounds",
        "2",
        "--threads",
        "1",
        "--out",
        tmp_path / "made" / "it.json",
    ]
    run = run_tool("benchmark.py", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "peak GiB" in run.stdout
    data = json.loads((tmp_path / "made" / "it.json").read_text())
    assert [r["model"] for r in data["results"]] == [SMALL + ",pad=stage"]
    for r in data["results"]:
        assert len(r["seconds"]) == 2
        assert 50e6 < r["peak_bytes"] < 4e9
        assert 0 < r["run_bytes"] < r["peak_bytes"] / 2  # memory of the program and its packages does not count
    assert data["settings"]["threads"] == 1
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["it.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "800"], "'800'; allowed: HEIGHTxWIDTH"),
        (["--rounds", "0"], "'0'; allowed: an integer of at least 1"),
        (["--baseline", "resnet-50"], "--baseline resnet-50; allowed: one of --models"),
        (["--models", "vit"], "model 'vit' is unknown"),
    ],
)
def test_bad_arguments_of_the_tool(arguments: list[str], message: str, monkeypatch, capsys):
    tool = ROOT / "tools" / "benchmark.py"
    monkeypatch.setattr(sys, "argv", [str(tool), *arguments])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(tool), run_name="__main__")
    said = capsys.readouterr().err + str(error.value.code)
    assert error.value.code not in (0, None)
    assert message in said


@pytest.mark.parametrize(("rate", "sides"), [(9e9, [512]), (2e11, [512, 2048])])
def test_matrix_rates_of_a_slow_dtype_are_measured_on_a_small_product(monkeypatch, rate: float, sides: list[int]):
    measured = []
    monkeypatch.setattr(benchmark, "_matrix_rates", lambda side, settings: measured.append(side) or (rate, rate))
    assert benchmark.matrix_rates(benchmark.Settings()) == (rate, rate)
    assert measured == sides


def test_matrix_rates_of_a_cpu():
    fastest, torchs = benchmark._matrix_rates(64, benchmark.Settings())
    assert fastest >= torchs > 0
