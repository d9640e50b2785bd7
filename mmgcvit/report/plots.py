"""The plots of a report, in one style; each returns the content of a PNG file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: Colours of Okabe and Ito, which readers with any kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
LINES = ("-", "--", "-.", ":")  # as colours of classes may be alike
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MAX_BARS = 30  # classes in a bar plot
FEW_IN_BIN = 5  # predictions in a bin of confidences below which their share says little
MAX_LEGEND = 12  # classes in a legend
WIDTH = 5.0  # inches; narrow, so that the text is readable on a phone
STYLE: dict[Any, Any] = {
    "font.size": 11, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e3e7ea", "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.edgecolor": "#56616a",
    "legend.frameon": False, "legend.fontsize": 10, "lines.linewidth": 1.8, "figure.facecolor": "white",
    "savefig.dpi": 180, "font.family": "DejaVu Sans",
}  # fmt: skip
Colour = tuple[int, ...]


def rgb(colours: Sequence[Colour]) -> list[tuple[float, ...]]:
    """Convert colours of 0 to 255 to matplotlib's."""
    return [tuple(value / 255 for value in colour) for colour in colours]


def darkened(colour: Sequence[float]) -> tuple[float, ...]:
    """Darken a colour from 0 to 1 until a line of it is visible on white: a contrast of 3 by WCAG 2."""
    values = np.asarray(colour, float)
    while 1.05 / (luminance(values) + 0.05) < 3:
        values = 0.95 * values
    return tuple(values.tolist())


def luminance(colour: Sequence[float] | np.ndarray) -> float:
    """Relative luminance of an sRGB colour from 0 to 1, by WCAG 2."""
    values = np.asarray(colour, float)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def shorten(name: str, length: int = 22) -> str:
    """Shorten a class name for an axis; a dollar sign is no formula."""
    short = name if len(name) <= length else f"{name[: length - 1]}…"
    return short.replace("$", r"\$")


class Plot:
    """A figure with axes side by side or one above another, to be used as a context manager.

    Args:
        height: height in inches.
        rows: number of axes, one above another.

    Attributes:
        axes: the axes.
        content: content of the PNG file, after the block.
    """

    def __init__(self, height: float = 3.3, rows: int = 1) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        self.context: Any = matplotlib.rc_context(STYLE)
        self.context.__enter__()
        self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
        self.axes = np.atleast_1d(self.figure.subplots(rows, 1, sharex=rows > 1))
        self.content = b""

    def __enter__(self) -> Plot:
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        try:
            if kind is None:
                file = io.BytesIO()
                self.figure.savefig(file, format="png")
                self.content = file.getvalue()
        finally:
            self.context.__exit__(kind, *error)


def bars(
    names: Sequence[str],
    values: Mapping[str, Sequence[float]],
    label: str,
    colours: Sequence[Colour] | None = None,
    digits: int = 0,
    limit: float | None = None,
    texts: Mapping[str, Sequence[str]] | None = None,
) -> bytes:
    """Draw horizontal bars: one group per class, one bar per series.

    Args:
        names: classes, from top to bottom.
        values: numbers of each series; NaN: no bar, with the words 'none'.
        label: what the axis shows.
        colours: one per class, for a single series.
        digits: decimal places of the numbers at the bars.
        limit: end of the axis.
        texts: texts at the bars instead of the values.
    """
    count = len(values)
    with Plot(1.0 + (0.24 * count + 0.1) * max(len(names), 2)) as plot:
        (axes,) = plot.axes
        thickness = 0.8 / count
        largest = max((v for row in values.values() for v in row if np.isfinite(v)), default=1) or 1
        for i, (series, row) in enumerate(values.items()):
            places = np.arange(len(names)) + (i - (count - 1) / 2) * thickness
            fill: Any = rgb(colours) if colours is not None and count == 1 else COLOURS[i]
            axes.barh(places, np.nan_to_num(row), thickness * 0.92, color=fill, label=series, edgecolor="#56616a",
                      linewidth=0.4)  # fmt: skip
            for place, value in zip(places, row, strict=True):
                if texts is not None:
                    text = texts[series][round(place - (i - (count - 1) / 2) * thickness)]
                else:
                    text = f"{value:,.{digits}f}" if np.isfinite(value) else "none"
                axes.text(np.nan_to_num(value) + 0.01 * (limit or largest), place, text, va="center", fontsize=9)
        axes.set(yticks=range(len(names)), yticklabels=[shorten(name) for name in names], xlabel=label)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, (limit or largest) * 1.16)
        axes.grid(axis="y", visible=False)
        axes.xaxis.get_major_locator().set_params(integer=not digits)
        if count > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=count)
    return plot.content


def histogram(values: Mapping[str, np.ndarray], label: str, unit: str, bins: Any = 20) -> bytes:
    """Draw the distribution of one or two series as shares in percent, so that series of other lengths compare."""
    with Plot() as plot:
        (axes,) = plot.axes
        found = {name: np.asarray(row, float) for name, row in values.items() if len(row)}
        edges = np.histogram_bin_edges(np.concatenate(list(found.values())), bins)
        for i, (name, row) in enumerate(found.items()):
            share = 100 * np.histogram(row, edges)[0] / len(row)
            axes.stairs(share, edges, color=COLOURS[i], fill=i == 0, alpha=0.45 if i == 0 else 1, linewidth=2,
                        label=f"{name} ({len(row):,})")  # fmt: skip
        axes.set(xlabel=label, ylabel=f"share of {unit} (%)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return plot.content


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    best: Mapping[str, int] | None = None,
    log: bool = False,
) -> bytes:
    """Draw lines over the course of a run.

    Args:
        series: x and y of each line.
        xlabel: label of the x-axis.
        ylabel: label of the y-axis.
        best: index of the best value of each line, which is marked.
        log: whether the y-axis is logarithmic.
    """
    with Plot(3.3 + 0.16 * max(0, len(series) - 3)) as plot:
        (axes,) = plot.axes
        for i, (name, (x, y)) in enumerate(series.items()):
            few = len(x) <= 25
            style = dict(color=COLOURS[i % len(COLOURS)], linestyle=("-", "--")[i // len(COLOURS) % 2])
            axes.plot(x, y, label=name, marker=MARKERS[i % len(MARKERS)] if few else None, markersize=4, **style)
            if best and name in best:
                at = best[name]
                axes.plot(x[at], y[at], marker="*", markersize=15, color=style["color"], markeredgecolor="black")
                axes.annotate(
                    f"{y[at]:.4g}", (x[at], y[at]), (0, 8), textcoords="offset points", ha="center", fontsize=9
                )
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.margins(y=0.12)
        if log:
            axes.set_yscale("log")
        if len(series) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return plot.content


def class_curves(
    x: np.ndarray | Sequence[np.ndarray],
    rows: Sequence[np.ndarray],
    mean: tuple[np.ndarray, np.ndarray] | None,
    names: Sequence[str],
    colours: Sequence[Colour],
    labels: tuple[str, str],
    mark: tuple[float, float] | None = None,
) -> bytes:
    """Draw a thin line per class, and the line of all classes in black.

    Args:
        x: x values, common to all classes or one array per class.
        rows: y values per class.
        mean: x and y of the line of all classes.
        names: class names.
        colours: class colours.
        labels: labels of the axes.
        mark: a point on the line of all classes that is marked.
    """
    named = len(names) <= MAX_LEGEND
    with Plot(4.3 + (0.2 * -(-len(names) // 3) if named else 0)) as plot:
        (axes,) = plot.axes
        for i, (name, y, colour) in enumerate(zip(names, rows, map(darkened, rgb(colours)), strict=True)):
            places = x if isinstance(x, np.ndarray) else x[i]
            label = shorten(name, 14) if named else None
            axes.plot(places, y, color=colour, linestyle=LINES[i % len(LINES)], linewidth=1.3, label=label)
        if mean is not None:
            axes.plot(*mean, color="black", linewidth=2.6, label="all classes")
        if mark is not None:
            axes.plot(*mark, marker="o", color="black", markersize=8, markerfacecolor="white", markeredgewidth=2)
        axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, 1.01), ylim=(0, 1.03))
        if named or mean is not None:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), ncols=3, columnspacing=1.0)
    return plot.content


def matrix(counts: np.ndarray, share: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """Draw a confusion matrix: colours are shares of a row, numbers are counts.

    Args:
        counts: (R, C), the row of true classes and the column of predictions.
        share: (R, C) from 0 to 1; NaN: without a colour.
        rows: names of the rows.
        columns: names of the columns.
    """
    share = np.nan_to_num(share)
    size = max(len(rows), len(columns))
    with Plot(min(9.0, 2.6 + 0.28 * size)) as plot:
        (axes,) = plot.axes
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.grid(visible=False)
        length = 14
        axes.set_xticks(range(len(columns)), [shorten(name, length) for name in columns], rotation=90)
        axes.set_yticks(range(len(rows)), [shorten(name, length) for name in rows])
        axes.set(xlabel="predicted", ylabel="true")
        if size > 20:
            axes.tick_params(labelsize=7)
        if size <= 16:
            whole = np.issubdtype(counts.dtype, np.integer)
            for y, x in zip(*np.nonzero(counts), strict=True):
                text = f"{counts[y, x]:d}" if whole else f"{100 * share[y, x]:.0f}"
                axes.text(x, y, text, ha="center", va="center", fontsize=9 if size <= 12 else 7,
                          color="white" if share[y, x] > 0.55 else "black")  # fmt: skip
    return plot.content


def reliability(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray, ylabel: str) -> bytes:
    """Draw how often predictions of a confidence are right, and how many there are.

    Bins with fewer than :data:`FEW_IN_BIN` predictions are pale and not on the line.

    Args:
        confidence: (B,) mean confidence of each bin; NaN for an empty one.
        accuracy: (B,) share of right predictions.
        count: (B,) number of predictions.
        ylabel: what accuracy is.
    """
    edges = np.linspace(0, 1, len(count) + 1)
    with Plot(4.4, rows=2) as plot:
        top, bottom = plot.axes
        top.plot([0, 1], [0, 1], color="#56616a", linestyle=":", label="perfectly calibrated")
        enough, few = count >= FEW_IN_BIN, (count > 0) & (count < FEW_IN_BIN)
        sizes = 25 + 150 * count / max(count.max(), 1)  # points^2
        top.plot(confidence[enough], accuracy[enough], color=COLOURS[0])
        top.scatter(confidence[enough], accuracy[enough], sizes[enough], color=COLOURS[0], label="model", zorder=3)
        if few.any():
            label = f"fewer than {FEW_IN_BIN}"
            top.scatter(confidence[few], accuracy[few], sizes[few], color="#b9c7d0", label=label, zorder=2)
        top.set(ylabel=ylabel, xlim=(0, 1), ylim=(-0.06, 1.06))
        top.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), ncols=3, columnspacing=1.0, handletextpad=0.4)
        bottom.stairs(100 * count / max(count.sum(), 1), edges, fill=True, color=COLOURS[0], alpha=0.5)
        bottom.set(xlabel="confidence", ylabel="share (%)")
        plot.axes[0].get_subplotspec().get_gridspec().set_height_ratios([3, 1])
    return plot.content
