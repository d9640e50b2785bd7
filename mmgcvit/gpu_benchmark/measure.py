"""Measurement of one case of the GPU benchmark."""

from __future__ import annotations

import gc
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmgcvit import benchmark, kernels
from mmgcvit.errors import BenchmarkError
from mmgcvit.gpu_benchmark.cases import DTYPES, SDPA, Attention, Case, Network
from mmgcvit.kernels import reference
from mmgcvit.utils.text import describe

TOP_KERNELS = 12


@dataclass(frozen=True)
class Effort:
    """How often a case runs: ``rounds`` times, each time for ``seconds`` or once, whichever is longer."""

    rounds: int = 5
    seconds: float = 0.15


def measure(case: Case, device: str, effort: Effort) -> dict[str, Any]:
    """Measure a case.

    Returns:
        ``seconds`` per run for each round, ``median``, ``spread``, ``images_per_second``, ``peak_bytes``, ``launches``,
        ``top_kernels``, ``errors`` (of attention, relative to plain float32); or ``error``, why there are none.
    """
    try:
        with warnings.catch_warnings(record=True) as caught, precision(case.dtype):
            warnings.simplefilter("always")
            try:
                where = torch.device(device)
                return _network(case, where, effort) if isinstance(case, Network) else _attention(case, where, effort)
            except Exception as error:
                # torch says in warnings why an implementation of attention does not run
                reasons = dict.fromkeys(str(w.message).split(" (Triggered internally")[0] for w in caught)
                shown = list(reasons)[:8] if case.variant in SDPA else []
                return dict(error="; ".join([describe(error)[:1000], *shown]))
    finally:
        if case.variant in ("compiled", "flex"):
            torch.compiler.reset()
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


def rates(device: str) -> dict[str, float]:
    """Measure the operations per second of a large matrix product in each dtype, and the bytes per second of a copy."""
    found = {}
    for dtype in DTYPES:
        with precision(dtype):
            found[dtype] = benchmark.matrix_rates(benchmark.Settings(device=device, dtype=_torch_name(dtype)))[0]
    source = torch.zeros(2**30 if device.startswith("cuda") else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), source.device, Effort(seconds=0.05))
    return found | {"bytes": 2 * source.numel() / min(seconds)}


def count(case: Network) -> dict[str, Any]:
    """Count the operations, kernels and memory traffic of a case without a GPU (:mod:`mmgcvit.kernel_count`).

    The weights are counted in the dtype of the matrix products, so the bytes are a lower bound under autocast.

    Returns:
        ``flop``; ``kernels``, ``bytes`` and ``kept_bytes``, or ``error``, why these cannot be counted.
    """
    from mmgcvit.analysis import count_flops
    from mmgcvit.kernel_count import count_kernels

    train, build = case.mode == "train", partial(benchmark.build, case.model)
    macs = count_flops(build().to("meta"), case.shape).total.macs
    flop = 2 * macs * case.batch * (3 if train else 1)  # a backward pass has twice the products of a forward pass
    try:
        found = count_kernels(build, (case.batch, 3, *case.shape), train, benchmark.DTYPES[_torch_name(case.dtype)])
    except BenchmarkError as error:
        return dict(flop=flop, error=str(error))
    kernels, moved = (sum(counter.values()) for counter in (found.kernels, found.moved))
    return dict(flop=flop, kernels=kernels, bytes=moved, kept_bytes=found.kept)


def _torch_name(dtype: str) -> str:
    return "float32" if dtype == "tf32" else dtype


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Compute float32 matrix products and convolutions in TF32, or not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _network(case: Network, device: torch.device, effort: Effort) -> dict[str, Any]:
    compiled = case.variant == "compiled"
    settings = benchmark.Settings(case.batch, _torch_name(case.dtype), str(device), compiled)
    measurement = benchmark.Measurement(case.model, case.mode, case.shape, settings)
    step: Callable[[], object] = measurement.step
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _using(case.variant, device):
        if case.variant == "graph":
            step = capture(step, device)
        result = _results(timed(step, device, effort), case.batch)
        if device.type == "cuda":
            result["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        try:
            return result | profile(step, device)
        except Exception as error:  # e.g. the profiler may not be allowed; the times are still right
            return result | dict(profile_error=describe(error))


def _attention(case: Attention, device: torch.device, effort: Effort) -> dict[str, Any]:
    torch.manual_seed(0)
    dtype, train = benchmark.DTYPES[_torch_name(case.dtype)], case.mode == "train"
    shape = (case.windows, case.tokens, case.heads * 3 * case.dim)
    qkv = torch.randn(shape, dtype=dtype, device=device, requires_grad=train)
    # Rows aligned to 16 elements, as the network gathers them on a GPU.
    width = case.tokens + -case.tokens % 16
    bias = torch.randn(case.heads, case.tokens, width, dtype=dtype, device=device)[..., : case.tokens]
    bias.requires_grad_(train)
    attend = attention_function(case.variant, device)

    def run(attend: Callable[..., Tensor], qkv: Tensor, bias: Tensor) -> list[Tensor]:
        with torch.set_grad_enabled(train):
            out = attend(qkv, bias, case.heads)
            return [out, *torch.autograd.grad(out, (qkv, bias), gradient.to(out.dtype))] if train else [out]

    gradient = torch.randn(case.windows, case.tokens, case.heads * case.dim, dtype=dtype, device=device)
    with _using(case.variant, device):
        seconds = timed(lambda: run(attend, qkv, bias), device, effort)
        got = run(attend, qkv, bias)
    with precision("float32"):
        exact = [t.detach().float().requires_grad_(train) for t in (qkv, bias)]
        wanted = run(attention_function("plain", device), *exact)
    errors = [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(got, wanted, strict=True)]
    return _results(seconds) | dict(errors=dict(zip(("output", "qkv", "bias"), errors, strict=False)))


def attention_function(variant: str, device: torch.device) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Window attention of (qkv, bias, heads), as in :func:`mmgcvit.kernels.reference.window_attention`."""
    if variant == "triton":
        _require_gpu(variant, device)
        from mmgcvit.kernels import fused

        def triton(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
            if not fused.supports(qkv, None, bias, heads):
                raise BenchmarkError(
                    f"variant 'triton': qkv of shape {tuple(qkv.shape)} and {qkv.dtype}; allowed: at most "
                    f"{fused.MAX_DIM} channels per head, {', '.join(map(str, fused.DTYPES))}"
                )
            return fused.window_attention(qkv, None, bias, heads)

        return triton
    if variant == "flex":
        from torch.nn.attention.flex_attention import flex_attention

        attend: Any = torch.compile(flex_attention, dynamic=False) if device.type == "cuda" else flex_attention

        def flex(qkv: Tensor, bias: Tensor, heads: int) -> Tensor:
            def add_bias(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return score + bias[head, query, key]

            q, k, v = reference.split_heads(qkv, None, heads)
            return attend(q, k, v, score_mod=add_bias).transpose(1, 2).flatten(2)

        return flex
    if variant == "plain":
        return lambda qkv, bias, heads: (
            reference.plain_attention(*reference.split_heads(qkv, None, heads), bias).transpose(1, 2).flatten(2)
        )
    return lambda qkv, bias, heads: reference.window_attention(qkv, None, bias, heads)


def _using(variant: str, device: torch.device) -> Any:
    """Context in which a variant runs."""
    if variant == "triton":
        _require_gpu(variant, device)
        return kernels.enabled("triton_attention")
    if variant in SDPA:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        return sdpa_kernel(getattr(SDPBackend, SDPA[variant]))
    return nullcontext()


def _require_gpu(variant: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise BenchmarkError(f"variant {variant!r} on device {str(device)!r}; allowed: on a GPU")


def capture(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Capture a step as a CUDA graph, after warm-up; returns the function that replays it."""
    _require_gpu("graph", device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed(step: Callable[[], object], device: torch.device, effort: Effort) -> list[float]:
    """Seconds per run of each round, after two runs of warm-up. A GPU is waited for once per round."""

    def rounds(runs: int) -> float:
        benchmark.wait(device)
        start = time.perf_counter()
        for _ in range(runs):
            step()
        benchmark.wait(device)
        return (time.perf_counter() - start) / runs

    rounds(1)
    runs = max(1, math.ceil(effort.seconds / rounds(1)))
    return [rounds(runs) for _ in range(effort.rounds)]


def _results(seconds: list[float], images: int | None = None) -> dict[str, Any]:
    median = statistics.median(seconds)
    result = dict(seconds=seconds, median=median, spread=benchmark.spread(seconds))
    return result if images is None else result | dict(images_per_second=images / median)


def profile(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Number of kernels that one run launches, and those that take the most time; on a CPU, of operators."""
    from torch.profiler import ProfilerActivity

    on_gpu = device.type == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
        benchmark.wait(device)
    kind, time_of = ("CUDA", "self_device_time_total") if on_gpu else ("CPU", "self_cpu_time_total")
    events = [event for event in profiler.key_averages() if event.device_type.name == kind]
    if on_gpu and events and not hasattr(events[0], time_of):  # before torch 2.4
        time_of = "self_cuda_time_total"
    events.sort(key=lambda event: -getattr(event, time_of))
    top = [[e.key[:120], e.count, getattr(e, time_of) * 1e-6] for e in events[:TOP_KERNELS]]
    return dict(launches=sum(e.count for e in events), top_kernels=top)
