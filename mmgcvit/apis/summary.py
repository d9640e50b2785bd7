"""What a finished run left, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path

from mmgcvit.apis.checkpoints import newest_checkpoint


def end_of_run(work_dir: str | Path, config: str | Path) -> str:
    """Return lines with the best checkpoint of a run, its report, and the commands to use the model.

    Args:
        work_dir: folder of the run.
        config: the config file, as given on the command line.
    """
    folder = Path(work_dir)
    best = sorted(folder.glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    last = newest_checkpoint(folder)
    lines = [f"best checkpoint: {best[-1]}"] if best else []
    if last is not None:
        lines.append(f"last checkpoint: {last}")
    if (folder / "report.html").is_file():
        lines.append(f"report:          {folder / 'report.html'}")
    chosen = str(best[-1]) if best else last
    if chosen is not None:
        model = shlex.join([str(config), chosen])
        out = shlex.quote(str(folder / "model.onnx"))
        lines.append(f"predict:         python tools/image_demo.py IMAGES {model} --out-dir outputs")
        lines.append(f"export:          python tools/export.py {model} {out}")
    return "\n".join(lines)
