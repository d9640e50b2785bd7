"""Benchmark of time and memory of this and other backbones, measured in turn, relative to the machine's matrix rate.

Requires torch, timm and mmengine; mmdet only for its backbones.
"""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from mmgcvit import kernels
from mmgcvit.errors import BenchmarkError
from mmgcvit.utils import write_json as write_json_file
from mmgcvit.utils.text import counted, wide_console

DISABLED = "disabled"  # argument of a model: kernels to disable
NOISY = 0.15  # interquartile range over median above which a result counts as noisy
SLOW = 1e10  # operations per second; CPUs are slower in a dtype that they have no instructions for
MODES = ("forward", "train")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Models of timm by the name here, with their name there and their arguments.
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    f"timm-{family}-{size}": (name.format(size), arguments)
    for family, name, arguments in (
        ("gcvit", "gcvit_{}", dict(num_classes=0, global_pool="")),
        ("swin", "swin_{}_patch4_window7_224", dict(features_only=True)),
        ("convnext", "convnext_{}", dict(features_only=True)),
    )
    for size in ("tiny", "small", "base")
}
ALLOWED = "gcvit-ARCH and arguments of GCViT, as in gcvit-tiny,pad=window,window_size=24/24/24/24; or " + ", ".join(
    ("swin-t", "resnet-50", *TIMM)
)


@dataclass(frozen=True)
class Settings:
    """Measurement settings other than model, mode and image size.

    Args:
        batch: batch size.
        dtype: float32, or the dtype of autocast.
        device: torch device.
        compile: use torch.compile.
        channels_last: use channels-last input.
        rounds: number of measurements per model.
        warmup: runs before the first measurement.
        isolate: run each measurement in a new process, and read its peak memory.
        threads: number of torch's CPU threads; None for the default.
    """

    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    compile: bool = False
    channels_last: bool = False
    rounds: int = 5
    warmup: int = 1
    isolate: bool = False
    threads: int | None = None


@dataclass
class Result:
    """Measurements of one model, mode and image size.

    Args:
        model: name, as accepted by :func:`build`.
        mode: one of :data:`MODES`.
        shape: height and width of the images.
        seconds: time of each round.
        rates: matrix rate of the machine before each round, operations per second (:func:`matrix_rates`).
        torch_rates: the same with torch's own matrix product.
        peak_bytes: with ``isolate``, peak memory of the process.
        run_bytes: with ``isolate``, peak memory minus the memory before the first run.
        forward_flop: number of operations of a forward pass.
    """

    model: str
    mode: str
    shape: tuple[int, int]
    seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    torch_rates: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    run_bytes: int | None = None
    forward_flop: int | None = None

    @property
    def median(self) -> float:
        """Median time, in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range of the times over their median."""
        return spread(self.seconds)

    def share(self, rates: Sequence[float]) -> float | None:
        """Ratio of the operations per second of a forward pass to a matrix rate; None if either is too noisy."""
        if self.mode != "forward" or not self.forward_flop or max(self.spread, spread(rates)) > NOISY:
            return None
        return statistics.median(self.forward_flop / s / rate for s, rate in zip(self.seconds, rates, strict=True))


def spread(values: Sequence[float]) -> float:
    """Interquartile range over the median; for three values, their range over the median."""
    if len(values) < 2:
        return math.inf
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / statistics.median(values)


def build(name: str) -> nn.Module:
    """Build a backbone from its name on the command line.

    Raises:
        BenchmarkError: the name is unknown, a package is missing, or the model rejects the arguments.
    """
    base, options = _parse(name)
    options.pop(DISABLED, None)
    try:
        if base.startswith("gcvit-"):
            from mmgcvit.backbone import GCViT

            return GCViT(base.removeprefix("gcvit-"), **options)
        if base in TIMM:
            import timm

            timm_name, arguments = TIMM[base]
            return timm.create_model(timm_name, **arguments, **options)
        if base == "swin-t":
            from mmdet.models.backbones import SwinTransformer

            return SwinTransformer(**options)
        if base == "resnet-50":
            from mmdet.models.backbones import ResNet

            return ResNet(50, norm_eval=False, **options)
    except ImportError as error:
        raise BenchmarkError(f"model {name!r} needs a package that is not installed: {error}") from error
    except (TypeError, ValueError) as error:
        raise BenchmarkError(f"model {name!r}: {error}") from error
    raise BenchmarkError(f"model {name!r} is unknown; allowed: {ALLOWED}")


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """Split the name of a model into base name and arguments."""
    base, *pairs = name.split(",")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BenchmarkError(f"model {name!r}: {pair!r} is not key=value; allowed: {ALLOWED}")
        options[key] = _value(value)
    return base, options


def ablations(models: Sequence[str]) -> list[str]:
    """List each GC ViT of ``models``, followed by variants with one kernel disabled each."""
    variants = {name: [f"{name},{DISABLED}={kernel}" for kernel in kernels.KERNELS] for name in models}
    return [v for name in models for v in (name, *(variants[name] if name.startswith("gcvit-") else ()))]


def _value(text: str) -> object:
    """Parse a value: '7' -> 7, '7/7/14/7' -> (7, 7, 14, 7), 'true' -> True; anything else stays a string."""
    if re.fullmatch(r"\d+(/\d+)+", text):
        return tuple(map(int, text.split("/")))
    try:
        return json.loads(text)
    except ValueError:
        return text


class Measurement:
    """A model that can be run and timed repeatedly.

    Args:
        name: as accepted by :func:`build`; ``disabled=NAME/NAME`` disables kernels (:data:`mmgcvit.kernels.KERNELS`).
        mode: 'forward' (evaluation, no gradients) or 'train' (forward and backward pass from the mean of the maps).
        shape: height and width of the images.
        settings: all other settings.
    """

    def __init__(self, name: str, mode: str, shape: Sequence[int], settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings, self.mode = settings, mode
        self.disabled = str(_parse(name)[1].get(DISABLED) or "").split("/") if DISABLED in name else []
        unknown = [kernel for kernel in self.disabled if kernel not in kernels.KERNELS]
        if unknown:
            raise BenchmarkError(f"model {name!r}: disabled={'/'.join(unknown)}; allowed: {', '.join(kernels.KERNELS)}")
        self.device = torch.device(settings.device)
        model = build(name).to(self.device)
        model.train(mode == "train")  # returns None for mmdet's backbones
        self.images = torch.randn(settings.batch, 3, *shape, device=self.device)
        if settings.channels_last:
            self.images = self.images.contiguous(memory_format=torch.channels_last)
        self.module, self.parameters = model, list(model.parameters())
        self.model: Callable = torch.compile(model) if settings.compile else model

    def run(self) -> float:
        """Run once and return the time in seconds."""
        wait(self.device)
        start = time.perf_counter()
        self.step()
        wait(self.device)
        return time.perf_counter() - start

    def step(self) -> None:
        """Run once without waiting for the device; a training step includes resetting the gradients."""
        dtype = DTYPES[self.settings.dtype]
        autocast = nullcontext() if dtype is torch.float32 else torch.autocast(self.device.type, dtype)
        with autocast, kernels.disabled(*self.disabled):
            if self.mode == "forward":
                with torch.no_grad():
                    self.model(self.images)
            else:
                _loss(self.model(self.images)).backward()
                for parameter in self.parameters:
                    parameter.grad = None

    def count(self) -> int:
        """Number of operations of a forward pass, including attention; a multiply-add counts as two."""
        from mmgcvit.analysis import count_flops

        height, width = self.images.shape[2:]
        return 2 * self.settings.batch * count_flops(self.module, (height, width)).total.macs


def wait(device: torch.device) -> None:
    """Wait until a GPU has computed everything that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _loss(maps: Tensor | Sequence[Tensor]) -> Tensor:
    return torch.stack([m.float().mean() for m in ([maps] if isinstance(maps, Tensor) else maps)]).sum()


def matrix_rates(settings: Settings) -> tuple[float, float]:
    """Measure the operations per second of a large square matrix product, with the device and dtype of the settings.

    Returns:
        The rate of the fastest implementation, and that of torch's ``@``. On a CPU, the former may be a 1x1 convolution
        computed by oneDNN. A CPU without instructions for the dtype would take minutes, so its rates are those of a
        smaller product.
    """
    if settings.device.startswith("cuda"):
        return _matrix_rates(8192, settings)
    found = _matrix_rates(512, settings)
    return found if min(found) < SLOW else _matrix_rates(2048, settings)


def _matrix_rates(side: int, settings: Settings) -> tuple[float, float]:
    device, dtype = torch.device(settings.device), DTYPES[settings.dtype]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    image, weight = a.view(1, side, 1, side).permute(0, 3, 1, 2), b[:, :, None, None]

    def rate(way: Callable[[], Tensor]) -> float:
        best = math.inf
        for _ in range(4):
            start = time.perf_counter()
            way()
            wait(device)
            best = min(best, time.perf_counter() - start)
        return 2 * side**3 / best

    own = rate(lambda: a @ b)
    return (own if device.type == "cuda" else max(own, rate(lambda: F.conv2d(image, weight)))), own


def measure(
    models: Sequence[str],
    modes: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    settings: Settings,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Measure every model, mode and shape; models alternate (A B A B), so that slow periods affect all of them.

    Raises:
        BenchmarkError: a model cannot be built, or the device is missing.
    """
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError(f"device {settings.device!r}: torch sees no GPU; allowed: cpu")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    results = []
    for mode in modes:
        for shape in shapes:
            group = [Result(name, mode, (shape[0], shape[1])) for name in models]
            ready = {} if settings.isolate else {r.model: _prepared(r.model, mode, shape, settings) for r in group}
            for turn in range(settings.rounds):
                for result in group:
                    rate, own = matrix_rates(settings)
                    result.rates.append(rate)
                    result.torch_rates.append(own)
                    progress(f"{mode} {shape[0]} x {shape[1]}, round {turn + 1} of {settings.rounds}: {result.model}")
                    if settings.isolate:
                        seconds, peak, before = _in_a_process(result.model, mode, shape, settings)
                        result.peak_bytes = max(peak, result.peak_bytes or 0)
                        result.run_bytes = max(peak - before, result.run_bytes or 0)
                    else:
                        seconds = ready[result.model].run()
                    result.seconds.append(seconds)
            ready.clear()
            gc.collect()
            results += group
    for result in results:
        if result.model.startswith("gcvit-"):
            with torch.device("meta"):
                counted = Measurement(result.model, "forward", result.shape, Settings(device="meta"))
            result.forward_flop = counted.count() * settings.batch
    return results


def _prepared(name: str, mode: str, shape: Sequence[int], settings: Settings) -> Measurement:
    measurement = Measurement(name, mode, shape, settings)
    for _ in range(settings.warmup):
        measurement.run()
    return measurement


def _in_a_process(name: str, mode: str, shape: Sequence[int], settings: Settings) -> tuple[float, int, int]:
    # Spawn instead of fork: otherwise the parent's memory would count.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_isolated, name, mode, shape, settings).result()
        except BrokenProcessPool as error:
            raise BenchmarkError(
                f"{mode} of {name} at {shape[0]} x {shape[1]} was killed, probably because "
                "memory ran out; use a smaller --batch or smaller --shapes"
            ) from error


def _isolated(name: str, mode: str, shape: Sequence[int], settings: Settings) -> tuple[float, int, int]:
    """Measure the seconds of one run after warm-up, peak memory, and memory before the first run, in bytes.

    On CUDA, the memory is that allocated by torch.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cuda = settings.device.startswith("cuda")
    measurement = Measurement(name, mode, shape, settings)
    # Measured before the first run, so that weights and imported packages do not count.
    before = torch.cuda.memory_allocated(settings.device) if cuda else resident("VmRSS")
    for _ in range(settings.warmup):
        measurement.run()
    seconds = measurement.run()
    return seconds, torch.cuda.max_memory_allocated(settings.device) if cuda else resident("VmHWM"), before


def resident(which: str) -> int:
    """Resident memory of this process, in bytes: current ('VmRSS') or peak ('VmHWM').

    Raises:
        BenchmarkError: the system is not Linux.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise BenchmarkError(
            "isolate: memory is read from /proc/self/status, which does not exist here; allowed: Linux"
        )
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return 1024 * int(fields[which].split()[0])  # '123 kB'


def machine(settings: Settings) -> str:
    """Describe the machine on one line."""
    if settings.device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(settings.device)}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        model = found.group(1) if found else model
    threads = settings.threads or torch.get_num_threads()
    return (
        f"{model}, {counted(os.cpu_count() or 1, 'processor')}, {counted(threads, 'thread')}, torch {torch.__version__}"
    )


def exponent(results: Sequence[Result], key: Callable[[Result], float]) -> float:
    """Exponent with which a model's cost grows with the number of pixels (least squares on logarithms)."""
    x = [math.log(r.shape[0] * r.shape[1]) for r in results]
    return statistics.linear_regression(x, [math.log(key(r)) for r in results]).slope


def print_results(results: Sequence[Result], settings: Settings, baseline: str | None) -> None:
    """Print medians with their spread, ratios to the baseline, and the share of the machine's matrix rate."""
    console = wide_console()
    console.print(
        f"{machine(settings)}; {settings.dtype}, batch {settings.batch}"
        + (", compiled" if settings.compile else "")
        + (", channels last" if settings.channels_last else "")
    )
    for which, rates in (
        ("fastest", [rate for result in results for rate in result.rates]),
        ("torch's", [rate for result in results for rate in result.torch_rates]),
    ):
        console.print(
            f"matrix products, {which}: {statistics.median(rates) / 1e9:.0f} GFLOP/s "
            f"(lowest {min(rates) / 1e9:.0f}, highest {max(rates) / 1e9:.0f})",
            highlight=False,
        )
    table = Table()
    for title in ("mode", "shape", "model"):
        table.add_column(title, overflow="fold")
    titles = [
        "seconds",
        "spread",
        "peak GiB",
        "GiB of the run",
        f"time / {baseline}",
        f"GiB / {baseline}",
        "of the matrix rate",
        "of torch's",
    ]
    unwanted = (set() if settings.isolate else {"peak GiB", "GiB of the run", f"GiB / {baseline}"}) | (
        set() if baseline else {f"time / {baseline}", f"GiB / {baseline}"}
    )
    for title in titles:
        if title not in unwanted:
            table.add_column(title, justify="right")
    for result in results:
        base = next((r for r in results if (r.model, r.mode, r.shape) == (baseline, result.mode, result.shape)), None)
        cells = [
            f"{result.median:.3f}",
            f"{result.spread:.0%}" if len(result.seconds) > 1 else "?",
            f"{(result.peak_bytes or 0) / 2**30:.2f}",
            f"{(result.run_bytes or 0) / 2**30:.2f}",
            ratio(result, base),
            f"{(result.run_bytes or 0) / base.run_bytes:.2f}" if base and base.run_bytes else "",
            *(
                "" if share is None else f"{share:.2f}"
                for share in (result.share(result.rates), result.share(result.torch_rates))
            ),
        ]
        row = [
            result.mode,
            "{} x {}".format(*result.shape),
            result.model,
            *(cell for title, cell in zip(titles, cells, strict=True) if title not in unwanted),
        ]
        table.add_row(*row)
    console.print(table)
    for name, mode in dict.fromkeys((r.model, r.mode) for r in results):
        own = [r for r in results if (r.model, r.mode) == (name, mode)]
        if len(own) > 2:
            noisy = any(r.spread > NOISY for r in own)
            line = f"{name}, {mode}: time grows with pixels to the power of "
            line += "?, noisy" if noisy else f"{exponent(own, lambda r: r.median):.3f}"
            if settings.isolate:
                line += f", memory of the run to the power of {exponent(own, lambda r: r.run_bytes or 0):.3f}"
            console.print(line, highlight=False)
    if any(r.spread > NOISY for r in results):
        console.print(
            f"noisy: the interquartile range exceeds {NOISY:.0%} of the median; these figures are not "
            "conclusive. Stop other programs and use more --rounds."
        )


def ratio(result: Result, base: Result | None) -> str:
    """Time relative to the baseline; 'noisy' if either result is noisy."""
    if base is None:
        return ""
    if result.spread > NOISY or base.spread > NOISY:
        return "noisy"
    return f"{result.median / base.median:.2f}"


def write_json(path: Path, results: Sequence[Result], settings: Settings) -> None:
    """Write all measurements as JSON, atomically."""
    data = dict(
        machine=machine(settings),
        settings=asdict(settings),
        results=[asdict(r) | dict(median=r.median, noisy=r.spread > NOISY) for r in results],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_file(path, data, indent=1)
