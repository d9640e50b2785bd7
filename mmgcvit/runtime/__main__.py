"""Predict with an exported model: python -m mmgcvit.runtime FILE INPUT [...] --out-dir DIR"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmgcvit.errors import UsageError
from mmgcvit.runtime.drawing import draw
from mmgcvit.runtime.images import Source, logger
from mmgcvit.runtime.predictor import Predictor
from mmgcvit.runtime.results import RESULTS, check_label_map_names, write_drawing
from mmgcvit.utils.inputs import Input, list_inputs
from mmgcvit.utils.pipes import run_program
from mmgcvit.utils.text import counted

SAVE_EVERY = 30.0  # seconds between two writings of the results so far


@dataclass
class Summary:
    """Summary of a call of :func:`predict`."""

    images: int
    objects: int  # of a detector
    file: str  # the file with the predictions


def predict(
    file: str | Path,
    inputs: Sequence[str | Path],
    out_dir: str | Path,
    score_thr: float = 0.3,
    batch_size: int = 1,
    tile: int | None = None,
    overlap: float = 0.25,
    draw_images: bool = True,
    threads: int | None = None,
) -> Summary:
    """Predict on images and folders; write the same files as ``mmgcvit predict``.

    Args:
        file: file written by ``mmgcvit export``.
        inputs: images, and folders with images, at any depth.
        out_dir: folder to write to; drawings are written to ``vis`` in it.
        score_thr: boxes with a lower score are not drawn; the JSON file contains all of them.
        batch_size, tile, overlap, threads: see :class:`~mmgcvit.runtime.Predictor`.
        draw_images: whether to make drawings.

    Raises:
        UsageError: the file cannot be opened, a value is not allowed, an input does not exist, or, after the others are
            done, some images could not be read.
    """
    predictor = Predictor(file, threads, batch_size, tile, overlap)
    entries, skipped = list_inputs(inputs, out_dir, videos=False)
    for words in skipped:
        logger.warning(words)
    folder, task = Path(out_dir), predictor.info.task
    if task == "segmentation":
        check_label_map_names(entries)
    try:
        (folder / "vis" if draw_images else folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out_dir={str(out_dir)!r}: cannot be written: {error}") from error
    results = RESULTS[task](predictor.info.classes, folder)
    drawings = {entry.name: entry.drawing for entry in entries}
    failures: list[str] = []

    def readable(entries: Sequence[Input]) -> Iterator[Source]:
        for entry in entries:
            try:
                yield predictor.load.file(entry)
            except UsageError as error:
                failures.append(str(error))

    count, written, due = 0, "", time.monotonic() + SAVE_EVERY
    try:
        for source, found in predictor.run(readable(entries), lambda error: failures.append(str(error))):
            results.add(found)
            count += 1
            if draw_images:
                drawn = draw(source.pixels, found, predictor.info.palette, score_thr)
                write_drawing(folder / "vis" / drawings[source.name], drawn)
            if time.monotonic() >= due:
                start = time.monotonic()
                results.write()
                due = time.monotonic() + max(SAVE_EVERY, 20 * (time.monotonic() - start))
    finally:
        if count:
            written = str(results.write())
    if failures:
        more = f"\n{len(failures)} of {counted(len(entries), 'input')} failed; " if len(entries) > 1 else "\n"
        more += f"the results of the others are in {written}" if count else "there are no results"
        raise UsageError("\n".join(failures) + more)
    return Summary(count, results.objects, written)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, run the model, and print the locations of drawings and predictions."""
    parser = argparse.ArgumentParser(prog="python -m mmgcvit.runtime", description=__doc__)
    parser.add_argument("file", help="exported model: .onnx, or OpenVINO's .xml")
    parser.add_argument("inputs", nargs="+", help="images, or folders with images at any depth")
    parser.add_argument(
        "--out-dir",
        default="outputs",
        help="folder for drawings in vis/ and, for a detector, predictions.json and images.json in COCO format; for a "
        "segmentor, label maps in labels/ and areas.json; for a classifier, classes.json and .csv (default: outputs)",
    )
    parser.add_argument(
        "--score-thr", type=float, default=0.3, help="do not draw boxes with a lower score (default: 0.3)"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images or tiles per batch (default: 1)")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="cut larger images into overlapping square tiles of this side, and merge their predictions",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        default=0.25,
        help="overlap of neighbouring tiles, as a fraction of their side (default: 0.25)",
    )
    parser.add_argument("--no-draw", action="store_true", help="write the predictions only")
    parser.add_argument("--threads", type=int, help="threads of the model (default: chosen by the library)")
    args = parser.parse_args(argv)
    options = (args.score_thr, args.batch_size, args.tile, args.overlap, not args.no_draw, args.threads)
    try:
        found = predict(args.file, args.inputs, args.out_dir, *options)
    except UsageError as error:
        sys.exit(f"mmgcvit.runtime: {error}")
    objects = f", {counted(found.objects, 'detection')}" if found.file.endswith("predictions.json") else ""
    drawings = "" if args.no_draw else f", drawings in {args.out_dir}/vis"
    print(f"{counted(found.images, 'image')}{objects}: predictions in {found.file}{drawings}")


if __name__ == "__main__":
    sys.exit(run_program(main))
