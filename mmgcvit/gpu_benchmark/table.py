"""The results of the GPU benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Entry = dict[str, Any]


def markdown(data: Entry) -> str:
    """Return the content of a JSON file of :func:`mmgcvit.gpu_benchmark.run.run` as tables in Markdown."""
    machine, rates = data["machine"], data["rates"]
    about = [machine["name"]]
    for part in ("driver", "torch", "cuda", "cudnn", "triton", "timm"):
        version = f"{part} {machine.get(part)}"
        if machine.get(part) and version not in about[0]:  # the name of a CPU has torch's version
            about.append(version)
    parts = [", ".join(about) + "."]
    if "error" in rates:
        parts.append(f"Rates: {rates['error']}")
    elif rates:
        tera = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {name}" for name, rate in rates.items() if name != "bytes")
        parts.append(f"Matrix products: {tera}. A copy: {rates['bytes'] / 1e9:.0f} GB/s.")
    networks = [e for e in data["results"] if "model" in e]
    attention = [e for e in data["results"] if "place" in e]
    measured = [e for e in networks if "error" not in e]
    groups = dict.fromkeys((e["mode"], e["batch"], tuple(e["shape"])) for e in measured)
    for mode, batch, shape in groups:
        kind = "Forward pass" if mode == "forward" else "Training step"
        parts.append(f"### {kind}, {batch} x 3 x {shape[0]} x {shape[1]}")
        parts.append(_rows(NETWORK_COLUMNS, [e for e in measured if _group(e) == (mode, batch, shape)]))
    if any("error" not in e for e in attention):
        parts.append("### Window attention with its bias")
        parts.append(_rows(ATTENTION_COLUMNS, [e for e in attention if "error" not in e]))
    failed = [e for e in data["results"] if "error" in e]
    if failed:
        parts += ["### Failed", _rows(FAILED_COLUMNS, failed)]
    if data["left_out"]:
        parts += ["### Left out", "".join(f"- {name(e)}: {e['reason']}\n" for e in data["left_out"]).rstrip()]
    return "\n\n".join([*parts, _published(data["published_by_timm"], measured)]) + "\n"


def name(entry: Entry) -> str:
    """Name of a case in lists."""
    what = entry.get("model") or entry["place"]
    shape = " {} x {} x {}".format(entry["batch"], *entry["shape"]) if "batch" in entry else ""
    return f"`{what}`{shape} {entry['mode']} {entry['dtype']} {entry['variant']}"


def _group(entry: Entry) -> tuple[Any, ...]:
    return entry["mode"], entry["batch"], tuple(entry["shape"])


def _number(key: str, scale: float = 1.0, form: str = ".0f") -> Callable[[Entry], str]:
    """Column of a number, which may be missing."""

    def text(entry: Entry) -> str:
        value: Any = entry
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return "" if value is None else f"{value * scale:{form}}"

    return text


NETWORK_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "model": lambda e: f"`{e['model']}`",
    "dtype": lambda e: e["dtype"],
    "variant": lambda e: e["variant"],
    "images/s": _number("images_per_second"),
    "ms": _number("median", 1e3, ".2f"),
    "spread": _number("spread", 1, ".2f"),
    "of the matrix rate": _number("share_of_matrix_rate", 1, ".3f"),
    "of the memory rate": _number("share_of_memory_rate", 1, ".3f"),
    "peak GiB": _number("peak_bytes", 2**-30, ".2f"),
    "launches": _number("launches"),
    "counted": _number("counted.kernels"),
    "GB counted": _number("counted.bytes", 1e-9, ".1f"),
}
ATTENTION_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "windows": lambda e: e["place"],
    "mode": lambda e: e["mode"],
    "dtype": lambda e: e["dtype"],
    "variant": lambda e: e["variant"],
    "ms": _number("median", 1e3, ".3f"),
    "spread": _number("spread", 1, ".2f"),
    "error of the output": _number("errors.output", form=".1e"),
    "of qkv's gradient": _number("errors.qkv", form=".1e"),
    "of the bias's gradient": _number("errors.bias", form=".1e"),
}
FAILED_COLUMNS: dict[str, Callable[[Entry], str]] = {
    "case": name,
    "error": lambda e: e["error"][:300].replace("|", "\\|"),
}


def _rows(columns: dict[str, Callable[[Entry], str]], entries: Iterable[Entry]) -> str:
    return _table(list(columns), [[text(entry) for text in columns.values()] for entry in entries])


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _published(published: Entry, measured: Sequence[Entry]) -> str:
    """Table of the published figures beside this machine's own, and those of this package's GC ViT."""

    def own(model: str, variant: str) -> str:
        wanted = dict(model=model, mode="forward", dtype=published["dtype"], variant=variant)
        found = [e for e in measured if wanted.items() <= e.items() and list(e["shape"]) == list(published["shape"])]
        return f"{found[0]['images_per_second']:.0f}" if found else ""

    rows = [
        [f"`{model}`", variant, str(figure), own(model, variant), own("gcvit-tiny", variant)]
        for model, figures in published["images_per_second"].items()
        for variant, figure in figures.items()
    ]
    titles = ["model", "variant", f"published by timm ({published['card']})", "this machine", "`gcvit-tiny` here"]
    size = " x ".join(map(str, published["shape"]))
    return f"### Published by timm: images/s, {size}, {published['dtype']} autocast\n\n{_table(titles, rows)}"
