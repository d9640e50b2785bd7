"""Measure and draw the cost of the data check by size: python docs/images/data_cost.py

Prints a table, and writes data_cost.svg beside this file. With --coco, only a file as large as COCO's is checked. Needs
mmdet, matplotlib, 2 GB of memory and disk, and a few minutes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmgcvit.datasets.check import check_data
from mmgcvit.tasks.detection.annotations import check_before_run

OUT = Path(__file__).with_suffix(".svg")
ANNOTATIONS, IMAGES = (10**3, 10**4, 10**5, 10**6), (10**3, 10**4, 10**5)
DECODED = (32, 100, 316)
COCO = 118_287, 860_001  # images and annotations of COCO's training data
POINTS = 18  # median number of points of a polygon, as in COCO
SIZE = (640, 480)
LINKS = 50_000  # to one file; ext4 has at most 65,000
SHORT = 2.0  # seconds; what takes less is measured three times


def write_data(folder: Path, images: int, annotations: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Write a COCO file and its images, which are links to few files; returns the config of the data set."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    small = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    for i in range(images):
        if i % LINKS:
            os.link(folder / f"images/{i - i % LINKS}.jpg", folder / f"images/{i}.jpg")
        else:
            small.resize(size).save(folder / f"images/{i}.jpg", quality=92)
    entries = [dict(id=i, file_name=f"{i}.jpg", width=size[0], height=size[1]) for i in range(images)]
    shapes = []
    for count in np.clip(rng.lognormal(np.log(POINTS), 0.75, min(annotations, 1000)).astype(int), 4, 400):
        angles = np.sort(rng.random(count)) * 2 * np.pi
        xy = (size * (0.3 * rng.random(2) + 0.2 + 0.15 * np.stack([np.cos(angles), np.sin(angles)], 1))).round(2)
        low, high = xy.min(0), xy.max(0)
        box = [*low.tolist(), *(high - low + 2).round(2).tolist()]
        shapes.append(json.dumps(dict(segmentation=[xy.ravel().tolist()], area=100.5, iscrowd=0, bbox=box))[:-1])
    with open(folder / "coco.json", "w") as file:
        file.write(f'{{"images": {json.dumps(entries)}, "annotations": [')
        for k in range(annotations):
            ids = f', "id": {k + 1}, "image_id": {k % images}, "category_id": {k % 80}}}'
            file.write((", " if k else "") + shapes[k % len(shapes)] + ids)
        file.write(f'], "categories": {json.dumps([dict(id=i, name=f"class {i}") for i in range(80)])}}}')
    return dict(
        type="CocoDataset",
        data_root=str(folder),
        ann_file="coco.json",
        data_prefix=dict(img="images/"),
        metainfo=dict(classes=tuple(f"class {i}" for i in range(80))),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_mask=True)],
    )


def before_run(dataset: dict[str, Any]) -> None:
    """What is checked before a training run."""
    check_before_run(dict(dataset=dataset))


def whole_check(dataset: dict[str, Any]) -> None:
    """What mmgcvit check-data does, with one process."""
    check_data(Config(dict(default_scope="mmdet", train_dataloader=dict(dataset=dataset))), 1, False)


def memory(name: str) -> float:
    """A value of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name))


def measure(call: Callable[[], None], results: Any) -> None:
    """Put seconds and the growth of the memory at its peak, in MB, into a queue."""
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    start = time.perf_counter()
    call()
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    for _ in range(2 if seconds < SHORT else 0):
        start = time.perf_counter()
        call()
        seconds = min(seconds, time.perf_counter() - start)
    results.put((seconds, peak))


def cost(check: Callable[[dict[str, Any]], None], images: int, annotations: int) -> tuple[float, float]:
    """Seconds and MB of a check, in a process of its own."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        results = context.SimpleQueue()
        call = partial(check, write_data(Path(folder), images, annotations))
        process = context.Process(target=measure, args=(call, results))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"data_cost: the measurement of {images} images and {annotations} annotations has failed")
        return results.get()


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of the last points in a plot of logarithms; small sizes cost a constant."""
    return round(float(np.polyfit(np.log(sizes[-3:]), np.log(values[-3:]), 1)[0]), 2) + 0.0  # no -0


def draw(series: dict[str, list[tuple[int, float, float]]], out: Path, xlabel: str = "number") -> None:
    """Draw seconds and MB by size."""
    import matplotlib
    from matplotlib.figure import Figure

    from mmgcvit.report.plots import STYLE

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "mmgcvit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        for axes, column, unit in zip(figure.subplots(1, 2), (1, 2), ("seconds", "MB at the peak"), strict=True):
            for name, rows in series.items():
                sizes, values = [row[0] for row in rows], [row[column] for row in rows]
                axes.loglog(sizes, values, "o-", label=f"{name}: {exponent(sizes, values):.2f}")
            axes.set(xlabel=xlabel, ylabel=unit)
            axes.legend(title="exponent", loc="upper center", bbox_to_anchor=(0.5, -0.2))
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Measure, print the table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help="SVG file (default: beside this script)")
    parser.add_argument("--most", type=int, default=10**6, help="largest number (default: 1,000,000)")
    parser.add_argument("--coco", action="store_true", help="only check a file as large as COCO's")
    args = parser.parse_args()
    init_default_scope("mmdet")
    plans = [
        ("annotations of 100 images, before a run", before_run, [(100, count) for count in ANNOTATIONS], 1),
        ("images with one annotation, before a run", before_run, [(count, count) for count in IMAGES], 0),
        ("images of 640 x 480, decoded", whole_check, [(count, count) for count in DECODED], 0),
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole_check(write_data(Path(folder), 10, 10))  # imports what is needed
    if args.coco:
        seconds, peak = cost(before_run, *COCO)
        print(f"{COCO[0]:,} images, {COCO[1]:,} annotations: {seconds:.1f} s, {peak:.0f} MB")
        return
    series: dict[str, list[tuple[int, float, float]]] = {}
    print("| what | number | seconds | MB |\n|---|---|---|---|")
    for name, check, sizes, varied in plans:
        rows = series[name] = []
        for pair in sizes:
            if pair[varied] <= args.most:
                seconds, peak = cost(check, *pair)
                rows.append((pair[varied], seconds, max(peak, 0.1)))
                print(f"| {name} | {pair[varied]:,} | {seconds:.3f} | {peak:.0f} |", flush=True)
        counts = [row[0] for row in rows]
        slopes = [exponent(counts, [row[column] for row in rows]) for column in (1, 2)]
        print(f"| exponent | | {slopes[0]:.2f} | {slopes[1]:.2f} |", flush=True)
    draw(series, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
