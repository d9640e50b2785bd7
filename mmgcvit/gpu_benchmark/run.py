"""Runs the cases of the GPU benchmark within a time limit, and writes a JSON file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import multiprocessing
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mmgcvit import benchmark
from mmgcvit.errors import BenchmarkError
from mmgcvit.gpu_benchmark.cases import Case, Network, key, key_of
from mmgcvit.gpu_benchmark.measure import Effort, count, measure, rates
from mmgcvit.utils import write_json
from mmgcvit.utils.text import describe

LIMIT_FACTOR = 3  # a case is stopped after so many times its expected time
START_SECONDS = 60.0  # more, for the start of a process
RESERVE_SECONDS = 10.0  # of the time limit, for what follows the measurements
#: Images per second of timm's own benchmark of inference at 224 x 224, in AMP on an RTX 4090.
PUBLISHED = dict(
    source="timm's results of benchmark.py",
    card="NVIDIA GeForce RTX 4090",
    shape=(224, 224),
    dtype="float16",
    images_per_second={
        "timm-gcvit-tiny": dict(eager=1907, compiled=3171),
        "timm-swin-tiny": dict(eager=2749, compiled=5020),
    },
)


class Worker:
    """A process that runs one job after another, so that a crash or an endless job ends only this process.

    It is started by the first job, and by the next job after it has ended.
    """

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Any = None

    def call(self, function: Callable[..., Any], *args: Any, seconds: float) -> dict[str, Any]:
        """Return ``function(*args)``, a dict; if it raises, ends the process or takes too long, ``error`` with why."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,))
            self._process.start()
            other.close()
        self._pipe.send((function, args))
        if not self._pipe.poll(seconds):
            self.stop()
            return dict(error=f"stopped after {seconds:.0f} s")
        try:
            result: dict[str, Any] = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.stop()
            return dict(error=f"the process ended with exit code {code}")
        if "CUDA error" in result.get("error", ""):  # after some of these, every call of CUDA fails
            self.stop()
        return result

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any) -> None:
    while True:
        try:
            function, args = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(function(*args))
        except Exception as error:
            pipe.send(dict(error=describe(error)))


def run(
    cases: Sequence[Case],
    out: Path,
    device: str = "cuda",
    minutes: float = 9.0,
    effort: Effort | None = None,
    resume: bool = False,
    progress: Callable[[str], None] = lambda _: None,
    worker: Any = None,
) -> dict[str, Any]:
    """Measure cases in this order until the time is over, and write the results to a JSON file after each.

    Args:
        cases: what to measure.
        out: the JSON file.
        device: torch device.
        minutes: time limit. A case that would probably exceed it is left out, and listed in the file.
        effort: how often each case runs.
        resume: keep what ``out`` has already measured on this machine, and measure the rest.
        progress: called with a line before each case.
        worker: where the cases run; a :class:`Worker` by default.

    Returns:
        The content of the file.

    Raises:
        BenchmarkError: there is no such device, or ``out`` cannot be resumed.
    """
    start = time.monotonic()
    deadline = start + 60 * minutes - RESERVE_SECONDS
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError(f"device {device!r}: torch sees no GPU; allowed: cpu")
    data: dict[str, Any] = dict(machine=_machine(device), minutes=minutes, rates={}, results=[], left_out=[])
    if resume:
        data["results"] = _measured(out, data["machine"])
    data["published_by_timm"] = PUBLISHED
    out.parent.mkdir(parents=True, exist_ok=True)
    worker, effort = worker or Worker(), effort or Effort()
    done = {key_of(entry) for entry in data["results"]}
    counts: dict[Network, Any] = {}
    with ThreadPoolExecutor(1) as counter:  # in this process, which is idle while the other one measures
        try:
            progress("matrix products and memory")
            data["rates"] = worker.call(rates, device, seconds=max(1.0, deadline - time.monotonic()))
            for index, case in enumerate(cases):
                if key(case) in done:
                    continue
                left, expected = deadline - time.monotonic(), case.expected_seconds
                skip = missing(case)
                if skip is None and left < expected:
                    skip = f"about {expected:.0f} s, {max(left, 0):.0f} s left"
                if skip is not None:
                    data["left_out"].append(asdict(case) | dict(reason=skip))
                    continue
                progress(f"{index + 1} of {len(cases)}, {left:.0f} s left: {title(case)}")
                if isinstance(case, Network) and (plain := _counted_as(case)) not in counts:
                    counts[plain] = counter.submit(count, plain)
                limit = min(left, START_SECONDS + LIMIT_FACTOR * expected)
                data["results"].append(asdict(case) | worker.call(measure, case, device, effort, seconds=limit))
                write_json(out, data, indent=1)
            _add_counts(data, cases, counts, deadline + RESERVE_SECONDS / 2)
            data["seconds"] = time.monotonic() - start
            write_json(out, data, indent=1)
        finally:
            worker.stop()
            counter.shutdown(wait=False, cancel_futures=True)
    return data


def title(case: Case) -> str:
    """Describe a case on one line."""
    return " ".join(" x ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in asdict(case).values())


def missing(case: Case) -> str | None:
    """Why a case cannot be measured here; None if it can."""
    return (
        "mmdet is not installed" if isinstance(case, Network) and case.model == "swin-t" and not _has_mmdet() else None
    )


def _has_mmdet() -> bool:
    try:
        return importlib.util.find_spec("mmdet") is not None
    except ValueError:  # its import is blocked
        return False


def _counted_as(case: Network) -> Network:
    """The case whose counts hold for this one, too."""
    return replace(case, variant="eager", dtype="float32" if case.dtype in ("float32", "tf32") else "bfloat16")


def _add_counts(data: dict[str, Any], cases: Sequence[Case], counts: dict[Network, Any], deadline: float) -> None:
    """Add to each result of a network what was counted for it, and its shares of the measured rates."""
    of_case = {key(case): case for case in cases}
    for entry in data["results"]:
        case = of_case.get(key_of(entry))
        if not isinstance(case, Network) or (future := counts.get(_counted_as(case))) is None:
            continue
        try:
            counted = future.result(timeout=max(0.0, deadline - time.monotonic()))
        except Exception as error:
            entry["counted"] = dict(error=describe(error))
            continue
        entry["counted"] = counted
        if "median" in entry and "bytes" in data["rates"]:
            entry["share_of_matrix_rate"] = counted["flop"] / entry["median"] / data["rates"][case.dtype]
            if "bytes" in counted:
                entry["share_of_memory_rate"] = counted["bytes"] / entry["median"] / data["rates"]["bytes"]


def _measured(out: Path, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """The results in a file that need not be measured again."""
    if not out.exists():
        return []
    before = read(out)
    if before["machine"]["name"] != machine["name"] or before["machine"]["torch"] != machine["torch"]:
        raise BenchmarkError(
            f"{out}: measured on {before['machine']['name']} with torch {before['machine']['torch']}, this is "
            f"{machine['name']} with torch {machine['torch']}; allowed: the same machine, or another file"
        )
    return [entry for entry in before["results"] if "error" not in entry]


def read(path: Path) -> dict[str, Any]:
    """Read a file that :func:`run` has written.

    Raises:
        BenchmarkError: it cannot be read, or is another file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"{path}: {describe(error)}; allowed: a JSON file of `mmgcvit benchmark-gpu`") from error
    if not isinstance(data, dict) or not {"machine", "rates", "results", "left_out"} <= data.keys():
        raise BenchmarkError(f"{path} is another file; allowed: a JSON file of `mmgcvit benchmark-gpu`")
    return data


def _machine(device: str) -> dict[str, Any]:
    """Describe the machine: card, driver and versions."""
    on_gpu = device.startswith("cuda")
    found = dict(
        name=torch.cuda.get_device_name(device) if on_gpu else benchmark.machine(benchmark.Settings(device=device)),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version() if on_gpu else None,
        capability=".".join(map(str, torch.cuda.get_device_capability(device))) if on_gpu else None,
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
    )
    for package in ("triton", "timm", "mmengine", "mmdet"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found | dict(driver=_driver() if on_gpu else None)


def _driver() -> str | None:
    """Version of NVIDIA's driver, power limit and highest clock, as nvidia-smi prints them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "--query-gpu=driver_version,power.limit,clocks.max.sm,clocks.max.memory"
    try:
        done = subprocess.run([program, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "; ".join(done.stdout.splitlines()) or None
