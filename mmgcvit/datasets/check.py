"""A walk through a config's data sets before training: every picture is decoded, every annotation looked at."""

from __future__ import annotations

import io
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mmgcvit.datasets.annotations import (
    AnnotationError,
    Annotations,
    Picture,
    Problem,
    coco_like,
    data_sets,
    outside,
    read_dataset,
)
from mmgcvit.datasets.pictures import unreadable

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
EXAMPLES = 3
SIZES = (160, 320, 480, 640, 800, 1024, 1333, 2048, 4096)  # upper ends of the histogram's bins: longer side, pixels


@dataclass
class DatasetReport:
    """What one data set holds and what is wrong with it."""

    name: str
    source: str
    pictures: int = 0
    empty: int = 0
    objects: int = 0
    kept: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    sizes: Counter = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether training would fail or learn wrong things."""
        return any(problem.breaks for problem in self.problems)


def check_data(cfg: Config, workers: int = 8, progress: bool = True) -> list[DatasetReport]:
    """Look at all data sets of a config.

    Args:
        cfg: config with data loaders.
        workers: threads that decode pictures.
        progress: whether to draw a progress bar.

    Returns:
        One report per data set; data sets that are the same are looked at once.
    """
    init_default_scope(cfg.get("default_scope", "mmengine"))
    reports: list[DatasetReport] = []
    done: list[Mapping] = []
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        for loader in LOADERS:
            for dataset in data_sets((cfg.get(loader) or {}).get("dataset")):
                if dataset in done:
                    continue
                done.append(dataset)
                reports.append(_check(loader.removesuffix("_dataloader"), dataset, workers, bar))
    return reports


def print_reports(reports: Sequence[DatasetReport]) -> None:
    """One readable page: counts, histograms, what breaks training, what is left out."""
    console = Console()
    table = Table(title="data sets", title_justify="left")
    table.add_column("set")
    table.add_column("annotations", overflow="fold")
    for title in ("pictures", "empty", "objects", "used"):
        table.add_column(title, justify="right")
    for report in reports:
        table.add_row(report.name, report.source, str(report.pictures), str(report.empty), str(report.objects),
                      str(report.kept))
    console.print(table)
    for title, rows in (("objects by class", [report.classes for report in reports]),
                        ("pictures by longer side, in pixels", [_binned(report.sizes) for report in reports])):
        if any(rows):
            console.print(_histogram(title, [report.name for report in reports], rows))
    for report in reports:
        for breaks in (True, False):
            kinds: dict[str, list[Problem]] = defaultdict(list)
            for problem in report.problems:
                if problem.breaks == breaks:
                    kinds[problem.kind].append(problem)
            for kind, problems in kinds.items():
                word = "error" if breaks else "warning"
                console.print(f"{word}: {report.name}: {kind}: {len(problems)}"
                              + ("" if breaks else ", left out or used as it is"), markup=False, soft_wrap=True)
                for problem in problems[:EXAMPLES]:
                    console.print(f"  {problem}", markup=False, soft_wrap=True)
                if len(problems) > EXAMPLES:
                    console.print(f"  ... and {len(problems) - EXAMPLES} more", markup=False)
    broken = [report.name for report in reports if report.broken]
    console.print(f"would break training: {', '.join(broken)}" if broken else "nothing that would break training")


def _check(name: str, dataset: Mapping, workers: int, bar: Progress) -> DatasetReport:
    source = os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or "")
    report = DatasetReport(name, source)
    try:
        annotations = _read(dataset, source)
    except AnnotationError as error:
        report.problems.append(Problem("annotations", source, str(error), True))
        return report
    report.problems = list(annotations.problems)
    report.pictures, report.objects = len(annotations.pictures), annotations.objects
    report.kept = sum(len(picture.boxes) for picture in annotations.pictures)
    report.empty = sum(not picture.boxes for picture in annotations.pictures)
    report.classes = dict.fromkeys(annotations.classes, 0)
    report.classes.update(Counter(label for picture in annotations.pictures for label in picture.labels))
    for label, count in report.classes.items():
        if not count and report.kept:
            report.problems.append(Problem("class", source, f"no object of class {label!r}", False))
    task = bar.add_task(name, total=report.pictures)
    with ThreadPoolExecutor(workers) as pool:
        for picture, (size, reason) in zip(annotations.pictures, pool.map(_decode, annotations.pictures), strict=True):
            bar.advance(task)
            if reason:
                report.problems.append(Problem("picture", picture.path, reason, True))
            elif size:
                report.sizes[size] += 1
                if picture.width and size != (picture.width, picture.height):
                    report.problems.append(Problem(
                        "size", picture.path, f"is {size[0]} x {size[1]} (width x height), its annotations say "
                        f"{picture.width} x {picture.height}", True))
    bar.remove_task(task)
    return report


def _read(dataset: Mapping, source: str) -> Annotations:
    if coco_like(dataset):
        return read_dataset(dataset)
    return _read_any(dataset, source)


def _read_any(dataset: Mapping, source: str) -> Annotations:
    """Any other data set of boxes, such as VOC's: as it presents itself, built without its pipeline."""
    try:
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False, "filter_cfg": None})
    except Exception as error:  # whatever a data set fails at, it is what the report is for
        named = _broken_xml(dataset) if "VOC" in str(dataset.get("type")) else None
        reason = f"{dataset.get('type')} cannot be built: {type(error).__name__}: {error}"
        raise AnnotationError(named or reason) from error
    found = Annotations(source, classes=tuple(built.metainfo.get("classes") or ()))
    for i in range(len(built)):
        info = built.get_data_info(i)
        picture = Picture(info["img_path"], info.get("width"), info.get("height"))
        for instance in info.get("instances", ()):
            found.objects += 1
            left_out = picture.width and outside(instance["bbox"], picture.width, picture.height)
            if left_out:
                found.problems.append(Problem("box", f"{source}: image id {info.get('img_id')}", left_out, False))
                continue
            picture.boxes.append(tuple(instance["bbox"]))
            picture.labels.append(found.classes[instance["bbox_label"]])
        found.pictures.append(picture)
    if not any(picture.boxes for picture in found.pictures):
        found.problems.append(Problem("empty", source, f"none of {found.objects} objects can be used", True))
    return found


def _broken_xml(dataset: Mapping) -> str | None:
    """The first annotation of a VOC tree that cannot be read, and why."""
    folder = Path(dataset.get("data_root") or "", (dataset.get("data_prefix") or {}).get("sub_data_root", ""))
    for name in Path(dataset.get("data_root") or "", dataset["ann_file"]).read_text().split():
        path = folder / "Annotations" / f"{name}.xml"
        try:
            root = ElementTree.parse(path).getroot()
            for i, item in enumerate(root.findall("object")):
                box = item.find("bndbox")
                if item.find("name") is None or box is None:
                    return f"{path}: object {i} has no name or no bndbox"
                for key in ("xmin", "ymin", "xmax", "ymax"):
                    float(box.findtext(key, "missing"))
        except (OSError, ElementTree.ParseError, ValueError) as error:
            return f"{path}: {type(error).__name__}: {error}"
    return None


def _decode(picture: Picture) -> tuple[tuple[int, int] | None, str | None]:
    """Size of a picture as mmcv would load it (turned as its EXIF says), or why it cannot be."""
    reason = None if os.path.isfile(picture.path) else "there is no such file"
    if not reason:
        with open(picture.path, "rb") as file:
            content = file.read()
        reason = unreadable(content)
    if reason:
        return None, reason
    with Image.open(io.BytesIO(content)) as image:
        return ImageOps.exif_transpose(image).size, None


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
