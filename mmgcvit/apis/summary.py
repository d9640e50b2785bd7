"""What a finished run left, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path

from mmengine.config import Config

from mmgcvit.apis.checkpoints import newest_checkpoint
from mmgcvit.tasks import find_task
from mmgcvit.utils.paths import short_path
from mmgcvit.utils.program import runnable


def resume_command(cfg: Config) -> str:
    """Return the command that goes on with a run: the one that has started it, with ``--resume``.

    Args:
        cfg: the config of the run; its key ``command`` has the command that has started it, if one has.
    """
    words = shlex.split(cfg.get("command") or "")
    if not words or cfg.get("launcher", "none") != "none":  # the command of the launcher is not known
        return "the same command with --resume"
    if "--resume" in words:  # it may have named the checkpoint of its start
        place = words.index("--resume")
        named = place + 1 < len(words) and (words[place + 1].endswith(".pth") or "://" in words[place + 1])
        del words[place : place + 1 + named]
    return runnable([*words, "--resume"])


def end_of_run(work_dir: str | Path, config: str | Path, cfg: Config) -> str:
    """Return lines with the best checkpoint of a run, its report, and the commands to use the model.

    Args:
        work_dir: folder of the run.
        config: the config file, as given on the command line.
        cfg: its content.
    """
    folder = Path(work_dir)
    best = sorted(folder.glob("best_*.pth"), key=lambda path: path.stat().st_mtime)
    last = newest_checkpoint(folder)
    lines = [f"best checkpoint: {short_path(best[-1])}"] if best else []
    if last is not None:
        lines.append(f"last checkpoint: {short_path(last)}")
    if (folder / "report.html").is_file():
        lines.append(f"report:          {short_path(folder / 'report.html')}")
    chosen = str(best[-1]) if best else last
    if chosen is not None and cfg.get("test_dataloader"):  # a pre-trained backbone does not predict
        model = [short_path(config), short_path(chosen)]
        lines.append(f"predict:         {runnable(['mmgcvit', 'predict', 'IMAGES', *model, '--out-dir', 'outputs'])}")
        task = find_task(cfg.model)
        if task is not None and task.exports:
            out = short_path(folder / "model.onnx")
            lines.append(f"export:          {runnable(['mmgcvit', 'export', *model, out])}")
    return "\n".join(lines)
