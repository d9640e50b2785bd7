"""Fine-tuning on a data set in one call, and messages about data and run, for ``mmgcvit finetune`` and ``data``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from mmengine.config import Config
from rich.table import Table

from mmgcvit import apis
from mmgcvit.apis.lock import lock_work_dir
from mmgcvit.checkpoint.weights import fetch
from mmgcvit.datasets.check import check_data
from mmgcvit.datasets.report import print_reports
from mmgcvit.errors import CheckpointError, UsageError
from mmgcvit.finetune import config as configs
from mmgcvit.finetune.batch import fits, largest_batch
from mmgcvit.finetune.config import Settings
from mmgcvit.finetune.data import TASKS, UNSPLIT, Data, counts, split_off
from mmgcvit.finetune.formats import FORMATS, read_data
from mmgcvit.finetune.teacher import distillation, require_teacher
from mmgcvit.finetune.work_dir import FOLDER, clear, config_to_resume, require_untrained, write_config
from mmgcvit.finetune.write import convert
from mmgcvit.report.make import report_after_training
from mmgcvit.utils.paths import short_path
from mmgcvit.utils.program import command_line
from mmgcvit.utils.text import counted, printable, shown, wide_console

ARCH = "tiny"
MOST = 256  # images of a batch that is found automatically
SHOWN = 30  # classes in the table of counts


@dataclass(frozen=True)
class Options:
    """Options of :func:`finetune`; None: what suits the data and the machine."""

    task: str | None = None
    format: str | None = None
    arch: str | None = None
    weights: str | None = None
    epochs: int | None = None
    batch: int | None = None
    size: int | None = None
    work_dir: str | None = None
    dry_run: bool = False
    resume: bool = False
    teacher: str | None = None

    @property
    def of_the_run(self) -> dict[str, str | int | None]:
        """Those that decide what is trained, by name: a resumed run has the same."""
        return {key: value for key, value in asdict(self).items() if key not in ("work_dir", "dry_run", "resume")}


def finetune(source: str | Path, options: Options, say: Callable[[str], None] = print) -> Path | None:
    """Fine-tune a model on a data set: read, convert and check it, write a config, train, evaluate and report.

    Args:
        source: a folder, or one annotation file.
        options: what to do.
        say: prints a line.

    Returns:
        The work directory; None for a dry run, which writes nothing.

    Raises:
        UsageError: an option is not allowed, the work directory has a run, weights cannot be fetched, the checks of the
            data have found errors, or there is no run to resume.
        AnnotationError: the annotations are not recognised or cannot be read.
        RunStopped: a signal has stopped the training.
    """
    if options.resume and options.dry_run:
        raise UsageError("--resume with --dry-run; allowed: one of them")
    if options.resume and options.work_dir is not None:  # otherwise its name depends on the data
        return resume(Path(options.work_dir), options, say)
    data = read_data(source, options.task, options.format)
    describe_data(data, options.task, say)
    work_dir = Path(options.work_dir or Path("work_dirs", f"finetune_{data.root.name}_{data.tasks[0]}"))
    if options.resume:
        return resume(work_dir, options, say)
    known = len(data.notes)
    split_off(data)
    for note in data.notes[known:]:
        say(shown(f"note: {note}"))
    print_counts(data)
    folder = (work_dir / FOLDER).absolute()
    require_untrained(work_dir)
    settings = choose(data, options, say)
    text = configs.make_config(data, folder, settings)
    cfg = configs.load_text(text, str(work_dir))
    if options.dry_run:
        describe_run(cfg, settings, data, say)
        say(f"\nThe config would be {short_path(folder / 'config.py')}:\n\n{text}\ndry run: nothing was written")
        return None
    require_weights(settings.weights)
    if settings.distillation is not None:
        require_teacher(settings.distillation["teacher"], len(data.classes))
    try:
        with lock_work_dir(work_dir):
            path = prepare(data, folder, settings, options, text, cfg, say)
    except BaseException:
        with contextlib.suppress(OSError):
            work_dir.rmdir()  # if nothing was written
        raise
    return run_training(apis.load_config(path, str(work_dir)), path, work_dir, say)


def prepare(
    data: Data, folder: Path, settings: Settings, options: Options, text: str, cfg: Config, say: Callable[[str], None]
) -> Path:
    """Convert the data, find the batch size, write the config, and check the data.

    Returns:
        The file of the config.
    """
    work_dir = folder.parent
    require_untrained(work_dir)  # again, as another process may have had the folder
    if clear(work_dir):
        say(f"{short_path(folder)} is written again: an earlier try has trained nothing")
    convert(data, folder)
    try:
        if options.batch is None and torch.cuda.is_available():
            limit = min(MOST, configs.training_images(data), int(cfg.auto_scale_lr.base_batch_size))
            limit = configs.allowed_batch(settings.task, settings.arch, limit)
            least = 1 if configs.allowed_batch(settings.task, settings.arch, 1) else 2
            settings = replace(settings, batch=largest_batch(lambda batch: fits(cfg, batch), limit, least))
            say(f"batch size {settings.batch}: the largest that fits into the GPU, at most {limit}")
            text = configs.make_config(data, folder, settings)
        path = write_config(folder, text, options.of_the_run)
        cfg = apis.load_config(path, str(work_dir))
        describe_run(cfg, settings, data, say)
        reports = check_data(cfg, progress=sys.stderr.isatty())
        print_reports(reports)
        if any(report.broken for report in reports):
            raise UsageError(f"the data would break the training; see above. The config is {path}")
    except BaseException:
        say(f"annotations and config were left in {short_path(folder)}")
        raise
    return path


def resume(work_dir: Path, options: Options, say: Callable[[str], None]) -> Path:
    """Go on with the run in a work directory, from its newest checkpoint if it has one."""
    path = config_to_resume(work_dir, options.of_the_run)
    say(f"going on with the run in {short_path(work_dir)}; config: {short_path(path)}")
    return run_training(apis.load_config(path, str(work_dir)), path, work_dir, say, resume=True)


def run_training(cfg: Config, path: Path, work_dir: Path, say: Callable[[str], None], resume: bool = False) -> Path:
    """Train, evaluate the best checkpoint, write the report, and say how to use the model."""
    cfg.command = command_line()  # for the report, and to go on with the run
    apis.train(cfg, resume)
    best = sorted(work_dir.glob("best_*.pth"), key=lambda file: file.stat().st_mtime)
    checkpoint = str(best[-1]) if best else apis.newest_checkpoint(work_dir)
    if checkpoint:
        evaluated = apis.load_config(path, str(work_dir / "test"))
        say(f"evaluating the {'best' if best else 'last'} checkpoint on the validation images")
        apis.test(evaluated, checkpoint)
    report_after_training(work_dir)
    say(apis.end_of_run(work_dir, path, cfg))
    return work_dir


def choose(data: Data, options: Options, say: Callable[[str], None]) -> Settings:
    """Fill in what the user has not decided."""
    task, arch = data.tasks[0], options.arch or ARCH
    weights = options.weights or configs.default_weights(arch)
    if options.weights is None and weights == "none":
        say(f"no weights are published for arch {arch}: it is trained from scratch")
    elif Path(weights).is_file():
        weights = str(Path(weights).absolute())  # the config may be used in another folder
    batch = min(configs.CPU_BATCHES[task], len(data.splits["train"]))
    batch = configs.allowed_batch(task, arch, batch) if options.batch is None else options.batch
    if options.batch is None:
        gpu = torch.cuda.is_available()
        say(f"batch size: the largest that fits into the GPU, from {batch}" if gpu else f"batch size {batch}, on a CPU")
    elif task == "classify" and batch > len(data.splits["train"]):
        raise UsageError(f"batch={batch}; allowed: at most {len(data.splits['train'])}, the training images")
    size = configs.default_size(task, arch) if options.size is None else options.size
    epochs = configs.EPOCHS[task] if options.epochs is None else options.epochs
    if options.teacher is not None and task != "classify":
        raise UsageError(
            f"--teacher with task={task!r}; allowed: --task classify. For other tasks, docs/distillation.md "
            "shows how to pre-train the backbone"
        )
    taught = None if options.teacher is None else distillation(options.teacher, data.classes, say)
    return Settings(task, arch, weights, epochs, batch, size, max(1, min(4, os.cpu_count() or 1)), taught)


def require_weights(weights: str) -> None:
    """Fetch published weights before anything else is done.

    Raises:
        UsageError: they cannot be fetched; says what else is possible.
    """
    if "://" not in weights:
        return
    try:
        fetch(weights)
    except (CheckpointError, OSError) as error:
        raise UsageError(
            f"weights {weights!r} cannot be fetched: {error}\nWithout a network: --weights FILE for a checkpoint that "
            "you have, or --weights none to train from scratch, which needs more images and epochs"
        ) from error


def describe_data(data: Data, task: str | None, say: Callable[[str], None]) -> None:
    """Say what was recognised."""
    chosen = data.tasks[0]
    images = sum(map(len, data.splits.values()))
    objects = sum(not one.crowd for item in data.items for one in item.instances)
    said = f"{counted(images, 'image')}, " + (
        f"{counted(objects, 'object')}, " if chosen in ("detect", "segment") else ""
    )
    say(shown(f"recognised: {FORMATS[data.format].title} in {data.root}: {said}{counted(len(data.classes), 'class')}"))
    others = f"; for another: --task {', '.join(data.tasks[1:])}" if data.tasks[1:] else ""
    say(f"task: {chosen} ({TASKS[chosen]})" + ("" if task else f", which the annotations contain{others}"))
    for note in data.notes:
        say(shown(f"note: {note}"))


def print_counts(data: Data) -> None:
    """Print a table with the number of images, and of the objects of each class, in each split."""
    table = Table()
    table.add_column("")
    for split in data.splits:
        table.add_column("images" if split == UNSPLIT else split, justify="right")
    table.add_row("images", *(str(len(items)) for items in data.splits.values()))
    if data.tasks[0] in ("detect", "segment"):
        splits = data.splits.values()
        empty = [sum(all(one.crowd for one in item.instances) for item in items) for items in splits]
        ignored = [sum(one.crowd for item in items for one in item.instances) for items in splits]
        table.add_row("images without objects", *map(str, empty))
        if any(ignored):
            table.add_row("ignored: crowds, difficult", *map(str, ignored))
    found = counts(data)
    for name in data.classes[:SHOWN]:
        numbers = ["" if data.tasks[0] == "semantic" else str(found[split][name]) for split in data.splits]
        table.add_row(f"class {printable(name)}", *numbers)
    if len(data.classes) > SHOWN:
        table.add_row(counted(len(data.classes) - SHOWN, "more class"), *("" for _ in data.splits))
    wide_console().print(table, markup=False)


def describe_run(cfg: Config, settings: Settings, data: Data, say: Callable[[str], None]) -> None:
    """Say what will be trained."""
    rate, own, base = configs.learning_rate(cfg)
    say(f"model: {configs.base_config(settings.task, settings.arch).name}, arch {settings.arch}")
    say(f"weights: {settings.weights}")
    if settings.distillation is not None:
        teacher = settings.distillation["teacher"]
        learned = "probabilities" if "logits" in settings.distillation else "features"
        say(f"teacher: {teacher.get('checkpoint', teacher['name'])}; its {learned} are learned besides the labels")
    say(
        f"{counted(settings.epochs, 'epoch')} of {counted(configs.training_images(data), 'image')}, "
        f"batch size {settings.batch}, size {settings.size}, "
        f"learning rate {rate:.3g} ({own:g} for {counted(int(base), 'image')} per step)"
    )
