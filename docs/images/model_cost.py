"""Draw time and memory by the number of pixels, from files of mmgcvit benchmark --isolate --out.

python docs/images/model_cost.py work_dirs/bench/pixels.json
python docs/images/model_cost.py work_dirs/bench/batch-*.json --out docs/images/batch_cost.svg

Prints the exponents, and writes an SVG file. The pixels are those of the whole batch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_cost import draw, exponent


def read(files: list[Path]) -> dict[str, list[tuple[int, float, float]]]:
    """Pixels, seconds and MB of the run, in order of pixels, for each model and mode."""
    series: dict[str, list[tuple[int, float, float]]] = {}
    for file in files:
        data = json.loads(file.read_text())
        for result in data["results"]:
            height, width = result["shape"]
            row = data["settings"]["batch"] * height * width, result["median"], result["run_bytes"] / 1e6
            series.setdefault(f"{result['model']}, {result['mode']}", []).append(row)
    return {name: sorted(rows) for name, rows in series.items()}


def main() -> None:
    """Read, print the exponents, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of mmgcvit benchmark --isolate")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".svg"))
    args = parser.parse_args()
    series = read(args.files)
    print("| model | pixels | exponent of the time | exponent of the memory |\n|---|---|---|---|")
    for name, rows in series.items():
        sizes = [row[0] for row in rows]
        time, memory = (exponent(sizes, [row[column] for row in rows]) for column in (1, 2))
        print(f"| {name} | {sizes[0]:,} to {sizes[-1]:,} | {time:.2f} | {memory:.2f} |")
    draw(series, args.out, "pixels")
    print(args.out)


if __name__ == "__main__":
    main()
