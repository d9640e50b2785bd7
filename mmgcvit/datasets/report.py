"""Reports of data set checks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.table import Table

from mmgcvit.datasets.problems import Problem
from mmgcvit.utils.text import shown, wide_console

EXAMPLES = 3
SIZES = (160, 320, 480, 640, 800, 1024, 1333, 2048, 4096)  # upper limits of the histogram bins: longer side in pixels


@dataclass
class DatasetReport:
    """Statistics and problems of one data set, or problems of the config."""

    name: str
    source: str
    unit: str = "objects"  # what is counted: objects, or pixels of label maps; '' for the config
    images: int = 0
    empty: int = 0
    objects: int = 0
    kept: int = 0
    crowds: int = 0  # those of `objects` that are ignored on purpose: iscrowd=1, or difficult
    classes: dict[str, int] = field(default_factory=dict)
    ignored: dict[str, int] = field(
        default_factory=dict
    )  # pixels without a class, by the name of their row in the table
    sizes: Counter = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)  # the images; empty if they are not local files
    problems: list[Problem] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether training would fail or learn wrong things, or a metric would be meaningless."""
        return any(problem.breaks for problem in self.problems)


def print_reports(reports: Sequence[DatasetReport]) -> None:
    """Print counts, histograms, problems that break training, and other problems."""
    console = wide_console()
    sets = [report for report in reports if report.unit]
    table = Table(title="data sets", title_justify="left")
    table.add_column("set")
    table.add_column("annotations", overflow="fold")
    unit = sets[0].unit if sets else "objects"
    ignored = any(report.crowds for report in sets)
    for title in ("images", "empty", unit, *(["ignored"] if ignored else []), "used"):
        table.add_column(title, justify="right")
    for report in sets:
        numbers = [report.images, report.empty, report.objects - report.crowds, report.crowds, report.kept]
        if not ignored:
            del numbers[3]
        table.add_row(report.name, shown(report.source), *map(str, numbers))
    console.print(table)
    if ignored:
        console.print(f"ignored: crowds (iscrowd=1) or difficult {unit}; no other number includes them", markup=False)
    for title, rows in (
        (f"{unit} by class", [report.classes | report.ignored for report in sets]),
        ("images by longer side, in pixels", [_binned(report.sizes) for report in sets]),
    ):
        if any(rows):
            console.print(_histogram(title, [report.name for report in sets], rows))
    for report in reports:
        for breaks in (True, False):
            kinds: dict[str, list[Problem]] = defaultdict(list)
            for problem in report.problems:
                if problem.breaks == breaks:
                    kinds[problem.kind].append(problem)
            for kind, problems in kinds.items():
                word = "error" if breaks else "warning"
                console.print(
                    f"{word}: {report.name}: {kind}: {len(problems)}" + ("" if breaks else ", skipped or used as is"),
                    markup=False,
                    soft_wrap=True,
                )
                for problem in problems[:EXAMPLES]:
                    console.print(f"  {problem}", markup=False, soft_wrap=True)
                if len(problems) > EXAMPLES:
                    console.print(f"  ... and {len(problems) - EXAMPLES} more", markup=False)
    broken = [report.name for report in reports if report.broken]
    console.print(
        f"would break training or make a metric meaningless: {', '.join(broken)}"
        if broken
        else "nothing that would break training"
    )


def _binned(sizes: Counter) -> dict[str, int]:
    bins: Counter = Counter()
    for (width, height), count in sizes.items():
        longer = max(width, height)
        upper = next((bound for bound in SIZES if longer <= bound), None)
        bins[f"to {upper}" if upper else f"over {SIZES[-1]}"] += count
    order = [f"to {bound}" for bound in SIZES] + [f"over {SIZES[-1]}"]
    return {name: bins[name] for name in order if bins[name]}


def _histogram(title: str, names: Sequence[str], rows: Sequence[dict[str, int]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("", width=12)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        cells = [key]
        for row in rows:
            most = max(row.values(), default=0)
            cells += [str(row.get(key, 0)), "█" * round(12 * row.get(key, 0) / most) if most else ""]
        table.add_row(*cells)
    return table
